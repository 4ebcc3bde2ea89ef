"""How many sessions a fleet of replicas holds in real time, by simulation.

Sessions, engine, scheduler and users are the real ones, those of `duologue.evaluation.scale`. Only two things are
replaced: the model, by a backend that knows lengths and no weights, and the clock, by a virtual one that a pass moves
by what it would cost (`PassCost`). The users go on speaking and hearing while a pass runs. Nothing waits, and the same
arguments give the same result on any machine.

One replica is simulated at a time, and freed afterwards. Replicas are independent, so a fleet follows from its loads:
each session goes to the replica that a hash of its name chooses, as when sessions are routed by consistent hashing.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from duologue.backends.slots import SlotTable
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.core.prompt import Probe
from duologue.engine.engine import SEQS_PER_SESSION, SPARE_SEQS, Engine
from duologue.engine.forward_pass import ForwardPass
from duologue.errors import require
from duologue.evaluation.pass_cost import PassCost, PassWork
from duologue.evaluation.quantiles import p50_p95
from duologue.evaluation.scale import STEP_S, Room, ScaleResult, ScaleSetting
from duologue.evaluation.simulated_user import words
from duologue.text.template import Template
from duologue.types import Seq, Token

MAX_LOADS = 8
"""Loads that are simulated for a fleet. If its replicas have more different ones, each counts as the next larger."""
_SPARE_CONTEXTS = 2  # per session: for waiting words and suspended answers
_IDLE_S = 1e-4  # an idle engine looks again after so long at the earliest
_WORDS = 64  # after which an answer repeats itself
_HASTE = 20.0  # how many times as fast time passes until all sessions speak, which is not measured
_OVER = object()


@final
class SimulatedBackend(Backend):
    """A backend without a model: it keeps the lengths of sequences and what they share. It says `text` over and over,
    and judges nothing.

    Args:
        info: of the backend that is simulated; capacity and limits are those that `sessions` of `length` tokens need.
        text: tokens, drawn by the length of the sequence.
        chance: decides, by `cost.judged_apart`, which probes take a pass of their own.
    """

    def __init__(
        self,
        info: BackendInfo,
        cost: PassCost,
        *,
        sessions: int,
        length: int,
        text: tuple[Token, ...],
        chance: random.Random,
    ) -> None:
        self._info = replace(
            info,
            name="simulated",
            context_length=length,
            capacity=_SPARE_CONTEXTS * (sessions + 1) * length,
            max_seqs=4 * (sessions * SEQS_PER_SESSION + SPARE_SEQS),
            kv_bytes_per_token=cost.kv_bytes_per_token,
            num_caches=1,
        )
        self._slots = SlotTable(self._info.capacity, self._info.max_seqs)
        self._judged_apart = cost.judged_apart
        self._text = text
        self._chance = chance

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._slots.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        self._slots.check(batch, self._info.context_length)
        for extend in batch:
            self._slots.extend(extend.seq, len(extend.tokens))
        return [self._step(extend) for extend in batch]

    def truncate(self, seq: Seq, length: int) -> None:
        self._slots.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._slots.free(seq)

    def length(self, seq: Seq) -> int:
        return self._slots.length(seq)

    def usage(self) -> Usage:
        entries = self._slots.num_used
        return Usage(self._slots.num_seqs, entries, entries * self._info.kv_bytes_per_token)

    def _step(self, extend: Extend) -> Step:
        if extend.draw is not None:
            return Step(extend.ticket, (self._text[self._slots.length(extend.seq) % len(self._text)],))
        is_apart = bool(extend.watch) and self._chance.random() < self._judged_apart
        p = tuple((1.0 / len(group),) * len(group) for group in extend.watch)
        return Step(extend.ticket, p=p, passes=(0, 1) if is_apart else (0,), is_apart=is_apart)


@dataclass(frozen=True, slots=True)
class Replica:
    """What every replica of a fleet runs: the layout of a model's conversations, and what its passes cost."""

    template: Template
    probe: Probe
    info: BackendInfo  # of the model's backend
    cost: PassCost

    def simulate(self, setting: ScaleSetting) -> ScaleResult:
        """The result of `duologue.evaluation.scale.measure` on a machine with these costs. No time passes.

        Raises:
            EngineError: a session failed.
        """
        return _Simulation(self, setting).run()


@final
class _Simulation:
    """One replica on a virtual clock."""

    def __init__(self, replica: Replica, setting: ScaleSetting) -> None:
        self._cost = replica.cost
        self._chance = random.Random(f"capacity/{setting.seed}")
        backend = SimulatedBackend(
            replica.info,
            replica.cost,
            sessions=setting.sessions,
            length=setting.max_length,
            text=replica.template.encode(f" {words(self._chance, _WORDS)}"),
            chance=self._chance,
        )
        self._now = 0.0
        self._engine = Engine(backend, clock=lambda: self._now)
        self._room = Room(self._engine, replica.template, replica.probe, setting)
        self._users = self._room.perform()
        self._next_step = 0.0  # of the users
        self._is_over = False

    def run(self) -> ScaleResult:
        """Let passes follow each other until the users have finished."""
        try:
            while not self._is_over:
                forward_pass = self._engine.plan()
                if forward_pass is None:
                    due = self._engine.due()
                    wakes_at = self._next_step if due is None else max(due, self._now + _IDLE_S)
                    self._advance(min(self._next_step, wakes_at))
                else:
                    self._carry_out(forward_pass)
            return self._room.result()
        finally:
            self._engine.close()

    def _carry_out(self, forward_pass: ForwardPass) -> None:
        forward_pass.run()
        work = PassWork.of(forward_pass, len(self._engine.handles))
        forward_pass.seconds = self._cost.pass_seconds(work) * self._chance.choice(self._cost.noise)
        seconds = forward_pass.seconds + self._cost.engine_seconds(work)
        self._advance(self._now + (seconds if self._room.is_ready else seconds / _HASTE))
        if not self._is_over:
            self._engine.take(forward_pass)

    def _advance(self, until: float) -> None:
        """Move the clock, and let the users act whenever they are due."""
        while self._next_step <= until and not self._is_over:
            self._now = self._next_step
            self._is_over = next(self._users, _OVER) is _OVER
            self._next_step = self._now + STEP_S
        self._now = max(self._now, until)


def spread(sessions: int, replicas: int, *, seed: int = 0) -> Mapping[int, int]:
    """Loads, and how many replicas have each, if a hash of its name takes every session to a replica.

    Raises:
        UsageError: there is not at least one of each.
    """
    require(sessions >= 1 and replicas >= 1, f"{sessions} sessions on {replicas} replicas: there must be one of each")
    names = (f"{seed}/{number}".encode() for number in range(sessions))
    counts = Counter(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % replicas for name in names)
    loads = Counter(counts.values())
    loads[0] += replicas - len(counts)
    return {load: number for load, number in sorted(loads.items()) if number}


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What a fleet does with its sessions."""

    loads: Mapping[int, int]  # sessions of a replica → replicas with so many
    outcomes: Mapping[int, ScaleResult]  # of the loads that were simulated

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. Shares and decisions are those of all sessions."""
        sessions = sum(load * number for load, number in self.loads.items())
        on_time = sum(load * number for load, number, outcome in self._loaded() if outcome.realtime)
        waits = [wait for _, number, outcome in self._loaded() for wait in outcome.decisions * number]
        return {
            "sessions": sessions,
            "replicas": sum(self.loads.values()),
            "sessions_per_replica": {"min": min(self.loads), "max": max(self.loads)},
            "share_in_realtime": round(on_time / sessions, 4),
            "decision_ms": p50_p95(waits, 1),
            "outcomes": [outcome.as_dict() for _, outcome in sorted(self.outcomes.items())],
        }

    def _loaded(self) -> Iterator[tuple[int, int, ScaleResult]]:
        """Load, replicas with it, and the outcome of the next larger load that was simulated."""
        for load, number in self.loads.items():
            if load:
                yield load, number, self.outcomes[min(known for known in self.outcomes if known >= load)]


def simulate_fleet(loads: Mapping[int, int], simulated: Callable[[int], ScaleResult]) -> FleetResult:
    """Simulate one replica for each load of `spread`, or for `MAX_LOADS` of them, the largest included."""
    busy = sorted(load for load in loads if load)
    number = min(MAX_LOADS, len(busy))
    chosen = [busy[(index + 1) * len(busy) // number - 1] for index in range(number)]
    return FleetResult(loads, {load: simulated(load) for load in chosen})
