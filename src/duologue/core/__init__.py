"""The method: one conversation as a pure state machine.

Standard library only; no clock, thread, socket, tensor or model. Time and chance are handed in. Everything the rest of
the package does is either to feed a `Session` or to act on what it says. A change here changes the method: it needs a
scenario test and a line in `docs/method.md`.
"""
