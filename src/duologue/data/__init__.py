"""From folders of JSONL to labelled samples. Standard library only; no model, no tensors."""
