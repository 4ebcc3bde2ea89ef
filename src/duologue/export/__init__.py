"""An adapter written into a model's own files, for engines that know nothing of adapters, and checked there."""
