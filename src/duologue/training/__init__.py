"""Training adapters: a sample in tokens, its cached prefix, the loop, the report. Imports torch; loaded lazily."""
