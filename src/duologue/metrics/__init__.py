"""What decisions come to: counts, thresholds, calibration. Numbers and numpy only; any backend can be judged."""
