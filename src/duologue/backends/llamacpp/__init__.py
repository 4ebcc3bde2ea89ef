"""Any GGUF file on llama.cpp: reading, converting and running it.

An assertion in C ends the process, so ids, positions and ranges are checked before every call.
"""
