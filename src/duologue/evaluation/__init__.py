"""Measuring a model with its adapter through the inference path that conversations use."""
