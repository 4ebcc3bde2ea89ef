"""Runs many sessions on one backend, each pass with the pending work of all of them.

`Engine` is the only driver of sessions: a synchronous core (`tick`) with an asynchronous interface (`async with`).
`Handle` is one open session. `Scheduler` divides a pass among sessions and knows neither backend nor clock. `replay`
runs a scripted conversation on a virtual clock. Nothing here decides anything about a conversation; `core/` does.
"""
