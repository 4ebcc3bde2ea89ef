"""Duplex over the network: one engine behind WebSockets and HTTP."""
