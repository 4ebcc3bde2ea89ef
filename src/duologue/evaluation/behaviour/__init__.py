"""`duologue eval behaviour`: scripted conversations on a virtual clock, judged by rules on events, never by a model.

`cases` reads and checks conversations, `generate` makes the frozen set, `stage` plays one to a session, `judge` says
what was right, `measures` adds up, `report` writes tables, a picture and a page, `readers` takes other people's sets.
Texts and labels are data (`conversations.txt`, `contexts.txt`, `slots.txt`); a change to them changes the hash.
"""
