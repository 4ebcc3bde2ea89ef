"""From folders of JSONL to labelled samples, and a report on them.

This package deals with texts and labels and runs no model. Documents are assigned to splits here: what a test source
contains never enters training. The same sources, recipe and seed must give the same samples, so do not change the
order of random draws without need.
"""
