"""From folders of JSONL to labelled samples. No model, no tensors; numpy in the tell test alone."""
