"""Duplex over the network: one engine behind WebSockets and HTTP.

`duplex/` and `realtime/` each speak one protocol; connections, limits, conversations and records are shared and are
here. `page/` is the browser client, without a build step.
"""
