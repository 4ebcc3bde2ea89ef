"""Training adapters from a folder of samples. Imports torch, so it is loaded only when needed.

The modules here serve both ways of training. `probe/` trains around a frozen base (rows, alora); `finetune/` changes
the base (lora, full). The two folders never import from each other.
"""
