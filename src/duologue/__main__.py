"""`python -m duologue`."""

import sys

from duologue.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
