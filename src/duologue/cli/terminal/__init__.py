"""How a conversation looks in a terminal. `screen` is the full-screen chat, which shows a `transcript`; `plain` is the
chat by lines, which `lines` prints. `cells` knows what fits into a column."""
