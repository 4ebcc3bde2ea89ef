"""People compare two systems, blind: the papers' human evaluation.

A study is a folder. In one form it has pairs of recorded conversations, the same user to both systems, which are played
back in time; in the other, each person talks to both systems. Ballots are in SQLite, and a report is made of them.
"""
