"""Fleets on Ray Serve: what they are built from, and conversations on two replicas, one of which is killed."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from duologue.errors import MissingDependency, UsageError
from duologue.server import ray as fleet

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by Ray


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"duologue\[ray\]"):
        fleet.build({"record": "talks"})


@pytest.mark.ray
@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ({}, "share records"),
        ({"record": "talks", "min_replicas": "3", "max_replicas": "2"}, "min_replicas ≤ max_replicas"),
        ({"record": "talks", "max_replicas": "many"}, "numbers"),
        ({"record": "talks", "replicas": "2"}, "no setting 'replicas'"),
    ],
)
def test_settings_that_cannot_be_used_are_said(args: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        fleet.build(args)


@pytest.mark.ray
def test_a_fleet_is_built_from_text_as_serve_run_gives_it() -> None:
    args = {"record": "talks", "max_sessions": "8", "max_replicas": "4", "gpus": "0.5", "drain": "30"}
    options = fleet.build(args)._bound_deployment._deployment_config
    assert options.max_ongoing_requests == 8
    assert options.autoscaling_config.max_replicas == 4
    assert options.autoscaling_config.target_ongoing_requests == 6
    assert options.graceful_shutdown_timeout_s > 30


@pytest.mark.ray
@pytest.mark.parametrize(
    ("query", "key"), [(b"route=abcd1234&x=1", "abcd1234"), (b"", "the request"), (b"x=1", "the request")]
)
def test_connections_are_led_by_the_route_in_their_address(query: bytes, key: str) -> None:
    from ray.serve._private.common import StreamingHTTPRequest

    request = StreamingHTTPRequest({"query_string": query}, proxy_actor_name="proxy")
    metadata = SimpleNamespace(session_id="", internal_request_id="the request")
    pending: Any = SimpleNamespace(args=[pickle.dumps(request)], metadata=metadata)
    router: Any = object.__new__(fleet.RouteRouter)
    assert router._routing_key(pending) == key
    assert router._routing_key(None) is None


@pytest.mark.ray
def test_conversations_go_on_when_a_replica_is_killed_and_when_all_are_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/fleet.py", "--conversations", "12", "--out", str(tmp_path / "found.json")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for part in ("killed", "deployed_again"):
        assert found[part]["completed"] == found[part]["conversations"]
        assert 0 < found[part]["went_on_at_another"] == found[part]["lost_their_replica"]
