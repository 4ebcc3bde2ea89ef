"""How long the long tests are: moderately, or with `DUOLOGUE_SOAK=1` as long as a night allows."""

import os

IS_LONG = os.environ.get("DUOLOGUE_SOAK", "") not in ("", "0")


def size(usual: int, long: int) -> int:
    """The one of the two that is asked for."""
    return long if IS_LONG else usual
