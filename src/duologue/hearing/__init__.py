"""Models that hear: encoders of sound or of anything else that is not text, and turns made of their rows."""
