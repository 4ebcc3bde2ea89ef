"""Qwen2-Audio, Voxtral and other encoders in sessions, compared with the library's forward pass on the same sound."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import AdapterRows
from duologue.backends.torch.backend import TorchBackend
from duologue.core.backend import Backend, Extend
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Dropped, Event, Promoted, Received, Said, TakenBack, Trimmed
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.trace import Pass
from duologue.errors import UsageError
from duologue.hearing.audio_model import AudioModel
from duologue.hearing.sound_template import SoundTemplate
from duologue.hearing.transformers_audio import boundary_rows, qwen2_audio, voxtral
from duologue.testing.tiny_audio import AUDIO_TOKEN, TinyTokenizer, tiny_audio_model, tiny_extractor
from duologue.testing.tiny_models import VOCAB_SIZE, WIDTH, tiny_lora, tiny_model, tiny_rows
from duologue.text.template import Template
from duologue.types import InputState, Role, Token, Turn

torch.set_num_threads(1)

RATE = 16_000
STATES = tuple(InputState)
WATCHED = tuple(range(VOCAB_SIZE + 1, VOCAB_SIZE + 1 + len(STATES)))
FRONT_ENDS = {"qwen2_audio": qwen2_audio, "voxtral": voxtral}
CONFIG = SessionConfig(max_length=400, max_answer=8, heard="reported")
Sound = npt.NDArray[np.float32]


def sound(seconds: float, seed: int = 0) -> Sound:
    """Noise that grows louder and softer."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=len(time))
    return np.asarray(0.2 * noise * (1 + np.sin(9 * time + seed)), dtype=np.float32)


class Heard:
    """A tiny audio model and its parts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.model, self.extractor = tiny_audio_model(kind), tiny_extractor()
        self.audio = FRONT_ENDS[kind](self.model, self.extractor, TinyTokenizer())

    def template(self, backend: Backend, **options: Any) -> SoundTemplate:
        return SoundTemplate(Template.from_tokenizer(TinyTokenizer()), self.audio, backend.embed, **options)

    def library_inputs(self, heard: Sound) -> dict[str, torch.Tensor]:
        """What the library's processor passes to the model for one sound."""
        if self.kind == "voxtral":
            features = self.extractor(
                heard,
                sampling_rate=RATE,
                padding=True,
                truncation=False,
                pad_to_multiple_of=self.extractor.n_samples,
                return_tensors="pt",
            )["input_features"]
            split = features.reshape(self.extractor.feature_size, -1, self.extractor.nb_max_frames).transpose(0, 1)
            return {"input_features": split}
        found = self.extractor(
            heard, sampling_rate=RATE, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return {"input_features": found["input_features"], "feature_attention_mask": found["attention_mask"]}

    def library(self, ids: Sequence[int], heard: Sound) -> Any:
        """The library's forward pass: `ids` with `AUDIO_TOKEN` in the place of every row."""
        with torch.inference_mode():
            fed = torch.tensor([list(ids)])
            inputs = self.library_inputs(heard)
            return self.model(input_ids=fed, attention_mask=torch.ones_like(fed), output_hidden_states=True, **inputs)


@pytest.fixture(scope="module", params=FRONT_ENDS)
def heard(request: pytest.FixtureRequest) -> Heard:
    return Heard(request.param)


def weigh(backend: Backend, template: SoundTemplate, probe: Token, mark: str) -> list[float]:
    """The probabilities of the state rows at `probe`, after a first turn of one sound."""
    seq = backend.fork(None)
    words = (*template.begin, *template.user(mark, first=True))
    (step,) = backend.forward([Extend(seq, (*words, probe), watch=(WATCHED,))])
    backend.free(seq)
    return list(step.p[0])


def deciding(probe: Token, weights: Sequence[float], state: InputState, other: Sequence[float] = ()) -> Probe:
    """A probe by which `weights` mean `state`, and the weights of another sound mean to ignore it."""
    order: list[InputState | None] = [None] * len(STATES)
    order[int(np.argmax(weights))] = state
    if other:
        order[int(np.argmax(other))] = InputState.IGNORE
    rest = [one for one in STATES if one not in order]
    return Probe((probe,), WATCHED, tuple(rest.pop() if one is None else one for one in order))


def listen(backend: Backend, template: SoundTemplate, probe: Probe, *marks: str) -> list[Event]:
    """What happens in a session that hears each of `marks` as one utterance."""
    session, events = Session(template, probe, config=CONFIG, policy=Policy(p_sure=0.2)), list[Event]()
    engine = Engine(backend)
    handle = engine.open(session, sink=lambda record: events.append(record) if isinstance(record, Event) else None)
    for number, mark in enumerate(marks):
        handle.hear(mark, utterance=f"u{number}", final=True)
        while engine.tick():
            pass
    engine.close()
    return events


def said_in(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Said))


def with_audio_tokens(tokens: Sequence[int]) -> list[int]:
    return [AUDIO_TOKEN if token >= VOCAB_SIZE else token for token in tokens]


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
def test_rows_are_those_that_the_library_feeds(heard: Heard, seconds: float) -> None:
    rows = heard.audio.encode(sound(seconds))
    num = 25 if heard.kind == "voxtral" else round(25 * seconds)  # a whole window, or as long as the sound
    assert abs(len(rows) - num) <= 1
    assert rows.shape[1] == WIDTH
    assert rows.dtype == np.float32
    fed: list[torch.Tensor] = []
    hook = heard.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    heard.library([5, *[AUDIO_TOKEN] * len(rows), 6], sound(seconds))
    hook.remove()
    np.testing.assert_array_equal(fed[0][0, 1:-1].numpy(), rows)


def test_voxtral_hears_several_windows() -> None:
    voxtral = Heard("voxtral")
    rows = voxtral.audio.encode(sound(5.0))
    assert len(rows) == 3 * 25, "windows of two seconds"
    fed: list[torch.Tensor] = []
    hook = voxtral.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    voxtral.library([5, *[AUDIO_TOKEN] * len(rows), 6], sound(5.0))
    hook.remove()
    np.testing.assert_allclose(fed[0][0, 1:-1].numpy(), rows, atol=1e-5)


@pytest.mark.parametrize("has_lora", [False, True])
def test_a_session_answers_as_the_model_does_and_reads_the_state_at_the_boundary(heard: Heard, has_lora: bool) -> None:
    said, states = sound(0.7, seed=3), tiny_rows().states
    boundary = heard.template(ReferenceBackend(heard.model)).boundary
    rows, lora = boundary_rows(heard.model, boundary, states), tiny_lora(heard.model) if has_lora else None
    backend = TorchBackend(heard.model, rows=rows, lora=lora, capacity=1024)
    template = heard.template(backend)
    mark = template.write(said)
    # with a LoRA, the probe is the boundary's own row; without one, it is the boundary itself
    probe = VOCAB_SIZE if has_lora else template.probe(WATCHED, STATES).tokens[0]
    weights = weigh(backend, template, probe, mark)
    events = listen(backend, template, deciding(probe, weights, InputState.PROCESS), mark)
    words = with_audio_tokens([*template.begin, *template.user(mark, first=True)])
    hidden = heard.library([*words, boundary], said).hidden_states[-1][0, -1].numpy()
    expected = torch.softmax(torch.from_numpy(states @ hidden), 0).tolist()
    (decided,) = [event for event in events if isinstance(event, Decided)]
    found = [p for _, p in decided.decision.probabilities]
    if has_lora:
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) > 0.01, "the LoRA is active there"
    else:
        assert found == pytest.approx(expected, abs=1e-4)
    ids, answer = [*words, *template.header], list[int]()
    while len(answer) < CONFIG.max_answer:
        answer.append(int(heard.library([*ids, *answer], said).logits[0, -1].argmax()))
    stop = next((i for i, token in enumerate(answer) if token in template.stop_tokens), len(answer))
    detokenizer = template.detokenizer()
    text = "".join(map(detokenizer.push, answer[:stop])) + detokenizer.flush()
    assert text
    assert said_in(events) == text
    assert [event.text for event in events if isinstance(event, Promoted)] == [mark]


def test_ignored_sound_is_dropped_and_another_one_is_answered_as_if_it_were_alone(heard: Heard) -> None:
    backend = TorchBackend(heard.model, rows=tiny_rows(), capacity=2048)
    template = heard.template(backend)
    marks = [template.write(sound(0.5, seed)) for seed in range(12)]
    weights = [weigh(backend, template, template.boundary, mark) for mark in marks]
    tops = [int(np.argmax(weight)) for weight in weights]
    other = next(i for i, top in enumerate(tops) if top != tops[0])
    probe = deciding(template.boundary, weights[0], InputState.PROCESS, other=weights[other])
    alone = listen(backend, template, probe, marks[0])
    events = listen(backend, template, probe, marks[other], marks[0])
    assert [event.text for event in events if isinstance(event, Dropped)] == [marks[other]]
    assert [event.text for event in events if isinstance(event, Promoted)] == [marks[0]]
    assert said_in(events) == said_in(alone) != ""
    assert backend.usage().num_seqs == 0


def test_sound_can_be_encoded_on_another_thread_during_a_pass(heard: Heard) -> None:
    backend = TorchBackend(heard.model, rows=tiny_rows(), capacity=256)
    expected, found = heard.audio.encode(sound(0.5)), list[npt.NDArray[np.float32]]()

    def encode_meanwhile(*_: object) -> None:
        with ThreadPoolExecutor(1) as other:
            found.append(other.submit(heard.audio.encode, sound(0.5)).result())

    hook = heard.model.get_decoder().layers[1].register_forward_pre_hook(encode_meanwhile)
    backend.forward([Extend(backend.fork(None), (5, 6, 7))])
    hook.remove()
    np.testing.assert_array_equal(found[0], expected)


def test_a_picture_encoder_is_an_audio_model() -> None:
    """Nothing depends on sound: patches of a picture, projected, are rows as well."""
    model = tiny_model("llama")
    project = np.random.default_rng(0).normal(size=(3 * 4 * 4, WIDTH)).astype(np.float32)

    def patches(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        height, width, _ = picture.shape
        cut = picture.reshape(height // 4, 4, width // 4, 4, 3).swapaxes(1, 2).reshape(-1, 3 * 4 * 4)
        return np.asarray(np.tanh(cut @ project / 4), dtype=np.float32)

    backend = TorchBackend(model, rows=tiny_rows(), capacity=512)
    tokenizer = TinyTokenizer()
    seen = AudioModel(patches, opener=(258,), closer=(259,))
    template = SoundTemplate(Template.from_tokenizer(tokenizer), seen, backend.embed)
    picture = np.random.default_rng(1).random((8, 12, 3), dtype=np.float32)
    mark = template.write(picture)
    ids = [*template.begin, *template.user(f"what is this? {mark}", first=True)]
    assert sum(token >= VOCAB_SIZE for token in ids) == 2 * 3
    with torch.inference_mode():
        embeds = model.get_input_embeddings()(torch.tensor([[min(token, VOCAB_SIZE - 1) for token in ids]])).clone()
        where = [i for i, token in enumerate(ids) if token >= VOCAB_SIZE]
        embeds[0, where] = torch.from_numpy(patches(picture))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[template.boundary]]))], dim=1)
        hidden = model.model(inputs_embeds=embeds).last_hidden_state[0, -1].numpy()
    seq = backend.fork(None)
    (step,) = backend.forward([Extend(seq, (*ids, template.boundary), watch=(WATCHED,))])
    expected = torch.softmax(torch.from_numpy(tiny_rows().states @ hidden), 0).tolist()
    assert step.p[0] == pytest.approx(expected, abs=1e-4)


# ------------------------------------------------------------------------------------------------ turns made of sound


@pytest.fixture
def qwen() -> Heard:
    return Heard("qwen2_audio")


def plain_template() -> Template:
    return Template.from_tokenizer(TinyTokenizer())


def test_turns_are_opener_rows_and_closer(qwen: Heard) -> None:
    template, plain = qwen.template(ReferenceBackend(qwen.model)), plain_template()
    mark = template.write(sound(0.2))
    rows = [token for token in template.user(mark, first=True) if token >= VOCAB_SIZE]
    opener, closer = qwen.audio.opener, qwen.audio.closer
    assert template.user(mark, first=True) == (*plain.user("", first=True), *opener, *rows)
    assert template.user("", first=False) == plain.user("", first=False)
    assert template.header == (*closer, *plain.header)
    assert template.boundary == closer[0] == 259
    turns = [Turn(Role.USER, mark), Turn(Role.ASSISTANT, "yes"), Turn(Role.USER, mark)]
    expected = [
        *plain.lay_out([Turn(Role.USER, "")]),
        *opener,
        *rows,
        *closer,
        *plain.joint(Role.USER, Role.ASSISTANT),
        *plain.answer("yes"),
        *plain.joint(Role.ASSISTANT, Role.USER),
        *plain.user("", first=False),
        *opener,
        *rows,
    ]
    assert template.lay_out(turns) == expected
    assert template.opening(Role.USER) == (*closer, *plain.opening(Role.USER))
    assert template.opening(None) == plain.opening(None)
    assert template.encode("plain text") == plain.encode("plain text")
    assert template.with_system("be brief").user(mark, first=False)[-len(rows) :] == tuple(rows)


def test_of_sound_that_grows_by_a_part_only_the_part_is_fed(qwen: Heard) -> None:
    backend = TorchBackend(qwen.model, rows=tiny_rows(), capacity=1024)
    template = qwen.template(backend)
    first, second = (template.write(sound(0.4, seed)) for seed in (1, 2))
    waiting = deciding(template.boundary, weigh(backend, template, template.boundary, first), InputState.INCOMPLETE)
    session = Session(template, waiting, config=CONFIG)
    engine, passes = Engine(backend), list[Pass]()
    handle = engine.open(session, sink=lambda record: passes.append(record) if isinstance(record, Pass) else None)
    fed = []
    for text in (first, f"{first} {second}"):
        handle.hear(text, utterance="u")
        while engine.tick():
            pass
        fed.append(sum(one.input_tokens + one.prefill_tokens for one in passes))
        passes.clear()
    engine.close()
    assert fed[1] == len(qwen.audio.encode(sound(0.4, 2))) + 1, "and the boundary"
    assert fed[0] > fed[1]


@pytest.mark.parametrize("is_encoded_anew", [False, True])
def test_sound_that_goes_on_before_an_answer_is_heard_is_judged_as_a_whole(qwen: Heard, is_encoded_anew: bool) -> None:
    backend = TorchBackend(qwen.model, rows=tiny_rows(), capacity=1024)
    template = qwen.template(backend)
    first, second, whole = (template.write(sound(seconds, 1)) for seconds in (0.4, 0.2, 0.6))
    longer = whole if is_encoded_anew else f"{first} {second}"
    weights = weigh(backend, template, template.boundary, first)
    probe = deciding(template.boundary, weights, InputState.PROCESS)
    events = list[Event]()
    engine = Engine(backend)
    handle = engine.open(
        Session(template, probe, config=CONFIG, policy=Policy(p_sure=0.2)),
        sink=lambda record: events.append(record) if isinstance(record, Event) else None,
    )
    for text in (first, longer):
        handle.hear(text, utterance="u")
        while engine.tick():
            pass
    engine.close()
    assert next(event.text for event in events if isinstance(event, Promoted)) == first
    assert len([event for event in events if isinstance(event, TakenBack)]) == 1
    assert [event.text for event in events if isinstance(event, Received)] == [first, longer]
    expected = weigh(backend, template, template.boundary, longer)
    decided = [event for event in events if isinstance(event, Decided)][-1]
    assert dict(decided.decision.probabilities) == pytest.approx(
        dict(zip(probe.states, expected, strict=True)), abs=1e-4
    )


def test_a_long_conversation_keeps_the_newest_sounds(qwen: Heard) -> None:
    backend = TorchBackend(qwen.model, rows=tiny_rows(), capacity=1024)
    template = qwen.template(backend)
    config = SessionConfig(max_length=256, max_answer=8, heard="reported")
    session = Session(template, template.probe(WATCHED, STATES), config=config)
    engine, events = Engine(backend), list[Event]()
    handle = engine.open(session, sink=lambda record: events.append(record) if isinstance(record, Event) else None)
    for number in range(8):
        handle.hear(template.write(sound(0.8, number)), utterance=f"u{number}", final=True)
        handle.respond()
        while engine.tick():
            pass
        if session.running is not None:
            handle.heard(session.running.num_said)
        while engine.tick():
            pass
    assert any(isinstance(event, Trimmed) for event in events)
    oldest = [*template.begin, *template.lay_out(session.history[:1])]
    assert sum(token >= VOCAB_SIZE for token in oldest) == 20
    assert session._output.sequence.items[: len(oldest)] == oldest
    engine.close()
    assert backend.usage().num_seqs == 0


def test_rows_that_are_too_old_are_forgotten(qwen: Heard) -> None:
    template = qwen.template(ReferenceBackend(qwen.model), max_rows=25)
    old, new = (template.write(sound(0.6, seed)) for seed in (1, 2))
    opener = (*plain_template().user("", first=True), *qwen.audio.opener)
    assert template.user(old, first=True) == opener
    assert len(template.user(new, first=True)) > len(opener)
    assert template.write(sound(0.6, 2)) == new, "the same sound has the same mark"
    template.write(sound(0.3, 3))
    assert len(template.user(new, first=True)) > len(opener), "both fit"
    with pytest.raises(UsageError, match="only 20 are remembered"):
        qwen.template(ReferenceBackend(qwen.model), max_rows=20).write(sound(1.0))


def test_silence_and_far_too_loud_sound_are_heard(heard: Heard) -> None:
    for samples in (np.zeros(8000, np.float32), np.clip(1e4 * sound(0.5), -1, 1), 1e4 * sound(0.5)):
        rows = heard.audio.encode(samples.astype(np.float32))
        assert np.isfinite(rows).all()
        assert len(rows)


def test_what_is_no_sound_is_refused(heard: Heard) -> None:
    good = sound(0.5)
    cases: list[tuple[Any, str]] = [
        (np.stack([good, good]), r"one channel at 16000 Hz, not float32 \(2, 8000\)"),
        ((good * 32767).astype(np.int16), "not int16"),
        (good.tolist(), "not list"),
        (good[:0], "no samples"),
        (np.where(np.arange(8000) == 9, np.nan, good), "not finite"),
        (np.zeros(3600 * RATE, np.float32), "3600.0 s, but this model hears at most"),
    ]
    for samples, message in cases:
        with pytest.raises(UsageError, match=message):
            heard.audio.encode(samples)


def test_a_sound_of_less_than_a_row_is_refused(qwen: Heard) -> None:
    with pytest.raises(UsageError, match="less than one row"):
        qwen.audio.encode(sound(0.001))


def test_other_models_and_tokenizers_are_refused(qwen: Heard) -> None:
    class Deaf(TinyTokenizer):  # type: ignore[misc]
        special_tokens: Mapping[str, int] = {"<|im_start|>": 256, "<|im_end|>": 257}

    for front_end in (qwen2_audio, voxtral):
        with pytest.raises(UsageError, match="make an AudioModel for it"):
            front_end(tiny_model("llama"), tiny_extractor(), TinyTokenizer())
    with pytest.raises(UsageError, match=r"no token <\|audio_bos\|>"):
        qwen2_audio(qwen.model, tiny_extractor(), Deaf())
    with pytest.raises(UsageError, match="encode is a function"):
        AudioModel(np.zeros(3))  # type: ignore[arg-type]
    wide = AudioModel(lambda _: np.zeros((2, WIDTH + 1), np.float32))
    template = SoundTemplate(plain_template(), wide, ReferenceBackend(qwen.model).embed)
    with pytest.raises(UsageError, match="rows of width 32"):
        template.write(None)


def test_boundary_rows_are_the_embedding_of_the_boundary(qwen: Heard) -> None:
    rows = boundary_rows(qwen.model, 259, tiny_rows().states)
    assert isinstance(rows, AdapterRows)
    embedded = qwen.model.get_input_embeddings().weight[259].detach().numpy()
    np.testing.assert_array_equal(rows.probes, embedded[None])
