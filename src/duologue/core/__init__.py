"""The method: one conversation as a pure state machine.

`session` wires an `input_channel` (listening) to an `output_channel` (speaking); `transitions` says what each state
does, and `cache` turns it into operations on the KV cache. The core imports the standard library only. It knows no
clock, thread, socket, tensor or model: time and chance are passed in. A change here changes the method, and needs a
scenario test and a line in `docs/method.md`.
"""
