"""From a name to a model that is ready to talk: weights, template and adapter, found and made to fit each other.

Looks at files and loads libraries lazily. `assets/` holds the adapters that are shipped with the package.
"""
