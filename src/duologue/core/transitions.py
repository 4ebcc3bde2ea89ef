"""What each state does, depending on who has the floor (DUO, section 2.3).

The input channel forks from what the user has heard, so both outcomes are ready when the state is known. Dropping the
channel leaves the answer as it is; promoting it makes it the new output channel, already prefilled. The paper leaves
open what happens if nothing has been heard of an answer: here, there is nothing to interrupt, and the words belong to
the same turn (choice 5).

`TABLE` is complete: `Channels` looks its transitions up here and has a method for each, in this order. The figure in
`docs/method.md` is drawn from it (`python -m duologue.core.transitions`).
"""

from collections.abc import Mapping
from enum import StrEnum

from duologue.types import InputState


class Floor(StrEnum):
    """Who has the floor when the words are judged."""

    SILENT = "silent"  # no answer is running
    PREPARED = "prepared"  # an answer exists, but nothing of it has been heard
    SPEAKING = "speaking"  # the user is hearing an answer


class Transition(StrEnum):
    """What happens to the two channels and their KV (figure 2 of the paper). `Channels` has a method for each."""

    HOLD = "hold"  # incomplete: roll back the probe, keep the input's KV, wait
    DROP = "drop"  # ignore: free the input channel; everything else goes on
    PROMOTE = "promote"  # process: the input channel becomes the output channel
    INTERRUPT = "interrupt"  # process over an answer: suspend the answer with its KV, promote the input
    HALT = "halt"  # stop: suspend the answer, drop the input, say nothing
    TAKE_BACK = "take back"  # roll the unheard answer back to the mark; the words continue its turn
    WITHDRAW = "withdraw"  # stop before anything was heard: roll back the answer and its turn, drop the input
    DEFER = "defer"  # keep the input until the answer has ended, then promote it


class Interruptible(StrEnum):
    """What may cut an answer."""

    YES = "true"
    NO = "false"  # nothing: words to answer are answered afterwards
    STOP_ONLY = "stop-only"  # only the stop state


TABLE: Mapping[tuple[Floor, InputState], Transition] = {
    (Floor.SILENT, InputState.INCOMPLETE): Transition.HOLD,
    (Floor.SILENT, InputState.IGNORE): Transition.DROP,
    (Floor.SILENT, InputState.PROCESS): Transition.PROMOTE,
    (Floor.SILENT, InputState.STOP): Transition.DROP,
    (Floor.PREPARED, InputState.INCOMPLETE): Transition.TAKE_BACK,
    (Floor.PREPARED, InputState.IGNORE): Transition.DROP,
    (Floor.PREPARED, InputState.PROCESS): Transition.TAKE_BACK,
    (Floor.PREPARED, InputState.STOP): Transition.WITHDRAW,
    (Floor.SPEAKING, InputState.INCOMPLETE): Transition.HOLD,
    (Floor.SPEAKING, InputState.IGNORE): Transition.DROP,
    (Floor.SPEAKING, InputState.PROCESS): Transition.INTERRUPT,
    (Floor.SPEAKING, InputState.STOP): Transition.HALT,
}

PROTECTED: Mapping[tuple[Interruptible, Transition], Transition] = {
    (Interruptible.NO, Transition.INTERRUPT): Transition.DEFER,
    (Interruptible.NO, Transition.HALT): Transition.DROP,
    (Interruptible.STOP_ONLY, Transition.INTERRUPT): Transition.DEFER,
}


def transition(floor: Floor, state: InputState, interruptible: Interruptible = Interruptible.YES) -> Transition:
    """What `state` does, given who has the floor and what may cut the running answer."""
    plain = TABLE[floor, state]
    return PROTECTED.get((interruptible, plain), plain)


_LEADS_TO: Mapping[Transition, Floor | None] = {  # None: the floor does not change
    Transition.HOLD: None,
    Transition.DROP: None,
    Transition.PROMOTE: Floor.PREPARED,
    Transition.INTERRUPT: Floor.PREPARED,
    Transition.HALT: Floor.SILENT,
    Transition.TAKE_BACK: Floor.SILENT,
    Transition.WITHDRAW: Floor.SILENT,
    Transition.DEFER: None,
}


def figure() -> str:
    """`TABLE` as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Floor.SILENT}"]
    for (floor, state), change in TABLE.items():
        lines.append(f"    {floor} --> {_LEADS_TO[change] or floor}: {state} / {change}")
    lines.append(f"    {Floor.PREPARED} --> {Floor.SPEAKING}: released and heard")
    lines.append(f"    {Floor.SPEAKING} --> {Floor.SILENT}: finished and heard to the end / commit")
    return "\n".join(lines)


if __name__ == "__main__":
    print(figure())
