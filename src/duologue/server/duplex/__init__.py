"""`/v1/duplex`: the events of a session over a WebSocket, and nothing else. docs/protocol.md is its specification."""
