"""Duplex over the network: one engine behind WebSockets and HTTP.

`duplex/` and `realtime/` each implement one protocol. The modules here are shared by both: connections, limits,
conversations and records. `page/` is the browser client, which needs no build step.
"""
