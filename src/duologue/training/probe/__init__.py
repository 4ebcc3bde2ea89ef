"""Training around a frozen base: rows, and for `alora` a LoRA that is active at the probe only.

The base's weights are never updated. That is why prefixes are computed once, and why its outputs do not change.
"""
