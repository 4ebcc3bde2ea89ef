"""GGUF files on llama.cpp: reading, converting and running them.

A failed assertion in C ends the process, so ids, positions and ranges are checked before every call.
"""
