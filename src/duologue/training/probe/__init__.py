"""Training around a frozen base: the prefix of a sample is computed once, and an epoch feeds one token per sample."""
