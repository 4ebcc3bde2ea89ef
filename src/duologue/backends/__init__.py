"""Weights and KV caches. Each backend implements `core.backend.Backend`; each heavy library has a folder of its own.

A backend knows token ids, positions and sequences. It knows no roles, states or time. It refuses rather than
approximates. A new backend passes `duologue.testing.contract` and is compared with the slow backend `reference`.
"""
