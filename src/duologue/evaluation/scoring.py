"""Probabilities of states for many rows, through the forward pass that conversations use, and what a decision takes.

N rows, S states. Rows in the same context fork one sequence; the contexts themselves share how they begin.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from duologue.core.backend import Backend, Extend
from duologue.core.prompt import Probe
from duologue.decisions.choice import Probabilities
from duologue.models.model import Model, Progress
from duologue.training.layout import Layout
from duologue.types import Seq, Token

_TOKENS_PER_PASS = 1024


def score(model: Model, layouts: Sequence[Layout], *, progress: Progress | None = None) -> Probabilities:
    """Probabilities [N, S] of the states of `model`'s probe, in their order. Nothing stays cached.

    Raises:
        ContextOverflow, CacheFull: rows longer than the model's context (`rows.lay_out` refuses these before).
    """
    found = np.zeros((len(layouts), len(model.probe.states)), dtype=np.float32)
    root = _common([layout.context for layout in layouts])
    done = 0
    with _Open(model.backend) as opened:
        base = opened.fork(None)
        if root:
            model.backend.forward([Extend(base, root)])
        for batch in _batches(layouts, model.probe, len(root), model.backend):
            found[batch] = _score_batch(model, layouts, batch, base, root)
            done += len(batch)
            if progress is not None:
                progress("scoring", done / len(layouts))
    return found


def latencies(
    model: Model, layouts: Sequence[Layout], *, num: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, float]:
    """Milliseconds from words to state for at most `num` rows, by row: the context is cached, words and probe are fed.

    One row at a time, rows evenly spread; a first one warms up and is not counted.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(layouts) - 1, min(num, len(layouts)))}) if num else []
    found = {}
    for index in [*chosen[:1], *chosen]:
        layout = layouts[index]
        with _Open(model.backend) as opened:
            seq = opened.fork(None)
            if layout.context:
                model.backend.forward([Extend(seq, layout.context)])
            began = clock()
            model.backend.forward([_question(seq, layout.text, model.probe)])
            found[index] = 1000.0 * (clock() - began)
    return found


def _score_batch(
    model: Model, layouts: Sequence[Layout], batch: Sequence[int], base: Seq, root: tuple[Token, ...]
) -> Probabilities:
    """Probabilities [B, S] of the rows `batch`: a pass for their contexts, a pass for their words."""
    backend = model.backend
    with _Open(backend) as opened:
        contexts = {root: base}
        news = []
        for context in dict.fromkeys(layouts[i].context for i in batch):
            if context != root:
                contexts[context] = opened.fork(base, len(root))
                news.append(Extend(contexts[context], context[len(root) :]))
        if news:
            backend.forward(news)
        questions = []
        for i in batch:
            context = layouts[i].context
            seq = opened.fork(contexts[context], len(context))
            questions.append(_question(seq, layouts[i].text, model.probe))
        return np.array([step.p for step in backend.forward(questions)], dtype=np.float32)


def _common(contexts: Sequence[tuple[Token, ...]]) -> tuple[Token, ...]:
    """How all of them begin."""
    if not contexts:
        return ()
    first, last = min(contexts), max(contexts)  # what these two share, all between them share
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:length]


def _question(seq: Seq, text: tuple[Token, ...], probe: Probe) -> Extend:
    return Extend(seq, (*text, *probe.tokens), watch=probe.watch)


def _batches(layouts: Sequence[Layout], probe: Probe, root: int, backend: Backend) -> Iterator[list[int]]:
    """Indices of rows that go together: bounded in sequences and tokens, rows of one context side by side.

    A row that is longer than the bound makes a batch of its own.
    """
    info = backend.info
    num_seqs = info.max_seqs - backend.usage().num_seqs
    tokens = min(_TOKENS_PER_PASS, info.capacity - root)
    batch: list[int] = []
    contexts: set[tuple[Token, ...]] = set()
    used = 0
    for i in sorted(range(len(layouts)), key=lambda i: (layouts[i].context, len(layouts[i].text))):
        context, own = layouts[i].context, len(layouts[i].text) + len(probe.tokens)
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


class _Open:
    """Sequences that are freed at the end of a block, whatever happened in it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._seqs: list[Seq] = []

    def __enter__(self) -> "_Open":
        return self

    def __exit__(self, *error: object) -> None:
        for seq in self._seqs:
            self._backend.free(seq)

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        seq = self._backend.fork(parent, length)
        self._seqs.append(seq)
        return seq
