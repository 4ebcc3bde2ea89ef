"""Everything that measures: states, cost, scale, load; and how results become tables and pictures.

Reads traces and events; it runs the same inference path as conversations do.
"""
