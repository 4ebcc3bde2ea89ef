"""`duologue eval behaviour`: scripted conversations on a virtual clock, judged by rules on events, never by a model.

`cases` reads and checks conversations, `generate` makes the frozen set, `stage` plays a case to a session, `judge`
applies the rules, `measures` computes figures, `report` writes tables, a picture and a page, and `readers` converts
other sets. Texts and labels are data (`conversations.txt`, `contexts.txt`, `slots.txt`); any change to them changes the
hash.
"""
