"""Rate limits: how much of something a client may do per second."""

import asyncio

_BURST_S = 2.0  # seconds' worth of allowance that may be used at once


class Allowance:
    """An allowance per second, of which up to `_BURST_S` seconds' worth may be used at once."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._most = self._left = per_second * _BURST_S
        self._at = asyncio.get_running_loop().time()

    def take(self, number: int = 1) -> None:
        """Use some of the allowance, which may become negative."""
        self._left -= number

    @property
    def wait_s(self) -> float:
        """Seconds until the allowance is positive again."""
        now = asyncio.get_running_loop().time()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, -self._left / self._rate)
