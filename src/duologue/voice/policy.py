"""The decision policy of spoken conversations."""

from dataclasses import replace

from duologue.core.policy import ECHO_S, Policy

_SETTLE_MS = 3000.0
_NEVER = 1.01
_PERIOD_S = 0.5  # silence is audible, so unfinished words are given less time than typed ones
_CAUTION = 3.0


def by_voice(policy: Policy) -> Policy:
    """`policy` adapted to spoken conversations.

    Silence determines when an answer may begin; a timer or a high probability does not, since the answer would begin
    whenever the recogniser is slow, or while the user still speaks. Words that are being recognised may still change.
    During an answer they must therefore be more clearly meant for the assistant: a cut is audible even if it is undone.
    Silence also ends the utterance, however unfinished its words look: they are answered if they seem to be meant for
    the assistant. The microphone may pick up the assistant's own words.
    """
    speaking = replace(policy.speaking, process=min(1.0, _CAUTION * policy.speaking.process))
    return replace(
        policy,
        speaking=speaking,
        settle_ms=_SETTLE_MS,
        p_sure=_NEVER,
        needs_final=True,
        period_s=min(policy.period_s, _PERIOD_S),
        answers_unfinished=True,
        echo_s=ECHO_S,
    )
