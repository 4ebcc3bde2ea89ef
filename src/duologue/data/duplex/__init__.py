"""Dialogues in time slices, as in Duplex-UltraChat: the training data of time division (arXiv 2406.15718).

Turns of any dialogues are cut into slices of both sides, and interrupted in six ways. Runs no model: tokenizers and
rewriters are handed in.
"""
