"""Fine-tuning the base itself with the DUO paper's recipes: every weight (full), or a LoRA on every position (lora).

The result is another model, and rows that fit it.
"""
