"""A conversation by voice: sound in, sound out, and a session in between. docs/voice.md explains it.

    frames ─▶ detector ─▶ recogniser ─▶ Voice ─▶ hear ─▶ session ─▶ events ─▶ Voice ─▶ synthesiser ─▶ player ─▶ frames
                                          ▲                                                              │
                                          └────────────────────────── heard ◀───────────────────────────┘

Here is the pipeline, which knows frames, words and positions, and no device or socket; `engines/` holds what detects,
recognises and speaks.
"""
