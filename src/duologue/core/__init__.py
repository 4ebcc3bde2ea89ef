"""The method: one conversation as a pure state machine.

`session` runs the cycle: plan, a forward pass, take. `input_channel` listens and `output_channel` speaks; neither knows
the other. `transitions` is the table of what each state leads to, `channels` carries it out, and `cache` turns what the
channels want into operations on the KV cache.

The core imports the standard library only. It knows no clock, thread, socket, tensor or model: time and chance are
passed in. A change here changes the method, and needs a scenario test and a line in `docs/method.md`.
"""
