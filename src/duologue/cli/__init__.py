"""One command, one file. Thin: options in, a call to the package, text out."""
