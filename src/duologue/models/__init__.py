"""From a name to a model that is ready to talk: weights, template and adapter are found and checked against each other.

This package inspects files and imports heavy libraries only when a model needs them. `assets/` holds the adapters that
ship with the package.
"""
