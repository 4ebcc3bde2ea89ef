"""When a conversation by voice answers, and yields. Numbers only."""

from dataclasses import replace

from duologue.core.policy import Policy

_SETTLE_MS = 3000.0
_NEVER = 1.01
_PERIOD_S = 0.5  # silence is heard: words that are not finished need not be waited for as long as typed ones
_CAUTION = 3.0


def by_voice(policy: Policy) -> Policy:
    """`policy` for a conversation by voice.

    Silence tells when an answer may begin: no clock has to, nor how sure it is. Otherwise it would begin when the
    recogniser is slow, or while the user is still speaking. And words that are still being recognised change: over an
    answer they have to be more clearly meant for the assistant, since a cut is heard even when it is undone. Who has
    fallen silent has ended, though, however his words look: if they seem to be meant for the assistant, they are
    answered.
    """
    speaking = replace(policy.speaking, process=min(1.0, _CAUTION * policy.speaking.process))
    return replace(
        policy,
        speaking=speaking,
        settle_ms=_SETTLE_MS,
        p_sure=_NEVER,
        period_s=min(policy.period_s, _PERIOD_S),
        answers_unfinished=True,
    )
