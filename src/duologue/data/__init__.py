"""From folders of JSONL to labelled samples, and a report of what they are.

Knows texts and labels, no model. What a test source holds never enters training: the splits are made here.
"""
