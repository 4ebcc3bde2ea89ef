"""Weights and KV caches: five verbs, one contract (`core.backend.Backend`), one heavy library in each folder.

A backend knows ids, positions and sequences; not roles, states or time. It refuses rather than approximates. A new one
passes `duologue.testing.contract` and is compared with `reference`, its slow twin.
"""
