"""Text and roles ⇄ ids, for any model, from its own tokenizer and chat template.

Knows nothing of sessions, caches or time. `template` is what the rest of the package uses; the other modules are its
parts. What a user says is never parsed for special tokens: keep it so.
"""
