"""The contract of backends on vLLM: a sequence is a list of ids, and its results are those of requests.

vLLM owns the loop, the cache and the passes. What is fed is not sent anywhere; a request has the whole sequence, and
vLLM's prefix cache has its KV. So forks and rollbacks are bookkeeping, and what a sequence no longer needs is evicted
when there is need of room.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, final

from duologue.backends.ids import IdBackend
from duologue.backends.rows import check_added_ids
from duologue.backends.slots import check_room
from duologue.backends.vllm import requests
from duologue.backends.vllm.lease import Lease, Wanted
from duologue.backends.vllm.plugin import ExportedAdapter
from duologue.backends.vllm.service import Service
from duologue.core.backend import BackendInfo, Extend, RequestBackend, Step, check_batch
from duologue.errors import EngineError, UsageError
from duologue.types import Seq, Token

_DECIDE, _SPEAK, _CACHE = -1, 0, 1  # priorities: what is lower goes first


@dataclass(slots=True)
class Counts:
    """What vLLM was asked so far."""

    leases: int = 0
    decisions: int = 0
    recomputed: int = 0  # tokens of decisions that were not in the prefix cache, the probe included


@final
class VllmBackend(IdBackend, RequestBackend):
    """A model that `duologue export --format vllm` wrote, on vLLM.

    A decision is a request for one token at the probe, with priority over others. Tokens of answers come from *leases*:
    a request draws as many as `Draw.ahead` allows, and later draws that follow take theirs from it. Tokens that are
    only cached make no request, unless they fill a block.
    """

    def __init__(self, service: Service, adapter: ExportedAdapter, info: BackendInfo) -> None:
        """Closing it closes `service`. `info.vocab_size` is `adapter.base_size`."""
        super().__init__(info)
        self._service = service
        self._adapter = adapter
        self._block_size = service.block_size
        self.counts = Counts()  # read only
        self._leases: dict[Seq, Lease] = {}
        self._writers: dict[Seq, asyncio.Task[None]] = {}  # of the leases; used in the service's thread
        self._begun: dict[Seq, Future[Step]] = {}

    # ------------------------------------------------------------------ the contract

    def check(self, batch: Sequence[Extend]) -> None:
        check_batch(self._info, batch)
        check_added_ids(self._info.vocab_size, self._adapter.num_probes, batch)
        first, probe = self._info.vocab_size, self._adapter.num_probes
        outputs = set(range(first + probe, first + self._info.num_added))
        for extend in batch:
            if extend.score or (extend.draw is not None and extend.draw.constraint is not None):
                raise UsageError("the vllm backend scores no texts and follows no grammars; load the model elsewhere")
            is_probe = extend.tokens[-1] == first + probe - 1
            if extend.watch and not (is_probe and outputs.issuperset(extend.watched)):
                raise UsageError(
                    f"Extend of sequence {extend.seq} watches ids that are no states, or not at the probe; on vLLM, "
                    "only an adapter's states are watched"
                )
        check_room(batch, self.length, self._info.context_length, self._info.context_length * len(batch))

    def steps(self, batch: Sequence[Extend]) -> list[Step]:
        futures = [self._begin(extend) for extend in batch]
        try:
            found = zip(futures, batch, strict=True)
            return [replace(future.result(), ticket=extend.ticket) for future, extend in found]
        finally:
            for extend in batch:
                self._begun.pop(extend.seq, None)
            for future in futures:
                future.cancel()

    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        return self.steps([extend])[0]

    def begin(self, extend: Extend) -> Future[Step]:
        self.check([extend])
        return self._begin(extend)

    def complete(self, extend: Extend, future: Future[Step]) -> Step:
        self._begun.pop(extend.seq, None)
        step = replace(future.result(), ticket=extend.ticket)
        self.append(extend)
        return step

    def abandon(self, seq: Seq) -> None:
        future = self._begun.pop(seq, None)
        if future is not None:
            future.cancel()
        if self._leases.pop(seq, None) is not None:
            self._service.loop.call(self._stop_writing, seq)

    def is_being_drawn(self, extend: Extend) -> bool:
        lease = self._leases.get(extend.seq)
        return lease is not None and extend.draw is not None and lease.place_of(self._wanted(extend)) is not None

    def free(self, seq: Seq) -> None:
        super().free(seq)
        self.abandon(seq)

    def close(self) -> None:
        self._service.close()

    # ------------------------------------------------------------------ requests

    def _begin(self, extend: Extend) -> Future[Step]:
        if extend.draw is not None:
            future = self._drawn(extend)
        elif extend.watch:
            groups = tuple(self._named(group) for group in extend.watch)
            future = self._service.loop.submit(self._judge(self._after(extend), groups))
        elif len(extend.tokens) >= self._block_size:
            future = self._service.loop.submit(self._cache(self._after(extend)))
        else:
            future = Future()
            future.set_result(Step(extend.ticket))
        self._begun[extend.seq] = future
        return future

    def _named(self, tokens: Sequence[Token]) -> tuple[Token, ...]:
        """`tokens` with the ids that vLLM's model has for those of the adapter."""
        base, shift = self._info.vocab_size, self._adapter.first_added - self._info.vocab_size
        return tuple(token if token < base else token + shift for token in tokens)

    def _after(self, extend: Extend) -> tuple[Token, ...]:
        """The whole sequence of `extend`."""
        return self._named([*self.tokens(extend.seq), *extend.tokens])

    async def _judge(self, tokens: tuple[Token, ...], groups: Sequence[Sequence[Token]]) -> Step:
        found = await self._last_output(tokens, requests.judging(self._adapter.num_outputs), _DECIDE)
        self.counts.decisions += 1
        self.counts.recomputed += len(tokens) - (found.num_cached_tokens or 0)
        return Step(0, p=requests.read_states(found.outputs[0].logprobs[0], groups))

    async def _cache(self, tokens: tuple[Token, ...]) -> Step:
        await self._last_output(tokens, requests.caching(), _CACHE)
        return Step(0)

    async def _last_output(self, tokens: tuple[Token, ...], params: dict[str, Any], priority: int) -> Any:
        async with aclosing(self._service.generate(tokens, params, priority=priority)) as outputs:
            found = [output async for output in outputs]
        return found[-1]

    # ------------------------------------------------------------------ leases

    def _wanted(self, extend: Extend) -> Wanted:
        assert extend.draw is not None, "it draws"
        return Wanted(self._after(extend), extend.draw)

    def _drawn(self, extend: Extend) -> Future[Step]:
        wanted, lease = self._wanted(extend), self._leases.get(extend.seq)
        place = None if lease is None else lease.place_of(wanted)
        if lease is not None and place is not None and place < len(lease.drawn):
            wanted.future.set_result(lease.drawn[place])
        else:
            self._service.loop.call(self._lease, extend.seq, wanted)
        return wanted.future

    def _lease(self, seq: Seq, wanted: Wanted) -> None:
        """Have `wanted` drawn by the lease of `seq`, or by a new one. In the service's thread, like what follows."""
        if wanted.future.cancelled():
            return  # and `seq` may be gone
        lease = self._leases.get(seq)
        if lease is None or lease.place_of(wanted) is None:
            self._stop_writing(seq)
            ahead, room = wanted.draw.ahead, self._info.context_length + 1 - len(wanted.tokens)
            lease = Lease(wanted.tokens, wanted.draw, min(1 if ahead is None else ahead.num_tokens, room))
            self._leases[seq] = lease
            self._writers[seq] = asyncio.create_task(self._write(seq, lease))
            self.counts.leases += 1
        lease.waiting = wanted
        lease.add([])

    def _stop_writing(self, seq: Seq) -> None:
        writer = self._writers.pop(seq, None)
        if writer is not None:
            writer.cancel()

    async def _write(self, seq: Seq, lease: Lease) -> None:
        """Draw the tokens of `lease`."""
        params, failure = requests.drawing(lease.draw, lease.num_tokens), None
        try:
            async with aclosing(self._service.generate(lease.prompt, params, priority=_SPEAK, streams=True)) as outputs:
                async for output in outputs:
                    (made,) = output.outputs
                    lease.add(requests.read_drawn(made.token_ids, made.logprobs or [], lease.draw))
        except EngineError as error:
            failure = error
        finally:
            lease.is_over = True
        del self._writers[seq]
        waiting, lease.waiting = lease.waiting, None
        if waiting is not None and failure is None:
            self._lease(seq, waiting)  # it ended early, at a token that ends answers
        elif waiting is not None and waiting.future.set_running_or_notify_cancel():
            waiting.future.set_exception(failure)
