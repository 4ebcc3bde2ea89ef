"""How a conversation looks in a terminal. `screen` is the full-screen chat, which shows a `transcript`; `plain` is the
chat by lines, which `lines` prints. `cells` and `text` know what fits and what is safe to print."""
