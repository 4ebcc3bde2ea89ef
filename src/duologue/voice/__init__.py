"""A conversation by voice: sound in, sound out, and a session in between. docs/voice.md explains it.

    frames ─▶ detector ─▶ recogniser ─▶ Voice ─▶ hear ─▶ session ─▶ events ─▶ Voice ─▶ synthesiser ─▶ player ─▶ frames
                                          ▲                                                              │
                                          └────────────────────────── heard ◀───────────────────────────┘

This folder holds the pipeline, which knows frames, words and positions, but no device and no socket. `engines/` holds
speech detection, recognition and synthesis; each can be replaced.
"""
