"""Training adapters from a folder of samples. Imports torch; loaded lazily.

Here is what both ways share; `probe/` trains around a frozen base (rows, alora), `finetune/` changes it (lora, full).
"""
