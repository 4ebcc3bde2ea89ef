"""Probabilities of many rows, by the forward pass that conversations use, and the time that a decision takes.

N rows, S states. Rows are scored in blocks of `labelled_rows.BLOCK`, each by itself: the probabilities do not depend on
which block is scored where. In a block, rows with the same context fork one sequence; the contexts share their common
beginning.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain

import numpy as np
import numpy.typing as npt

from duologue.backends.sampling import FloatArray
from duologue.core.backend import Backend, Extend, Step
from duologue.core.prompt import Probe
from duologue.decisions.thresholds import Probabilities
from duologue.errors import AdapterMismatch
from duologue.evaluation.labelled_rows import BLOCK
from duologue.models.model import Model
from duologue.models.opening import Progress
from duologue.training.layout import Layout
from duologue.types import Seq, Token

_TOKENS_PER_PASS = 1024


def score(model: Model, layouts: Sequence[Layout], *, progress: Progress | None = None) -> Probabilities:
    """Probabilities [N, S] of the states of `model`'s probe, in the probe's order. Nothing stays cached.

    Raises:
        ContextOverflow, CacheFull: a row is longer than the context; `labelled_rows.lay_out` refuses such rows earlier.
    """
    return score_and_count(model, layouts, progress=progress)[0]


def score_and_count(
    model: Model, layouts: Sequence[Layout], *, progress: Progress | None = None
) -> tuple[Probabilities, npt.NDArray[np.bool_]]:
    """What `score` returns, and which rows [N] took a pass of their own (`Step.is_apart`)."""
    p, is_apart = _score(model, layouts, progress)
    return p[:, : len(model.probe.states)], is_apart


def score_timing(model: Model, layouts: Sequence[Layout], *, progress: Progress | None = None) -> FloatArray:
    """The probability [N] that the speaker's turn ends, by `model`'s timing pair. Nothing stays cached.

    Raises:
        AdapterMismatch: the adapter has no timing pair.
        ContextOverflow, CacheFull: see `score`.
    """
    if not model.probe.timing:
        raise AdapterMismatch(
            f"the adapter {model.adapter.name or '(unnamed)'} ({model.adapter.kind}) has no timing pair; train one on "
            "samples that say whether the turn `ends`, or use the shipped one"
        )
    return _score(model, layouts, progress)[0][:, -1]


def _score(
    model: Model, layouts: Sequence[Layout], progress: Progress | None
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Probabilities of all watched ids [N, W], group after group, and which rows [N] took a pass of their own."""
    found = np.zeros((len(layouts), sum(map(len, model.probe.groups))), dtype=np.float32)
    is_apart = np.zeros(len(layouts), dtype=bool)
    done = 0
    for first in range(0, len(layouts), BLOCK):
        for batch, steps in _score_block(model, layouts[first : first + BLOCK]):
            rows = [first + i for i in batch]
            found[rows] = [[*chain.from_iterable(step.p)] for step in steps]
            is_apart[rows] = [step.is_apart for step in steps]
            done += len(rows)
            if progress is not None:
                progress("scoring", done / len(layouts))
    return found, is_apart


def _score_block(model: Model, layouts: Sequence[Layout]) -> Iterator[tuple[list[int], list[Step]]]:
    """The rows of a block, batch by batch, and their steps."""
    root = _common([layout.context for layout in layouts])
    with ExitStack() as freed:
        base = _fork(freed, model.backend, None)
        if root:
            model.backend.forward([Extend(base, root)])
        for batch in _batches(layouts, model.probe, len(root), model.backend):
            yield batch, _score_batch(model, layouts, batch, base, root)


def latencies(
    model: Model, layouts: Sequence[Layout], *, num: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Milliseconds from words to state, by row, of at most `num` evenly spread rows, one at a time.

    The context is cached; words and probe are fed. A first row warms up and does not count.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(layouts) - 1, min(num, len(layouts)))}) if num else []
    found = {}
    for index in [*chosen[:1], *chosen]:
        layout = layouts[index]
        with ExitStack() as freed:
            seq = _fork(freed, model.backend, None)
            if layout.context:
                model.backend.forward([Extend(seq, layout.context)])
            began = clock()
            model.backend.forward([_question(seq, layout, model.probe)])
            found[index] = 1000.0 * (clock() - began)
    return found


def _score_batch(
    model: Model, layouts: Sequence[Layout], batch: Sequence[int], base: Seq, root: tuple[Token, ...]
) -> list[Step]:
    """The steps of the B rows `batch`: one pass for their contexts, one for their words."""
    backend = model.backend
    with ExitStack() as freed:
        contexts = {root: base}
        news = []
        for context in dict.fromkeys(layouts[i].context for i in batch):
            if context != root:
                contexts[context] = _fork(freed, backend, base, len(root))
                news.append(Extend(contexts[context], context[len(root) :]))
        if news:
            backend.forward(news)
        questions = []
        for i in batch:
            context = layouts[i].context
            seq = _fork(freed, backend, contexts[context], len(context))
            questions.append(_question(seq, layouts[i], model.probe))
        return backend.forward(questions)


def _common(contexts: Sequence[tuple[Token, ...]]) -> tuple[Token, ...]:
    """The longest common beginning."""
    if not contexts:
        return ()
    first, last = min(contexts), max(contexts)  # a beginning that these two share, all contexts share
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:length]


def _question(seq: Seq, layout: Layout, probe: Probe) -> Extend:
    return Extend(seq, (*layout.text, *layout.evidence, *probe.tokens), watch=probe.groups)


def _batches(layouts: Sequence[Layout], probe: Probe, root: int, backend: Backend) -> Iterator[list[int]]:
    """Indices of the rows of each batch, bounded in sequences and tokens, rows of the same context side by side.

    A row beyond the bound is a batch of its own.
    """
    info = backend.info
    num_seqs = info.max_seqs - backend.usage().num_seqs
    tokens = min(_TOKENS_PER_PASS, info.capacity - root)
    batch: list[int] = []
    contexts: set[tuple[Token, ...]] = set()
    used = 0
    for i in sorted(range(len(layouts)), key=lambda i: (layouts[i].context, len(layouts[i].text))):
        context, own = layouts[i].context, len(layouts[i].text) + probe.length
        cost = own + (0 if context in contexts else len(context) - root)
        if batch and (used + cost > tokens or len(batch) + len(contexts | {context}) + 1 > num_seqs):
            yield batch
            batch, contexts, used = [], set(), 0
            cost = own + len(context) - root
        batch.append(i)
        contexts.add(context)
        used += cost
    if batch:
        yield batch


def _fork(freed: ExitStack, backend: Backend, parent: Seq | None, length: int = 0) -> Seq:
    """A fork of `parent` that is freed when `freed` is closed."""
    seq = backend.fork(parent, length)
    freed.callback(backend.free, seq)
    return seq
