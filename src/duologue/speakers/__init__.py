"""Answers from elsewhere: any endpoint with OpenAI's chat completions speaks, while a local model listens and decides.

`listener` is the conversation. `endpoint` says what is asked, `stream` reads what comes back, `completion` connects the
two over HTTP, and `remote` gives the answers of conversations. Nothing here decides anything.
"""
