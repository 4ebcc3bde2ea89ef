"""What a pass costs: a linear model of its time, fitted to passes on a real backend or read from a file.

The time of a pass is a sum over what it does (`PassWork`), each part times its coefficient in `PassCost`. The model is
meant to be read: what is assumed of another machine, such as a GPU, is a file of ten numbers and the reasons for them.
"""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from duologue.core.backend import Backend, RequestBackend
from duologue.engine.engine import Engine
from duologue.engine.forward_pass import ForwardPass
from duologue.errors import BadData, UsageError, refuse
from duologue.evaluation.results import Measurement
from duologue.evaluation.scale import ScaleSetting, perform
from duologue.models.model import Model

FloatArray = npt.NDArray[np.float64]

_NUM_QUANTILES = 40  # of the noise


@dataclass(frozen=True, slots=True)
class PassWork:
    """What the forward passes of one cycle of an engine did."""

    passes: int  # except those of probes alone
    probe_passes: int  # of probes alone
    several: int  # 1 if more than one token was fed: other kernels, on some backends
    tokens: int  # fed
    reads: int  # tokens whose logits were read, to draw or to judge
    attended: int  # entries of its own sequence that a token attends to, summed over the tokens
    held: float  # entries of the whole cache, once for every token: even masked ones cost something in a shared cache
    sessions: int  # open on the engine

    @classmethod
    def of(cls, forward_pass: ForwardPass, sessions: int) -> "PassWork":
        """The work of a pass that has run, before its results are taken."""
        backend = forward_pass.backend
        tokens = reads = attended = 0
        passes, apart = set[int](), set[int]()
        for portion in forward_pass.portions:
            for extend, step in zip(portion.plan.batch, portion.steps, strict=False):  # none if it failed
                tokens += len(extend.tokens)
                reads += extend.draw is not None or bool(extend.watch)
                attended += len(extend.tokens) * backend.length(portion.handle.sequences.seqs[extend.seq])
                passes.update(step.passes)
                apart.update(step.passes[-1:] if step.is_apart else ())
        held = tokens * backend.usage().kv_entries / backend.info.num_caches
        several = int(tokens > 1)
        return cls(len(passes - apart), len(apart), several, tokens, reads, attended, held, sessions)


@dataclass(frozen=True, slots=True)
class PassSample:
    """A measured pass."""

    work: PassWork
    pass_s: float  # on the backend
    engine_s: float  # planning it, and giving its results to the sessions


@dataclass(frozen=True, slots=True)
class PassCost:
    """Seconds for each part of the work of a pass, and what they were taken from."""

    source: str  # what was measured, or what is assumed
    assumptions: tuple[str, ...]  # behind the figures, for people
    pass_s: float  # of each forward pass, such as reading the weights
    probe_pass_s: float = 0.0  # of a pass of probes alone
    several_s: float = 0.0  # once for a pass of more than one token
    token_s: float = 0.0  # of each token fed
    read_s: float = 0.0  # of each token whose logits are read
    attended_s: float = 0.0  # of each token and entry that it attends to
    held_s: float = 0.0  # of each token and entry of the whole cache
    cycle_s: float = 0.0  # of the engine around a pass
    session_s: float = 0.0  # of the engine around a pass, for each open session
    noise: tuple[float, ...] = (1.0,)  # ratios of a pass's time to the modelled one, equally probable
    judged_apart: float = 0.0  # share of decisions whose probe takes a pass of its own
    kv_bytes_per_token: int = 0

    def __post_init__(self) -> None:
        seconds = {name: getattr(self, name) for name in (*_PASS, *_ENGINE)}
        noise = ", ".join(f"{ratio:g}" for ratio in self.noise)
        refuse(
            [
                *(
                    (not 0.0 <= value < math.inf, f"{name} is {value}; it is a number of seconds, at least 0")
                    for name, value in seconds.items()
                ),
                (not self.pass_s + self.cycle_s > 0.0, "pass_s and cycle_s are both 0; a pass takes time"),
                (
                    not self.noise or not all(0.0 < ratio < math.inf for ratio in self.noise),
                    f"noise is [{noise}]; it holds ratios to the modelled time, each above 0, such as [0.9, 1.0, 1.2]",
                ),
                (not 0.0 <= self.judged_apart <= 1.0, f"judged_apart is {self.judged_apart}; it is a share, 0 to 1"),
                (self.kv_bytes_per_token < 0, f"kv_bytes_per_token is {self.kv_bytes_per_token}; it is at least 0"),
                (not any(map(str.strip, self.assumptions)), "assumptions are missing: say what the figures rest on"),
            ],
            BadData,
        )

    def pass_seconds(self, work: PassWork) -> float:
        """The modelled time of a pass on the backend, without noise."""
        return float(sum(getattr(self, name) * getattr(work, part) for name, part in _PASS.items()))

    def engine_seconds(self, work: PassWork) -> float:
        """The modelled time of the engine around a pass."""
        return self.cycle_s + self.session_s * work.sessions

    @classmethod
    def fit(cls, samples: Sequence[PassSample], **described: Any) -> "PassCost":
        """The model that fits `samples` best, by relative errors; `described` are the fields that no time tells."""
        passes = np.array([[getattr(sample.work, part) for part in _PASS.values()] for sample in samples], float)
        engine = np.array([[1, sample.work.sessions] for sample in samples], float)
        pass_s = np.array([sample.pass_s for sample in samples])
        engine_s = np.array([sample.engine_s for sample in samples])
        fitted = _relative_fit(passes, pass_s)
        ratios = pass_s / np.maximum(passes @ fitted, 1e-9)
        shares = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
        values = (*fitted, *_relative_fit(engine, engine_s))
        seconds: dict[str, Any] = {name: float(value) for name, value in zip((*_PASS, *_ENGINE), values, strict=True)}
        noise = tuple(round(float(ratio), 4) for ratio in np.quantile(ratios, shares))
        return cls(**seconds, noise=noise, **described)

    @classmethod
    def read(cls, path: Path) -> "PassCost":
        """Read a file that `write` wrote, or that somebody wrote by hand.

        Raises:
            BadData: the file cannot be read, or a field is unknown, missing or impossible; the message names it.
        """
        try:
            row = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadData(f"cannot read the costs of passes in {path}: {error}") from error
        try:
            return cls(**_fields(row))
        except BadData as error:
            raise BadData(f"{path}: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. Seconds have four significant digits."""
        row = dataclasses.asdict(self)
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}

    def write(self, path: Path) -> None:
        """Write it as JSON, one field per line.

        Raises:
            UsageError: the file cannot be written.
        """
        lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.as_dict().items())
        try:
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"the costs cannot be written to {path}: {error.strerror}") from error


_PASS = {
    "pass_s": "passes",
    "probe_pass_s": "probe_passes",
    "several_s": "several",
    "token_s": "tokens",
    "read_s": "reads",
    "attended_s": "attended",
    "held_s": "held",
}
"""Coefficients of a pass on the backend, and the part of `PassWork` that each belongs to."""
_ENGINE = ("cycle_s", "session_s")


def _fields(row: Any) -> dict[str, Any]:
    """The fields of a `PassCost` in JSON, with their types checked."""
    known = {field.name: field for field in dataclasses.fields(PassCost)}
    if not isinstance(row, dict):
        raise BadData(f'costs are an object such as {{"pass_s": 0.02}}, not {type(row).__name__}')
    needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
    unknown, missing = sorted(row.keys() - known), sorted(needed - row.keys())
    refuse(
        [
            (bool(unknown), f"unknown fields {', '.join(unknown)}; there are {', '.join(known)}"),
            (bool(missing), f"{', '.join(missing)} must be given"),
        ],
        BadData,
    )
    checked: dict[str, Any] = {}
    for name, value in row.items():
        kind = str if name == "source" else list if known[name].type in (tuple[str, ...], tuple[float, ...]) else float
        inner = str if name == "assumptions" else float
        is_right = all(_is(inner, item) for item in value) if isinstance(value, list) else _is(kind, value)
        if (kind is list) != isinstance(value, list) or not is_right:
            wanted = {str: "text", float: "a number", list: f"a list of {'texts' if inner is str else 'numbers'}"}[kind]
            raise BadData(f"{name} is {value!r:.60}; it must be {wanted}")
        checked[name] = tuple(value) if isinstance(value, list) else value
    return checked


def _is(kind: type, value: Any) -> bool:
    """Whether `value` from a JSON file is text (str) or a number (float)."""
    return isinstance(value, str if kind is str else (int, float)) and not isinstance(value, bool)


def _relative_fit(columns: FloatArray, seconds: FloatArray) -> FloatArray:
    """Coefficients [K] ≥ 0 with which `columns` [N, K] give `seconds` [N] by relative errors, and exactly their sum."""
    seconds = np.maximum(seconds, 1e-9)
    fitted = non_negative_fit(columns / seconds[:, None], np.ones(len(seconds)))
    total: float = seconds.sum() / (columns @ fitted).sum()  # relative errors alone favour the quick passes
    return np.asarray(total * fitted)


def non_negative_fit(columns: FloatArray, target: FloatArray) -> FloatArray:
    """The x ≥ 0 [K] that minimises |columns x - target|. columns: [N, K]; target: [N].

    All 2^K choices of what is not zero are tried, which is exact, and quick for few columns.
    """
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0.0] = 1.0
    scaled, best, least = columns / scale, np.zeros(columns.shape[1]), float(target @ target)
    for size in range(1, columns.shape[1] + 1):
        for chosen in map(list, itertools.combinations(range(columns.shape[1]), size)):
            x = np.linalg.lstsq(scaled[:, chosen], target, rcond=None)[0]
            error = float(np.sum((scaled[:, chosen] @ x - target) ** 2))
            if (x >= 0.0).all() and error < least:
                least, best = error, np.zeros(columns.shape[1])
                best[chosen] = x
    return np.asarray(best / scale)


@final
class MeasuringEngine(Engine):
    """An engine that notes the work and the time of every pass whose results are all read."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.samples: list[PassSample] = []
        self._began = 0.0

    def plan(self) -> ForwardPass | None:
        self._began = self.now()
        return super().plan()

    def take(self, forward_pass: ForwardPass) -> None:
        before = self.now() - self._began
        work = PassWork.of(forward_pass, len(self.handles))
        began = self.now()
        super().take(forward_pass)
        engine_s = before + self.now() - began - forward_pass.seconds
        # What is only cached, such as a history, may be computed elsewhere, in a pass of another kind.
        if work.reads == sum(len(portion.plan.batch) for portion in forward_pass.portions):
            self.samples.append(PassSample(work, forward_pass.seconds, engine_s))


async def measured_cost(model: Model, *, context_tokens: int, sessions: int, seconds: float, seed: int = 0) -> PassCost:
    """Measure passes of up to `sessions` live sessions, four times for `seconds`, and fit their cost.

    A quarter of the sessions speak together, with short and with whole histories: passes of every width with few and
    with many entries to attend to. One session alone and all of them differ in what the cache holds besides.

    Raises:
        UsageError: the backend has a loop of its own, and its passes cannot be measured.
        EngineFull, EngineError: see `duologue.evaluation.scale.measure`.
    """
    backend, info = model.backend, model.backend.info
    if isinstance(backend, RequestBackend):
        raise UsageError(f"the {info.name} backend divides its passes itself; state what they cost in a file (--costs)")
    few, short = -(-sessions // 4), -(-context_tokens // 8)
    settings = (
        ScaleSetting(1, context_tokens, seconds, seed=seed),
        ScaleSetting(few, short, seconds, seed=seed, together=True),
        ScaleSetting(few, context_tokens, seconds, seed=seed, together=True),
        ScaleSetting(sessions, context_tokens, seconds, seed=seed),
    )
    samples: list[PassSample] = []
    judged = judged_apart = 0
    measurement = Measurement("capacity", seed=seed)
    for setting in settings:
        engine = MeasuringEngine(backend)
        result = await perform(engine, model.template, model.probe, setting)
        samples += engine.samples
        judged, judged_apart = judged + result.judged, judged_apart + result.judged_apart
    hardware = measurement.result({})["hardware"]
    busy = "" if hardware["quiet"] else f", while other processes used {hardware['others_used_cores']} cores"
    times = [sample.pass_s for sample in samples]
    return PassCost.fit(
        samples,
        source=model.title,
        assumptions=(
            f"measured on {hardware['cpu']}, {hardware['cores']} cores{busy}",
            f"fitted to {len(samples)} passes of up to {sessions} sessions with {context_tokens} tokens of history",
            f"a median pass took {1000 * statistics.median(times):.1f} ms, the longest {1000 * max(times):.0f} ms",
        ),
        judged_apart=judged_apart / max(1, judged),
        kv_bytes_per_token=info.kv_bytes_per_token,
    )
