"""Training rows on tiny models: cached prefixes are the plain ones; the loop learns, stops, goes on after a kill."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from duologue.adapters import Adapter
from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import Rows
from duologue.core.backend import Extend
from duologue.data.samples import Sample
from duologue.errors import BadData, UnsupportedModel, UsageError
from duologue.template import Template
from duologue.testing import tiny_model
from duologue.training.layout import Layout, Layouts
from duologue.training.prefixes import Prefixes, kv_bytes_per_token
from duologue.training.rows import Epoch, RowsModel, RowsSettings, label_tensors, score, train
from duologue.types import InputState, Role, Turn
from scripted import CHATML, ByteTokenizer

STATES = tuple(InputState)
PROCESS, INCOMPLETE, IGNORE, STOP = STATES
TALK = (Turn(Role.USER, "hi"), Turn(Role.ASSISTANT, "Hello, I was"))


def random_layouts(num: int, seed: int = 0) -> list[Layout]:
    rng = random.Random(seed)
    contexts = [(), *(tuple(rng.randrange(4, 300) for _ in range(rng.randint(1, 9))) for _ in range(3))]
    return [
        Layout(rng.choice(contexts), tuple(rng.randrange(4, 300) for _ in range(rng.randint(1, 7)))) for _ in range(num)
    ]


def softmax(logits: "np.ndarray") -> "np.ndarray":
    e = np.exp(logits - logits.max())
    return e / e.sum()


def rows_model(architecture: str, num_probes: int, seed: int = 0) -> RowsModel:
    torch.manual_seed(seed)
    model = RowsModel(tiny_model(architecture), STATES, range(10, 20), num_probes)
    with torch.no_grad():
        model.states.normal_()
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "mistral", "phi"])
@pytest.mark.parametrize("num_probes", [1, 3])
def test_what_training_scores_is_what_a_backend_reads(architecture: str, num_probes: int) -> None:
    model = rows_model(architecture, num_probes)
    layouts = random_layouts(24)
    p = score(model, Prefixes(model.base, layouts), batch=7)
    backend = ReferenceBackend(tiny_model(architecture), rows=model.rows())
    vocab = backend.info.vocab_size
    probe, watch = tuple(range(vocab, vocab + num_probes)), tuple(range(vocab + num_probes, vocab + num_probes + 4))
    for layout, row in zip(layouts, p, strict=True):
        seq = backend.fork(None)
        step = backend.forward([Extend(seq, (*layout.context, *layout.text, *probe), watch=watch)])[0]
        assert row == pytest.approx(step.p, abs=1e-4)


def test_a_context_is_computed_and_kept_once() -> None:
    layouts = [Layout((5, 6, 7, 8), (i,)) for i in range(10, 20)]
    model = tiny_model("llama")
    prefixes = Prefixes(model, layouts)
    assert prefixes.num_tokens == 4 + 10
    with pytest.raises(UsageError, match="--samples"):
        Prefixes(model, layouts, max_bytes=13 * kv_bytes_per_token(model))
    assert len(Prefixes(model, layouts, max_bytes=14 * kv_bytes_per_token(model))) == 10


def test_a_recurrent_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="cannot"):
        Prefixes(tiny_model("mamba"), random_layouts(2))


FOLDED = (  # the system text stands in the first user's turn
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (m.content | trim) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("chat_template", [CHATML, FOLDED])
def test_a_sample_is_laid_out_as_a_session_feeds_it(chat_template: str) -> None:
    template = Template.from_tokenizer(ByteTokenizer(chat_template), system="Be kind.")
    alone = Layouts(template).of(Sample("what", INCOMPLETE, "own"))
    assert alone.context == template.begin
    assert (*alone.context, *alone.text) == (*template.begin, *template.user("what", first=True))
    inside = Layouts(template).of(Sample("and", INCOMPLETE, "own", context=TALK, speaking=True))
    expected = (
        *template.begin,
        *template.user("hi", first=True),
        *template.header,
        *template.answer("Hello, I was"),
        *template.close,
    )
    assert inside == Layout(expected, template.user("and", first=False))
    brief = template.with_system("Be brief.")
    system = Layouts(template).of(Sample("what", INCOMPLETE, "own", system="Be brief."))
    assert (*system.context, *system.text) == (*brief.begin, *brief.user("what", first=True))
    assert (*system.context, *system.text) != (*alone.context, *alone.text)


def toy_set(num: int, seed: int) -> tuple[list[Sample], list[Layout]]:
    """The state is told by the last token, as function words tell that more will come."""
    rng = random.Random(seed)
    samples, layouts = [], []
    for layout in random_layouts(num, seed):
        label = rng.randrange(4)
        samples.append(Sample("…", STATES[label], "toy", speaking=rng.random() < 0.5))
        layouts.append(Layout(layout.context, (*layout.text, 100 + 40 * label)))
    return samples, layouts


SETTINGS = RowsSettings(epochs=12, batch=16, lr=0.2)


def trained(
    settings: RowsSettings, *, checkpoint: Path | None = None, break_after: int | None = None
) -> tuple[RowsModel, list[Epoch]]:
    model = RowsModel(tiny_model("llama"), STATES, range(10, 20), settings.num_probes)
    torch.manual_seed(0)
    with torch.no_grad():
        model.states.normal_().mul_(0.01)
    sets = []
    for num, seed in ((240, 0), (80, 1)):
        samples, layouts = toy_set(num, seed)
        sets.append((samples, Prefixes(model.base, layouts)))

    def stop_early(epoch: object) -> None:
        if break_after is not None and getattr(epoch, "number", 0) >= break_after:
            raise KeyboardInterrupt

    history = train(model, STATES, sets[0], sets[1], settings, checkpoint=checkpoint, report=stop_early)
    return model, history


def test_training_learns_changes_no_weight_and_is_the_same_again() -> None:
    model, history = trained(SETTINGS)
    assert history[-1].dev_accuracy > 0.7, "a quarter is chance"
    fresh = tiny_model("llama").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.base.state_dict().items())
    again, _ = trained(SETTINGS)
    assert np.array_equal(model.rows().states, again.rows().states)


def test_a_killed_run_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    whole, history = trained(SETTINGS)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(SETTINGS, checkpoint=path, break_after=3)
    resumed, again = trained(SETTINGS, checkpoint=path)
    assert len(again) == len(history)
    np.testing.assert_allclose(resumed.rows().probes, whole.rows().probes, atol=1e-6)
    np.testing.assert_allclose(resumed.rows().states, whole.rows().states, atol=1e-6)
    with pytest.raises(UsageError, match="other settings"):
        trained(replace(SETTINGS, lr=1e-3), checkpoint=path)


def test_training_ends_when_it_no_longer_gets_better() -> None:
    _, history = trained(replace(SETTINGS, epochs=40, patience=1))
    assert len(history) < 40


def test_a_state_without_samples_is_refused() -> None:
    model = rows_model("llama", 1)
    samples = [Sample("a", PROCESS, "own"), Sample("b", IGNORE, "own")]
    data = (samples, Prefixes(model.base, random_layouts(2)))
    with pytest.raises(BadData, match="incomplete, stop"):
        train(model, STATES, data, data, SETTINGS)


def test_accepted_states_count_less_than_the_label_and_rare_states_more() -> None:
    samples = [Sample("a", IGNORE, "own", accept=(INCOMPLETE,)), *[Sample("b", PROCESS, "own")] * 3]
    targets, weights = label_tensors(samples, STATES, RowsSettings(accepted_weight=0.4, balance=1.0))
    assert targets[0].tolist() == pytest.approx([0.0, 0.4, 1.0, 0.0])
    assert float(weights[0] / weights[1]) == pytest.approx(3.0)
    assert float(weights.mean()) == pytest.approx(1.0)


def test_trained_rows_become_an_adapter_that_backends_take(tmp_path: Path) -> None:
    model = rows_model("llama", 2)
    Adapter("rows", STATES, rows=model.rows()).save(tmp_path)
    rows = Adapter.load(tmp_path).rows
    assert isinstance(rows, Rows)
    model.set_rows(Rows(rows.probes * 0, rows.states * 0))
    assert not model.rows().probes.any()
    model.set_rows(rows)
    np.testing.assert_allclose(model.rows().probes, rows.probes, rtol=1e-6)
