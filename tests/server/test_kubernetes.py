"""The manifests for Kubernetes, which are not tested on a cluster: what they say of the server is true of it."""

import asyncio
import shutil
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from duologue.client import connect
from duologue.core.events import Committed
from duologue.errors import RemoteError
from duologue.server.app import create_app
from duologue.server.config import PREFIX, ServerConfig
from duologue.types import Role
from duplex_peer import ANSWERS, run
from serving import Running, scripted_model, serving

yaml = pytest.importorskip("yaml")
FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
ROUTED = 8


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """All objects, by kind and name."""
    names = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(names) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    objects = [item for name in names for item in yaml.safe_load_all((FOLDER / name).read_text())]
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def container() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["StatefulSet", "duologue"]["spec"]["template"]["spec"]["containers"][0]
    return found


def test_what_belongs_together_has_the_same_names() -> None:
    found = manifests()
    for (kind, name), item in found.items():
        assert item["apiVersion"], (kind, name)
        if kind in ("StatefulSet", "Deployment"):
            labels = item["spec"]["template"]["metadata"]["labels"]
            assert item["spec"]["selector"]["matchLabels"] == labels
    servers = found["StatefulSet", "duologue"]
    labels = servers["spec"]["template"]["metadata"]["labels"]
    service = found["Service", servers["spec"]["serviceName"]]
    assert service["spec"]["selector"] == labels
    assert service["spec"]["clusterIP"] == "None"
    assert found["PodDisruptionBudget", "duologue"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodMonitor", "duologue"]["spec"]["selector"]["matchLabels"] == labels
    scaler = found["HorizontalPodAutoscaler", "duologue"]["spec"]
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) == ("StatefulSet", "duologue")
    config = found["ConfigMap", "proxy"]["data"]["haproxy.cfg"]
    listed = [line.split()[2] for line in config.splitlines() if line.strip().startswith("server ")]
    assert listed == [f"duologue-{i}.duologue.duologue.svc.cluster.local:8080" for i in range(scaler["maxReplicas"])]


def test_settings_probes_and_metric_are_those_of_the_server() -> None:
    given = {item["name"]: item["value"] for item in container()["env"]}
    known = {PREFIX + item.name.upper() for item in fields(ServerConfig)}
    assert set(given) <= known
    config = ServerConfig.read(environ=given)
    spec = manifests()["StatefulSet", "duologue"]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > config.drain + 10
    scaler = manifests()["HorizontalPodAutoscaler", "duologue"]["spec"]["metrics"][0]["pods"]
    assert int(scaler["target"]["averageValue"]) < config.max_sessions
    with TestClient(create_app(ServerConfig(), model=scripted_model()), base_url="http://localhost") as client:
        while client.get("/ready").status_code != 200:
            pass
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert client.get(container()[probe]["httpGet"]["path"]).status_code == 200
        assert f"{scaler['metric']['name']} 0.0" in client.get("/metrics").text


def proxied(port: int, servers: list[Running]) -> str:
    """The configuration of the proxy, with servers on this machine."""
    config = manifests()["ConfigMap", "proxy"]["data"]["haproxy.cfg"]
    lines = [line for line in config.splitlines() if not line.strip().startswith("server ")]
    lines += [f"  server duologue-{i} 127.0.0.1:{server.port}" for i, server in enumerate(servers)]
    return "\n".join(lines).replace("bind :8080", f"bind 127.0.0.1:{port}").replace("init-addr none", "") + "\n"


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_the_proxy_leads_a_conversation_to_its_server_and_past_one_that_is_gone(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]

    def server() -> Any:
        return serving(scripted_model(ANSWERS), record=str(tmp_path / "records"), drain=1.0)

    async def talk() -> None:
        async with server() as one, server() as two:
            servers = [one, two]
            config.write_text(proxied(port, servers))
            proxy = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(config))
            try:
                await led(servers)
            finally:
                proxy.terminate()
                await proxy.wait()

    async def led(servers: list[Running]) -> None:
        talks = []
        for number in range(ROUTED):
            talks.append(talk := await opened(number))
            (owner,) = (server for server in servers if talk.session in server.talks._open)
            assert talk._socket is not None
            talk._socket.transport.abort()  # it finds its server again
            await answered(talk, "what is a cat")
            assert talk.session in owner.talks._open
        owners = [server for server in servers if len(server.talks) > 0]
        assert owners == servers, "the conversations are spread"
        await servers[0].server.drain()
        for talk in talks:
            await answered(talk, "and what is a dog")
            assert talk.session in servers[1].talks._open
            await talk.aclose()

    async def opened(number: int) -> Any:
        while True:
            try:
                return await connect(f"http://127.0.0.1:{port}", settings={"hearing": "shown"})
            except RemoteError:  # the proxy has not asked the servers yet
                await asyncio.sleep(0.1)

    async def answered(talk: Any, question: str) -> None:
        talk.hear(question, utterance=question, final=True)
        async for event in talk.events():
            if isinstance(event, Committed):
                break
        assert [turn.text for turn in talk.history if turn.role is Role.USER][-1] == question

    run(talk())
