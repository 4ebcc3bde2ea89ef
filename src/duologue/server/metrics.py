"""The metrics of a server, for Prometheus."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from duologue.core.events import Decided, Event
from duologue.engine.engine import Engine
from duologue.engine.trace import Pass

if TYPE_CHECKING:
    from duologue.speakers.remote import Totals

_DECISION_S = (0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters of one server, and a sink for the engine's sessions."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decision = Histogram(
            "duologue_decision_seconds", "From words to the state known.", ["state"], buckets=_DECISION_S,
            registry=self.registry,
        )  # fmt: skip
        self.connections = Gauge("duologue_connections", "Open WebSockets.", ["protocol"], registry=self.registry)
        self.requests = Counter("duologue_requests", "HTTP requests and WebSockets.", ["route"], registry=self.registry)
        self.denied = Counter("duologue_denied", "Refused for their token or origin.", registry=self.registry)

    def __call__(self, record: Pass | Event) -> None:
        """Count a record of a session."""
        if isinstance(record, Decided):
            self.decision.labels(str(record.decision.state)).observe(record.at - record.heard_at)

    def watch(self, engine: Engine, num_sessions: Callable[[], int], num_refused: Callable[[], int]) -> None:
        """Also report the totals of an engine, and what it holds."""
        self.registry.register(_EngineCollector(engine, num_sessions, num_refused))

    def watch_speaker(self, totals: "Totals") -> None:
        """Also report what a remote speaker has done."""
        self.registry.register(_SpeakerCollector(totals))


class _EngineCollector(Collector):
    def __init__(self, engine: Engine, num_sessions: Callable[[], int], num_refused: Callable[[], int]) -> None:
        self._engine = engine
        self._num_sessions = num_sessions
        self._num_refused = num_refused

    def collect(self) -> Iterable[Metric]:
        """The current values."""
        totals, usage = self._engine.totals, self._engine.backend.usage()
        for name, text, value in (
            ("sessions", "Open conversations.", self._num_sessions()),
            ("kv_entries", "Tokens in the KV cache.", usage.kv_entries),
            ("kv_bytes", "Bytes of the KV cache that are in use.", usage.kv_bytes),
        ):
            yield GaugeMetricFamily(f"duologue_{name}", text, value=value)
        for name, text, count in (
            ("passes", "Forward passes.", totals.passes),
            ("judged", "Times that the state of words was read.", totals.judged),
            ("judged_apart", "Those that took a pass of their own.", totals.judged_apart),
            ("tokens_fed", "Tokens fed.", totals.tokens),
            ("pass_seconds", "Seconds in forward passes.", totals.seconds),
            ("sessions_admitted", "Conversations that were admitted.", totals.admitted),
            ("sessions_refused", "Conversations that were refused for want of room.", self._num_refused()),
            ("sessions_failed", "Conversations that could not go on.", totals.failed),
            ("evictions", "Suspended answers given up for others.", totals.evicted),
        ):
            yield CounterMetricFamily(f"duologue_{name}", text, value=count)


class _SpeakerCollector(Collector):
    def __init__(self, totals: "Totals") -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """The current values."""
        for name, text, count in (
            ("requests", "Answers asked for.", self._totals.requests),
            ("failures", "Answers that could not be given, or not all of them.", self._totals.failures),
            ("tokens", "Tokens of answers that arrived.", self._totals.tokens),
            ("tokens_thrown_away", "Those of prepared answers that were not heard.", self._totals.tokens_thrown_away),
        ):
            yield CounterMetricFamily(f"duologue_speaker_{name}", text, value=count)
