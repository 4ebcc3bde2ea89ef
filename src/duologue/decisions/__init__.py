"""From probabilities to decisions, and what these come to: counts, thresholds, calibration.

Numbers and numpy only. Training, evaluation and adapters share it, so that all of them count alike.
"""
