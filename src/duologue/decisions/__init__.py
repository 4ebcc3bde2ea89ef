"""From probabilities to decisions, and how good these are: metrics, calibration, thresholds.

Samples, numbers and numpy only. Training, evaluation and adapters share it, so that all of them count alike. No model
is run here, and no file is read.
"""
