"""When a conversation by voice answers. Numbers only."""

from dataclasses import replace

from duologue.core.policy import Policy

_SETTLE_MS = 3000.0
_NEVER = 1.01
_PERIOD_S = 0.5  # silence is heard: words that are not finished need not be waited for as long as typed ones


def by_voice(policy: Policy) -> Policy:
    """`policy` for a conversation in which silence tells when an answer may begin: no clock has to, nor how sure it is.

    Otherwise an answer would begin when the recogniser is slow, or while the user is still speaking.
    """
    return replace(policy, settle_ms=_SETTLE_MS, p_sure=_NEVER, period_s=min(policy.period_s, _PERIOD_S))
