"""A conversation by voice: sound in, sound out, and a session in between. docs/voice.md explains it.

    frames ─▶ detector ─▶ recogniser ─▶ Voice ─▶ hear ─▶ session ─▶ events ─▶ Voice ─▶ synthesiser ─▶ player ─▶ frames
                                          ▲                                                              │
                                          └────────────────────────── heard ◀───────────────────────────┘

Nothing here knows a microphone, a loudspeaker or a socket: frames are pushed, and asked for.
"""
