"""What runs inside vLLM: models that apply an adapter at probe tokens, registered by a plug-in."""
