"""Both channels, one after the other, as the paper's prototype computes them."""

from collections import deque
from collections.abc import Sequence
from typing import final

from duologue.core.backend import Extend
from duologue.core.cache import Plan
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.prompt import Probe, Template
from duologue.core.session import Session
from duologue.types import Turn


@final
class Sequential(Session):
    """Decides and says what `Session` does, but each channel takes a forward pass of its own.

    The two channels share the KV of their prefix; the prototype keeps a separate cache for each.
    """

    def __init__(
        self,
        template: Template,
        probe: Probe,
        *,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
    ) -> None:
        super().__init__(template, probe, policy=policy, config=config, history=history)
        self._rest: deque[Extend] = deque()  # planned with what was fed, to be fed next

    @property
    def backlog(self) -> int:
        return super().backlog + sum(len(extend.tokens) for extend in self._rest)

    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        if self._rest:
            is_too_long = limit is not None and len(self._rest[0].tokens) > limit
            return Plan((), () if is_too_long else (self._rest.popleft(),))
        whole = super().plan(limit, compaction_limit)
        self._rest.extend(whole.batch[1:])
        return Plan(whole.ops, whole.batch[:1])
