"""A model that another one listens for: which model decides, and that the one that speaks is not disturbed."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.backends.pair import PairBackend
from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import AdapterRows
from duologue.backends.scripted import ScriptedBackend
from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Said
from duologue.core.policy import Policy, Thresholds
from duologue.core.session import Session
from duologue.core.transcript import ListenerModel
from duologue.core.transitions import Floor
from duologue.engine.engine import Engine
from duologue.errors import ModelNotFound
from duologue.models.adapters import Adapter, Fingerprint
from duologue.models.catalogue import DEFAULT, find
from duologue.models.model import load
from duologue.speakers.endpoint import Endpoint
from duologue.speakers.remote import RemoteSpeaker
from duologue.testing.contract import CHECKS, Subject
from duologue.testing.tiny_models import tiny_model, tiny_rows
from duologue.text.template import Template
from duologue.types import InputState
from scripted import PROBE, STATES, ByteTokenizer, OtherTokenizer, judged
from tiny_chat import tiny_chat_folder

WIDTH = 32


def written(path: Path, seed: int) -> Path:
    """A tiny Llama with a chat template in a Hugging Face folder."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny_chat_folder(path, seed=seed, max_position_embeddings=1024, **heads)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("speaker") / "tiny-speaker", 0)


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("listener") / "tiny-listener", 1)


@pytest.fixture(scope="module")
def adapter(listener: Path) -> Adapter:
    """An adapter of random rows for the listener, or any other model of that size."""
    model = load(str(listener), listener="none", context_length=512)
    random = np.random.default_rng(0)
    size = model.backend.info.vocab_size
    model.close()
    return Adapter(
        "rows",
        tuple(InputState),
        rows=AdapterRows(random.normal(size=(1, WIDTH)).astype("f4"), random.normal(size=(4, WIDTH)).astype("f4")),
        fingerprint=Fingerprint.of(model.template.tokenizer, vocab_size=size, hidden_size=WIDTH, num_layers=2),
        thresholds={"bf16": (Thresholds(process=0.4), Thresholds(process=0.9))},
        name="random",
    )


def test_the_named_listener_decides_with_the_adapter(speaker: Path, listener: Path, adapter: Adapter) -> None:
    model = load(str(speaker), listener=str(listener), adapter=adapter, context_length=512)
    assert isinstance(model.backend, PairBackend)
    assert (model.name, model.decider.name, model.adapter.name) == ("tiny-speaker", "tiny-listener", "random")
    assert model.decided_by == "tiny-listener listens, rows"
    assert model.policy().idle.process == 0.4
    assert model.backend.info.num_added == 0, "the speaker has no rows"
    engine = model.engine()
    talk = engine.open(model.session(config=SessionConfig(max_answer=8, max_length=512)))
    talk.hear("hello there", final=True)
    engine.tick()
    assert [type(event) for event in talk.new_events()][:2][-1] is Decided
    talk.respond()
    while engine.tick():
        pass
    assert any(isinstance(event, Said) for event in talk.new_events()) or talk.session.history
    engine.close()
    assert model.backend.usage().num_seqs == 0
    model.close()


def test_a_model_that_would_listen_to_itself_decides_alone(speaker: Path, adapter: Adapter) -> None:
    model = load(str(speaker), listener=str(speaker), adapter=adapter, context_length=512)
    assert model.listener is None
    assert model.adapter.name == "random"


def test_without_a_listener_a_model_is_asked_in_words(speaker: Path) -> None:
    model = load(str(speaker), listener="none", context_length=1024)
    assert (model.listener, model.adapter.kind, model.decided_by) == (None, "prompted", "prompted")
    asked = load(str(speaker), adapter="prompted", context_length=1024)
    assert asked.listener is None, "it was asked for"


def test_a_listener_that_is_missing_is_named(speaker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, revision: str | None = None) -> Any:
        if name == DEFAULT:
            raise ModelNotFound("it is not installed")
        return find(name, revision)

    monkeypatch.setattr("duologue.models.model.find", missing)
    with pytest.raises(ModelNotFound, match=r"no adapter ships for tiny-speaker.*not installed.*--listener none"):
        load(str(speaker), context_length=512)


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
def test_the_default_model_listens_and_says_so_once(speaker: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        find(DEFAULT)
    except ModelNotFound as error:
        pytest.skip(str(error))
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        model = load(str(speaker), backend="torch", context_length=512)
        assert model.decider.name == find(DEFAULT).name
        assert model.adapter.kind == "alora"
        model.close()
    said = [record.getMessage() for record in caplog.records if "listens" in record.getMessage()]
    assert said == [f"no adapter ships for tiny-speaker: {find(DEFAULT).name} listens and decides in its place"]


def test_a_speaker_elsewhere_makes_the_model_a_listener(listener: Path, adapter: Adapter) -> None:
    alone = load(str(listener), adapter=adapter, context_length=512)
    model = alone.spoken_by(RemoteSpeaker(Endpoint("http://x", "qwen3"), system="be terse"), max_length=2048)
    assert model.title == "qwen3 at http://x, tiny-listener listens, rows"
    session = model.session()
    assert session.is_elsewhere
    assert (session.template.system, session.config.max_length, session.most_entries) == ("be terse", 2048, 512)
    assert model.session(system="be long").template.system == "be long"


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize(("arch", "seed"), [("llama", 0), ("qwen2", 2), ("gemma3", 4)])
def test_what_is_ignored_changes_no_token_of_the_speaker(arch: str, seed: int) -> None:
    tokenizer, other = ByteTokenizer(), OtherTokenizer()

    def judge(ids: list[int]) -> tuple[float, ...]:
        words = other.decode([token for token in ids if token < 258]).rpartition("user\n")[2]
        return tuple(0.91 if state is judged(words) else 0.03 for state in STATES)

    said = []
    for asides in ([], ["mhm", "radio talk", "what about the"]):
        model = tiny_model(arch, seed=seed)
        backend = PairBackend(
            ReferenceBackend(model, capacity=512, max_seqs=8, context_length=128),
            ScriptedBackend(lambda ids: 1, judge, vocab_size=258, num_added=7),
        )
        session = Session(
            Template.from_tokenizer(tokenizer),
            PROBE,
            policy=Policy(p_sure=0.5),
            config=SessionConfig(max_length=128, max_answer=24),
            listener=ListenerModel(Template.from_tokenizer(other), 512),
        )
        engine = Engine(backend, clock=lambda session=session: session.now)
        talk = engine.open(session)
        talk.hear("what is it", final=True)
        for _ in range(4):
            engine.tick()
        assert session.floor is Floor.SPEAKING, "with these weights, the first words can be shown"
        for number, text in enumerate(asides):
            talk.hear(text, utterance=f"aside {number}", final=False)
            engine.tick()
            engine.tick()
        while engine.tick():
            pass
        answer = session._output.sequence.items
        said.append(answer)
        engine.close()
        assert backend.usage().num_seqs == 0
    assert said[0] == said[1]
    assert len(said[0]) > 40


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_pair_of_backends_keeps_the_contract(check: Any) -> None:
    def opener(**limits: int) -> Backend:
        return PairBackend(*(ReferenceBackend(tiny_model("llama"), rows=tiny_rows(), **limits) for _ in range(2)))

    check(Subject(opener))
