"""Measurements: states, cost, scale, load; and how figures become result files, tables, pictures and pages.

Whatever is measured runs the inference path of conversations; figures come from its traces and events. Nothing here is
imported by sessions, engines or servers. Benchmark scripts hold claims and flags; what two of them need belongs here.
"""
