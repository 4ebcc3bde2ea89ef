"""The command line: one module per command, and the terminal screen in `terminal/`.

A command reads its options, calls the package and prints text. Logic belongs to the package. No module here imports a
heavy library before its command runs.
"""
