"""Text and roles ⇄ ids, for any model, from its own tokenizer and chat template.

The rest of the package uses `template`, `text_template`, `slicing` and `words`; the other modules are parts of
`template`. Nothing here knows sessions, caches or time. User text must never be parsed for special tokens.
"""
