"""Figures of a run, by the definitions of established benchmarks.

* Actions by intent: CoDeTT (arXiv 2603.25434). Four actions, by whether the system speaks, over 14 intents; accuracy of
  each action, and their unweighted mean.
* Takeover rate and latency: Full-Duplex-Bench v1 (arXiv 2503.04721). An answer shorter than a second with at most three
  words is no takeover. In a turn with a pause, any takeover before the turn ends counts. Latency is the first sound
  minus the end of the user's turn, never below 0, takeovers only.
* Respond and resume rates, stop latency: Full-Duplex-Bench v1.5 (arXiv 2507.23159). Stop latency is the overlap: from
  where the user begins to where the assistant falls silent.
* Premature, late and spurious: TurnBench (arXiv 2608.25218). A detection in (gold, gold + 2 s] at commit time is right,
  an earlier one is premature, and an unwanted cut is spurious.
* False cut-offs at a mean latency of 300 and 600 ms, latency at 5 and 10 % false cut-offs: eot-bench (LiveKit), with a
  policy swept over threshold, delay and timeout.
* Average penalty time: SID-Bench (arXiv 2603.24144). Seconds lost over running answers: the delay of a stop that is
  wanted, the rest of the answer if there is none, the whole answer if it is cut for nothing, else 0.
* Inertia, amnesia, displacement: EchoChain. After a cut, the old answer continues, its heard part is forgotten, or the
  wrong turn is answered.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from duologue.core.events import Decided
from duologue.core.transitions import Floor
from duologue.decisions.metrics import wilson
from duologue.evaluation.behaviour.cases import Action, Expectation, set_hash
from duologue.evaluation.behaviour.judge import Problem, SpeechInterval, Verdict, judge, rest_s, speeches
from duologue.evaluation.behaviour.player import Played
from duologue.types import InputState

ACTIONS = ("maintain", "stop_and_listen", "takeover", "dismiss")
"""CoDeTT's names. If the assistant speaks: continue, stop. If it is silent: speak, stay silent."""
_BUDGETS_S = (0.3, 0.6)
_RATES = (0.05, 0.1)
_DELAYS_S = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_TIMEOUTS_S = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_TIE = 0.1  # between probabilities of two states


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case that was played, and the verdicts on it."""

    played: Played
    spoken: tuple[SpeechInterval, ...]
    verdicts: tuple[Verdict, ...]

    @classmethod
    def of(cls, played: Played) -> "CaseResult":
        """Judge a played case."""
        spoken = speeches(played.events, played.case.end)
        return cls(played, tuple(spoken), tuple(judge(played.case, spoken)))

    @property
    def right(self) -> bool:
        """Whether all expectations were met."""
        return all(verdict.right for verdict in self.verdicts)


def action_of(one: Expectation) -> str:
    """CoDeTT's action for an expectation."""
    if one.action in (Action.GO_ON, Action.WAIT):
        return "maintain" if one.action is Action.GO_ON else "dismiss"
    return "stop_and_listen" if one.floor is Floor.SPEAKING else "takeover"


def line(judged: Sequence[CaseResult]) -> dict[str, Any]:
    """The figures of one run, as `duologue eval behaviour --json` prints them. Shares of nothing are None.

    `accuracy` is the unweighted mean over CoDeTT's actions; that of a kind or of the pairs is the share of its cases in
    which everything was right.
    """
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    actions = {name: _share(v.acted for v in verdicts if action_of(v.expectation) == name) for name in ACTIONS}
    known = [value for value in actions.values() if value is not None]
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        by_kind[one.played.case.kind].append(one.right)
    contexts = [one.played.context_right for one in judged if one.played.context_right is not None]
    return {
        "n": len(judged),
        "set": set_hash(one.played.case for one in judged),
        "accuracy": _rounded(mean(known) if known else None),
        "actions": actions,
        "kinds": {kind: {"n": len(found), "accuracy": _share(found)} for kind, found in by_kind.items()},
        "pairs": _share(one.right for one in judged if one.played.case.pair),
        "takeover": {name: _takeover(judged, name) for name in ("pause_0.6", "pause_1.2", "pause_2.0", "turn")},
        "stop_latency_s": _mean(v.overlap_s for v in verdicts if action_of(v.expectation) == "stop_and_listen"),
        "penalty_s": _mean(_penalties(judged)),
        "context_correct": _share(contexts),
    }


def details(judged: Sequence[CaseResult]) -> dict[str, Any]:
    """All figures that are reported in addition to `line`."""
    cases_right = [one.right for one in judged]
    both = defaultdict(list)
    for one in judged:
        if one.played.case.pair:
            both[one.played.case.pair].append(one.right)
    drawn, wasted = (sum(getattr(one.played, name) for one in judged) for name in ("num_drawn", "num_wasted"))
    return {
        "cases_right": _share(cases_right),
        "pairs_both_right": _share(all(found) for found in both.values()),
        "intervals": _intervals(judged),
        "intents": _intents(judged),
        "full_duplex_bench": _full_duplex_bench(judged),
        "turnbench": _turnbench(judged),
        "eot_bench": _eot_bench(judged),
        "echochain": _echochain(judged),
        "tokens": {"drawn": drawn, "wasted": wasted, "wasted_share": _rounded(wasted / drawn if drawn else None)},
        "passes": sum(one.played.num_passes for one in judged),
        "problems": _problems(judged),
    }


def difference(a: Sequence[CaseResult], b: Sequence[CaseResult]) -> dict[str, Any]:
    """How two runs of the same cases differ: cases with different verdicts, and how many of these come from a tie.

    It is a tie if, at the first different decision, the two states had similar probabilities in both runs.
    """
    others = [(x, y) for x, y in zip(a, b, strict=True) if _problems([x]) != _problems([y]) or x.right != y.right]
    ties = sum(_is_tie(x.played, y.played) for x, y in others)
    return {"n": len(a), "equal": len(a) - len(others), "ties": ties, "others": len(others) - ties}


def _is_tie(a: Played, b: Played) -> bool:
    for x, y in zip(_decided(a), _decided(b), strict=False):
        chosen = x.decision.state, y.decision.state
        if chosen[0] is not chosen[1]:
            given = [dict(one.decision.probabilities) for one in (x, y)]
            return max(abs(p[chosen[0]] - p[chosen[1]]) for p in given) < _TIE
    return True  # the same states: only a probability was beside the threshold that releases an answer at once


def _decided(played: Played) -> list[Decided]:
    return [event for event in played.events if isinstance(event, Decided)]


def _takeover(judged: Sequence[CaseResult], name: str) -> float | None:
    """Share of turns with such a pause in which the assistant took the floor before their end, or of plain turns."""
    if name == "turn":
        return _share(any(s.is_takeover for s in one.spoken) for one in judged if one.played.case.kind == "plain_turn")
    return _share(
        any(s.is_takeover and s.start <= one.played.case.expect[-1].at for s in one.spoken)
        for one in judged
        if one.played.case.kind == name
    )


def _penalties(judged: Sequence[CaseResult]) -> Iterable[float]:
    for one in judged:
        for verdict in one.verdicts:
            wanted = action_of(verdict.expectation)
            rest, whole = rest_s(one.played.case, one.spoken, verdict.expectation.start)
            if not whole or wanted not in ("maintain", "stop_and_listen"):
                continue
            if wanted == "maintain":
                yield 0.0 if verdict.overlap_s is None else whole
            else:
                yield rest if verdict.overlap_s is None else verdict.overlap_s


def _intervals(judged: Sequence[CaseResult]) -> dict[str, list[float]]:
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        by_kind[one.played.case.kind].append(one.right)
    return {kind: [round(bound, 4) for bound in wilson(sum(f), len(f))] for kind, f in by_kind.items()}


def _intents(judged: Sequence[CaseResult]) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in ACTIONS}
    for verdict in (verdict for one in judged for verdict in one.verdicts):
        found[action_of(verdict.expectation)][verdict.expectation.intent or "unnamed"].append(verdict.acted)
    return {
        action: {intent: {"n": len(acted), "accuracy": _share(acted)} for intent, acted in sorted(intents.items())}
        for action, intents in found.items()
    }


def _full_duplex_bench(judged: Sequence[CaseResult]) -> dict[str, Any]:
    verdicts = [v for one in judged for v in one.verdicts]
    starts = [max(0.0, v.delay_s) for v in verdicts if v.delay_s is not None]
    over = [v for v in verdicts if v.expectation.floor is Floor.SPEAKING and v.expectation.action is Action.ANSWER]

    def resumed(*intents: str) -> float | None:
        held = [v for v in verdicts if action_of(v.expectation) == "maintain"]
        return _share(v.acted for v in held if v.expectation.intent in intents)

    return {
        "respond_latency_s": {"mean": _mean(starts), "median": _rounded(median(starts) if starts else None)},
        "respond_to_interruption": _share(v.delay_s is not None for v in over),
        "resume_after_backchannel": resumed("backchannel"),
        "resume_after_talk_to_others": resumed("side_talk"),
        "resume_after_background": resumed("distraction", "invalidation"),
    }


def _turnbench(judged: Sequence[CaseResult]) -> dict[str, Any]:
    verdicts = [v for one in judged for v in one.verdicts]
    ends = [v for v in verdicts if action_of(v.expectation) == "takeover"]
    cuts = [v for v in verdicts if action_of(v.expectation) == "stop_and_listen"]
    timely = [v.delay_s for v in ends if v.delay_s is not None and v.delay_s > 0]
    overlaps = [v.overlap_s for v in cuts if v.overlap_s is not None]
    return {
        "end_of_turn": {
            "n": len(ends),
            "recall": _share(v.delay_s is not None and v.delay_s > 0 for v in ends),
            "premature": _share(v.problem is Problem.EARLY for v in ends),
            "p50_s": _rounded(median(timely) if timely else None),
        },
        "interruption": {
            "n": len(cuts),
            "recall": _share(v.overlap_s is not None for v in cuts),
            "p50_s": _rounded(median(overlaps) if overlaps else None),
        },
        "spurious": {
            "answers": sum(v.problem is Problem.SPOKE for v in verdicts),
            "cuts": sum(v.problem is Problem.CUT for v in verdicts),
        },
    }


def _eot_bench(judged: Sequence[CaseResult]) -> dict[str, Any]:
    """Pauses and ends of spoken turns to a silent assistant, with the probability of process at each."""
    pauses: list[tuple[float, float]] = []  # probability, seconds of the pause
    ends: list[float] = []
    for one in judged:
        if one.played.case.kind.startswith("pause") or one.played.case.kind == "pieces":
            for expectation in one.played.case.expect:
                p = _probability(one.played, expectation.at)
                if expectation.action is Action.WAIT:
                    pauses.append((p, expectation.within))
                else:
                    ends.append(p)
    if not pauses:
        return {}
    curve = _policies(pauses, ends)
    at_budget = {
        f"{1000 * s:.0f}_ms": min((rate for rate, late in curve if late <= s), default=1.0) for s in _BUDGETS_S
    }
    at_rate = {f"{100 * r:.0f}_%": min((late for rate, late in curve if rate <= r), default=None) for r in _RATES}
    return {
        "n": len(pauses) + len(ends),
        "false_cutoffs_at": {name: _rounded(value) for name, value in at_budget.items()},
        "latency_s_at": {name: _rounded(value) for name, value in at_rate.items()},
    }


def _policies(pauses: Sequence[tuple[float, float]], ends: Sequence[float]) -> list[tuple[float, float]]:
    """False cut-offs and mean latency of policies: answer `delay` after words that seem complete, else `timeout`."""
    thresholds = sorted({0.0, 1.1, *(round(p, 3) for p, _ in pauses), *(round(p, 3) for p in ends)})
    found = []
    for threshold in thresholds:
        sure_pauses = [seconds for p, seconds in pauses if p >= threshold]
        unsure = [seconds for p, seconds in pauses if p < threshold]
        share = sum(p >= threshold for p in ends) / len(ends) if ends else 0.0
        for delay in _DELAYS_S:
            for timeout in (t for t in _TIMEOUTS_S if t >= delay):
                cut = sum(delay < s for s in sure_pauses) + sum(timeout < s for s in unsure)
                found.append((cut / len(pauses), share * delay + (1 - share) * timeout))
    return found


def _probability(played: Played, at: float) -> float:
    """The probability of process for the words said until `at`; 0 if there was no decision."""
    told = [event for event in _decided(played) if abs(event.heard_at - at) < 0.01]
    return dict(told[-1].decision.probabilities).get(InputState.PROCESS, 0.0) if told else 0.0


def _echochain(judged: Sequence[CaseResult]) -> dict[str, Any]:
    found = [
        (one, v)
        for one in judged
        for v in one.verdicts
        if v.expectation.action is Action.ANSWER and v.expectation.floor is Floor.SPEAKING
    ]
    return {
        "n": len(found),
        "inertia": _share(v.problem is Problem.WENT_ON for _, v in found),
        "amnesia": _share(one.played.context_right is False for one, _ in found),
        "displacement": _share(v.problem is Problem.WRONG_TURN for _, v in found),
        "right": _share(v.right for _, v in found),
    }


def _problems(judged: Sequence[CaseResult]) -> Mapping[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for verdict in (verdict for one in judged for verdict in one.verdicts):
        counts[f"{verdict.expectation.action}: {verdict.problem or 'right'}"] += 1
    return dict(sorted(counts.items()))


def _share(values: Iterable[bool]) -> float | None:
    found = list(values)
    return _rounded(sum(found) / len(found)) if found else None


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return _rounded(mean(found)) if found else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
