"""Runs many sessions on one backend: one forward pass after another, with all that they have to feed.

The only place that drives sessions, and the only clock. It never decides anything about a conversation.
"""
