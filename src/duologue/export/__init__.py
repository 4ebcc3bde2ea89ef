"""Writes an adapter into a model's own files, for engines that know nothing about adapters, and checks the result."""
