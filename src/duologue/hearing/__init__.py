"""Hearing: models that hear, turns made of sound, and what a voice tells the decision beyond its words."""
