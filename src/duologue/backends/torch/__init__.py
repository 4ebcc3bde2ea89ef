"""Any Hugging Face causal language model on PyTorch, with a pool of KV slots that sequences share."""
