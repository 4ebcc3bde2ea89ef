"""`/v1/realtime`: OpenAI's Realtime protocol, with duplex behind it. docs/realtime.md says how they map."""
