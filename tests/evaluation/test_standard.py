"""`duologue eval standard`: continuations score as each alone, adapters that leave the base alone are shown to do so,
local files become the harness's rows, and what a model wrote runs isolated."""

import importlib.util
import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from duologue.backends.reference import ReferenceBackend
from duologue.backends.torch.backend import TorchBackend
from duologue.cli.main import main
from duologue.core.backend import Backend, Draw, Extend, Step
from duologue.core.prompt import Probe
from duologue.errors import BadData, DuologueError, UsageError
from duologue.evaluation.standard import sandbox
from duologue.evaluation.standard.answering import Answerer, Generation, Identity, Memory, Request, Scoring
from duologue.evaluation.standard.benchmarks import BENCHMARKS, chosen, read, spread
from duologue.evaluation.standard.comparison import difference, measure, standard_error, tables
from duologue.evaluation.standard.feeding import Answer, Continuation, Feeder, Listening, Prompt, batches
from duologue.evaluation.standard.harness import Scores, Source, evaluate, require
from duologue.models.adapters import Adapter, prompted
from duologue.models.model import Model
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows
from duologue.text.template import Template
from duologue.types import InputState
from scripted import ByteTokenizer

torch.set_num_threads(1)

PROBED = Probe((VOCAB_SIZE,), tuple(range(VOCAB_SIZE + 1, VOCAB_SIZE + 5)), tuple(InputState))
QUESTIONS = ("Is it so? ", "Is it now? ", "Why? ")
SCORINGS = [Scoring(question, choice) for question in QUESTIONS for choice in ("yes", "no", "it is not")]
GENERATIONS = [Generation(question, ("\n",), 5) for question in QUESTIONS]


class Counted(TorchBackend):
    """Knows how many tokens each pass fed."""

    fed: list[int]

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self.fed.append(sum(len(extend.tokens) for extend in batch))
        return super().forward(batch)


def tiny(kind: str = "prompted", *, seed: int = 0, max_seqs: int = 24, capacity: int = 400) -> Model:
    network = tiny_model("llama", seed=seed)
    rows = None if kind == "prompted" else tiny_rows()
    lora = tiny_lora(network) if kind == "alora" else None
    backend = Counted(network, rows=rows, lora=lora, capacity=capacity, max_seqs=max_seqs)
    backend.fed = []
    adapter = prompted() if rows is None else Adapter(kind, tuple(InputState), rows, lora)
    return Model("tiny", backend, Template.from_tokenizer(ByteTokenizer()), adapter, PROBED, 128)


def asked(backend: Backend, item: Continuation) -> list[float]:
    """The log-probability of each token of a continuation, from the probabilities of the whole vocabulary."""
    everything, found = tuple(range(backend.info.vocab_size)), []
    for end, token in enumerate(item.tokens, len(item.context)):
        seq = backend.fork(None)
        fed = (*item.context, *item.tokens)[:end]
        (step,) = backend.forward([Extend(seq, fed, watch=(everything,))])
        found.append(math.log(step.p[0][token]))
        backend.free(seq)
    return found


def ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


CONTINUATIONS = [Continuation(ids(one.context), ids(one.continuation)) for one in sorted(SCORINGS, key=repr)]


def nothing(*_: object) -> bool:
    return False


def answered(found: Iterable[tuple[int, Answer]]) -> list[Answer]:
    """In the order of the prompts."""
    return [answer for _, answer in sorted(found, key=lambda one: one[0])]


# ------------------------------------------------------------------------------------------------------------- feeding


@pytest.mark.parametrize("max_seqs", [5, 8, 24])
def test_continuations_score_as_each_alone(max_seqs: int) -> None:
    model = tiny(max_seqs=max_seqs)
    feeder, reference = Feeder(model.backend), ReferenceBackend(tiny_model("llama"))
    found = [scores for batch in batches(CONTINUATIONS, model.backend) for scores in feeder.score(batch)]
    assert len(found) == len(CONTINUATIONS)
    for item, scores in zip(CONTINUATIONS, found, strict=True):
        assert [one.logprob for one in scores] == pytest.approx(asked(reference, item), abs=1e-4)
    feeder.close()
    assert model.backend.usage().num_seqs == 0


def test_what_texts_have_in_common_is_fed_once() -> None:
    model, long = tiny(max_seqs=6), "The same five examples for all of them. "
    items = [Continuation(ids(f"{long}{number} is"), ids(choice)) for number in range(6) for choice in ("a", "b")]
    feeder = Feeder(model.backend)
    for batch in batches(items, model.backend):
        assert len(batch) > 1
        feeder.score(batch)
    own = len("0 i") * 6 + 12  # of the questions without their last tokens, and these
    assert sum(model.backend.fed) <= len(long) + own  # type: ignore[attr-defined]


def test_answers_are_those_of_greedy_decoding_one_at_a_time() -> None:
    model, reference = tiny(), ReferenceBackend(tiny_model("llama"))
    prompts = [Prompt(ids(question), 6) for question in QUESTIONS]
    ended: dict[int, list[int]] = {index: [] for index in range(3)}

    def is_over(index: int, token: int) -> bool:
        ended[index].append(token)
        return index == 2 and len(ended[index]) == 2

    (batch,) = batches(prompts, model.backend)
    answers = answered(Feeder(model.backend).generate(batch, is_over, frozenset()))
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        seq, fed = reference.fork(None), prompt.context
        for token in answer.tokens:
            (step,) = reference.forward([Extend(seq, fed, draw=Draw())])
            assert step.tokens == (token,)
            fed = step.tokens
        assert list(answer.tokens) == ended[index]
        assert len(answer.tokens) == len(answer.margins) == (2 if index == 2 else 6)


@pytest.mark.parametrize(("max_seqs", "capacity"), [(4, 400), (24, 100)])
def test_where_an_answer_ends_the_next_prompt_begins(max_seqs: int, capacity: int) -> None:
    lengths = [20, 2, 3, 4, 2, 6, 1, 2]  # of the answers; two are written at a time
    prompts = [Prompt(ids(f"Question {number}: "), 20) for number in range(len(lengths))]
    said = [0] * len(lengths)

    def is_over(index: int, token: int) -> bool:
        said[index] += 1
        return said[index] == lengths[index]

    alone = [answered(Feeder(tiny().backend).generate([one], nothing, frozenset()))[0] for one in prompts]
    model = tiny(max_seqs=max_seqs, capacity=capacity)
    (batch,) = batches(prompts, model.backend)  # however little fits at a time
    feeder = Feeder(model.backend)
    found = [*feeder.generate(batch, is_over, frozenset())]
    assert [index for index, _ in found] == [1, 2, 3, 4, 5, 6, 0, 7]
    for index, answer in found:
        assert answer.tokens == alone[index].tokens[: lengths[index]]
    assert len(model.backend.fed) == 1 + 20  # type: ignore[attr-defined]  # "Question ", and the longest answer
    feeder.close()
    assert model.backend.usage().num_seqs == 0


def test_answers_that_are_not_waited_for_leave_nothing_in_the_cache() -> None:
    model = tiny()
    feeder = Feeder(model.backend)
    answers = feeder.generate([Prompt(ids(question), 6) for question in QUESTIONS], nothing, frozenset())
    next(answers)
    answers.close()
    feeder.close()
    assert model.backend.usage().num_seqs == 0


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it() -> None:
    model = tiny()
    prompts = [Prompt(ids(question), 6) for question in QUESTIONS]
    whole = answered(Feeder(model.backend).generate(prompts, nothing, frozenset()))
    stop = whole[0].tokens[2]
    cut = answered(Feeder(model.backend).generate(prompts, nothing, frozenset({stop})))
    for one, other in zip(cut, whole, strict=True):
        end = other.tokens.index(stop) if stop in other.tokens else len(other.tokens)
        assert one.tokens == other.tokens[:end]


# ----------------------------------------------------------------------------------------------- two models, remembered


def pair(ours: Model, base: Model, memory: Memory) -> Answerer:
    listening = Listening.of(ours)
    feeders = [Feeder(ours.backend, listening), Feeder(base.backend, listening.without_probe())]
    return Answerer([ours, base], feeders, memory)


@pytest.mark.parametrize("kind", ["rows", "alora"])
def test_an_adapter_that_decides_in_every_pass_changes_no_bit(kind: str) -> None:
    answerer = pair(tiny(kind), tiny(), Memory(None, {}))
    for response in answerer.answer([*SCORINGS, *GENERATIONS], nothing):
        assert response.results[0] == response.results[1]
    found = answerer.memory.identity
    assert (found.different, found.inexact) == (0, 0)
    assert found.tokens >= sum(len(one.continuation) for one in SCORINGS)
    assert answerer.feeders[0].num_decisions > 2
    assert answerer.feeders[1].num_decisions == 0


@pytest.mark.llamacpp
def test_passes_are_the_same_where_texts_begin_in_a_cache_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from duologue.backends.llamacpp.backend import LlamaCppBackend
    from duologue.backends.llamacpp.gguf_convert import convert
    from duologue.backends.llamacpp.gguf_lora import write_lora
    from tiny_gguf import write_tiny_gguf

    network, lora = tiny_model("llama"), tmp_path / "lora.gguf"
    bare = write_tiny_gguf(network, "llama", tmp_path / "bare.gguf")
    convert(bare, tmp_path / "rows.gguf", rows=tiny_rows())
    write_lora(bare, tiny_lora(network), lora)
    limits: dict[str, Any] = {"threads": 1, "capacity": 512, "max_seqs": 24, "prefill_capacity": 256}
    decode, passes = llama_cpp.llama_decode, list[list[int]]()

    def counted(context: object, batch: Any) -> int:
        passes[-1].append(batch.n_tokens)
        return int(decode(context, batch))

    texts = ["Houses are high. ", "It rains in June. ", "My two cats sleep. "]  # that begin differently
    scorings = [Scoring(text, choice) for text in texts for choice in ("yes", "no")]
    generations = [Generation(text, ("\n",), 5) for text in texts]
    adapter = Adapter("alora", tuple(InputState), tiny_rows(), tiny_lora(network))
    template, found = Template.from_tokenizer(ByteTokenizer()), []
    with ExitStack() as closed:
        models = []
        for path, options, one in ((tmp_path / "rows.gguf", {"lora_path": lora}, adapter), (bare, {}, prompted())):
            backend = closed.enter_context(closing(LlamaCppBackend(path, **options, **limits)))
            models.append(Model("tiny", backend, template, one, PROBED, 128))
        monkeypatch.setattr(llama_cpp, "llama_decode", counted)
        listening = Listening.of(models[0])
        for model, heard in zip(models, (listening, listening.without_probe()), strict=True):
            passes.append([])
            answerer = Answerer([model], [Feeder(model.backend, heard)], Memory(None, {}))
            found.append(answerer.answer([*scorings, *generations], nothing))
    assert passes[0] == passes[1]
    assert found[0] == found[1]


def test_another_model_is_found_out() -> None:
    answerer = pair(tiny("alora"), tiny(seed=1), Memory(None, {}))
    answerer.answer([*SCORINGS, *GENERATIONS], nothing)
    found = answerer.memory.identity
    assert found.different > found.tokens // 2
    assert found.inexact == found.tokens


def test_equal_best_tokens_are_counted_as_ties() -> None:
    models = [tiny("rows"), tiny()]
    for model in models:
        model.backend.model.get_output_embeddings().weight.data.zero_()  # type: ignore[attr-defined]
    answerer = pair(*models, Memory(None, {}))
    answerer.answer(SCORINGS, nothing)
    assert answerer.memory.identity.ties == answerer.memory.identity.tokens > 0


class _Interrupted(Exception):
    pass


def test_an_interrupted_run_continues_where_it_was(tmp_path: Path) -> None:
    path, requests = tmp_path / "responses.jsonl", [*SCORINGS, *GENERATIONS]
    expected = Answerer([tiny()], [Feeder(tiny().backend)], Memory(None, {})).answer(requests, nothing)

    def interrupt(done: int, total: int) -> None:
        raise _Interrupted

    model = tiny(max_seqs=5)
    with pytest.raises(_Interrupted):
        Answerer([model], [Feeder(model.backend)], Memory(path, {"model": "a"})).answer(requests, interrupt)
    with path.open("a") as file:
        file.write('{"key": "00')  # killed while it was writing
    memory = Memory(path, {"model": "a"})
    done = [one for one in requests if memory.get(one) is not None]
    assert 0 < len(done) < len(requests)
    model = tiny()
    found = Answerer([model], [Feeder(model.backend)], memory).answer(requests, nothing)
    assert [one.results[0] for one in found][-3:] == [one.results[0] for one in expected][-3:]
    again = Answerer([model], [], Memory(path, {"model": "a"})).answer(requests, nothing)
    assert again == found


def test_an_answer_is_remembered_as_soon_as_it_ends(tmp_path: Path) -> None:
    path, short = tmp_path / "responses.jsonl", Generation("Why not? ", ("\n",), 1)

    def interrupt(done: int, total: int) -> None:
        raise _Interrupted

    for _ in range(2):
        answerer = pair(tiny("alora"), tiny(), Memory(path, {"model": "a"}))
        with pytest.raises(_Interrupted):
            answerer.answer([*GENERATIONS, short], interrupt)
        assert [model.backend.usage().num_seqs for model in answerer.models] == [1, 1]  # the trunks
    memory = Memory(path, {"model": "a"})
    assert memory.get(short) is not None
    assert sum(memory.get(one) is not None for one in GENERATIONS) == 1


def test_responses_of_another_set_up_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    Memory(path, {"model": "a"})
    with pytest.raises(UsageError, match="another --out"):
        Memory(path, {"model": "b"})


@pytest.mark.parametrize(
    ("request_", "context", "tokens"),
    [
        (Scoring("Why? ", "so"), "Why?", " so"),  # the space belongs to the continuation
        (Scoring("Why?", " so"), "Why?", " so"),
        (Scoring("x" * 300, " so"), "x" * 94, " so"),  # the context of 128, without room to listen
    ],
)
def test_texts_become_tokens_as_in_the_harness(request_: Request, context: str, tokens: str) -> None:
    seen: list[Continuation] = []

    class Looking(Feeder):
        def score(self, batch: Sequence[Continuation]) -> Any:
            seen.extend(batch)
            return super().score(batch)

    model = tiny()
    Answerer([model], [Looking(model.backend)], Memory(None, {})).answer([request_], nothing)
    assert seen == [Continuation(ids(context), ids(tokens))]


def test_an_answer_ends_before_a_stop_string_across_tokens() -> None:
    model = tiny()
    (whole,) = Answerer([model], [Feeder(model.backend)], Memory(None, {})).answer([Generation("Why?", (), 6)], nothing)
    text = whole.results[0]
    stop = text[2:4]
    (cut,) = Answerer([model], [Feeder(model.backend)], Memory(None, {})).answer(
        [Generation("Why?", (stop,), 6)], nothing
    )
    assert cut.results[0] == text[: text.index(stop)]


# ---------------------------------------------------------------------------------------------------------- benchmarks

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": [
        {"query": "Question: What is hot?", "choices": ["ice", "fire"], "gold": 1},
        {"query": "Question: What is wet?", "choices": ["rain", "sand", "ash"], "gold": 0},
        {"question": "What is big?", "choices": {"text": ["an ant", "a whale"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
    "hellaswag": [
        {
            "activity_label": "Cooking", "ctx_a": "A man cooks.", "ctx_b": "he", "label": 0,
            "endings": ["eats it.", "sings to the pan [title] for a day."],
        }
    ],
    "piqa": [{"query": "Question: open a door\n", "choices": ["turn the handle", "eat the handle"], "gold": 0}],
    "winogrande": [
        {"context_options": ["Sam thanked Sara because Sam", "Sam thanked Sara because Sara"],
         "continuation": "had been helped.", "gold": 0}
    ],
    "lambada_openai": [{"context": "They went to the", "continuation": "sea"}],
    "ifeval": [
        {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"key": 2, "prompt": "Speak.", "instruction_id_list": ["length_constraints:number_words",
         "change_case:capital_word_frequency"], "kwargs": [{"relation": "at least", "num_words": 300},
         {"capital_relation": "at least", "capital_frequency": 3}]},
    ],
    "mmlu_test": [{"subject": "anatomy", "question": "One?", "choices": ["a", "b", "c", "d"], "answer": 1}],
    "cmmlu_test": [{"subject": "agronomy", "question": "一？", "choices": ["a", "b", "c", "d"], "answer": 2}],
    "mbpp": [
        {"task_id": 5, "text": "t", "code": "c", "test_list": ["a", "b", "c"]},
        {"task_id": 11, "text": "Write add.", "code": "c", "test_list": ["assert add(1, 2) == 3"] * 3},
    ],
}  # fmt: skip


def write(folder: Path, stem: str, rows: Sequence[object]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{stem}.jsonl").write_text(text, encoding="utf-8")


def test_local_rows_become_those_of_the_hub(tmp_path: Path) -> None:
    for stem, rows in ROWS.items():
        write(tmp_path, stem, rows)
    arc, _ = read(tmp_path, "arc_easy")
    assert arc[0] == {
        "question": "What is hot?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    assert arc[2] == ROWS["arc_easy"][2]
    assert read(tmp_path, "winogrande")[0] == [
        {"sentence": "Sam thanked Sara because _ had been helped.", "option1": "Sam", "option2": "Sara", "answer": "1"}
    ]
    assert read(tmp_path, "lambada_openai")[0] == [{"text": "They went to the sea"}]
    assert read(tmp_path, "piqa")[0][0]["goal"] == "open a door"
    assert [row["task_id"] for row in read(tmp_path, "mbpp")[0]] == [11]  # of the test split


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "Question: x"}', "line 2: not a row of this benchmark .*'choices'.*fields query"),
        ('{"query": "x", "choices": ["a"], "gold": 7}', "line 2: not a row"),
        ("[1]", "line 2"),
        ('{"query": ', "line 2: not JSON"),
    ],
)
def test_a_damaged_row_is_named(line: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "arc_easy", ROWS["arc_easy"][:1])
    with (tmp_path / "arc_easy.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadData, match=message):
        read(tmp_path, "arc_easy")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file piqa\.jsonl"):
        read(tmp_path, "piqa")
    write(tmp_path, "mmlu_test", ROWS["mmlu_test"])
    with pytest.raises(UsageError, match=r"mmlu_dev\.jsonl"):
        read(tmp_path, "mmlu")


def test_tasks_are_chosen_by_name_or_group() -> None:
    assert len(chosen("paper")) == 9
    assert chosen("piqa, paper,piqa")[0] == "piqa"
    assert chosen("all") == list(BENCHMARKS)
    with pytest.raises(UsageError, match="no task 'arc'"):
        chosen("arc")


def test_a_limit_spreads_over_all_parts_and_is_always_the_same() -> None:
    assert spread([3, 2], None) == [[0, 1, 2], [0, 1]]
    assert spread([100, 50, 50], 4) == [[0, 50], [0], [0]]
    assert spread([2, 2], 9) == [[0, 1], [0, 1]]


# --------------------------------------------------------------------------------------------------------- comparisons


def test_differences_are_paired() -> None:
    ours, base = Scores("acc", {"acc": (1.0, 0.0, 1.0, 1.0)}), Scores("acc", {"acc": (1.0, 1.0, 1.0, 0.0)})
    found = difference(ours, base)
    assert (found["mean"], found["gained"], found["lost"]) == (0.0, 1, 1)
    assert found["high"] == pytest.approx(1.96 * (2 / 3) ** 0.5 / 2, abs=1e-3)
    assert difference(base, base) == {"mean": 0.0, "low": 0.0, "high": 0.0, "gained": 0, "lost": 0}


def test_the_standard_error_of_one_row_is_zero() -> None:
    assert standard_error(torch.ones(1).numpy()) == 0.0


# ---------------------------------------------------------------------------------------------------------- the harness


@pytest.fixture
def local(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval")
    for stem, rows in ROWS.items():
        write(tmp_path, stem, rows)
    return tmp_path


@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "piqa", "winogrande", "lambada_openai", "mbpp"])
def test_the_harness_asks_the_rows_of_a_local_file(name: str, local: Path) -> None:
    model = tiny(capacity=2000)
    answerer = Answerer([model], [Feeder(model.backend)], Memory(None, {}))
    (scores,) = evaluate(answerer, name, Source(local, run_code=True), nothing)
    assert scores.metric == BENCHMARKS[name].metric
    assert len(scores.values[scores.metric]) == len(read(local, name)[0])
    assert set(scores.values[scores.metric]) <= {0.0, 1.0}


def test_instructions_are_asked_as_turns_and_verified(local: Path) -> None:
    pytest.importorskip("langdetect")
    model = tiny(capacity=2000)
    answerer = Answerer([model], [Feeder(model.backend)], Memory(None, {}))
    (scores,) = evaluate(answerer, "ifeval", Source(local), nothing)
    assert scores.values["prompt_level_strict_acc"][1] == 0.0  # nobody says 300 words here
    assert len(scores.values["inst_level_strict_acc"]) == 3
    assert answerer.memory.get(Generation("Say it.", (), 1280, is_turn=True)) is not None


def test_scores_are_those_of_the_likelihoods(local: Path) -> None:
    model = tiny()
    answerer = Answerer([model], [Feeder(model.backend)], Memory(None, {}))
    (scores,) = evaluate(answerer, "arc_easy", Source(local, limit=2), nothing)
    row = read(local, "arc_easy")[0][0]
    asked_ = [Scoring(f"Question: {row['question']}\nAnswer:", f" {choice}") for choice in row["choices"]["text"]]
    assert all(answerer.memory.get(one) is not None for one in asked_)  # the prompt of the harness
    sums = [response.results[0][0] for response in answerer.answer(asked_, nothing)]
    lengths = [len(choice) for choice in row["choices"]["text"]]
    assert len(scores.values["acc"]) == 2
    assert scores.values["acc"][0] == float(sums[1] > sums[0])
    assert scores.values["acc_norm"][0] == float(sums[1] / lengths[1] > sums[0] / lengths[0])


def test_examples_of_a_subject_stand_before_its_questions(local: Path) -> None:
    rows = [{**ROWS["mmlu_test"][0], "subject": subject} for subject in _subjects()]
    write(local, "mmlu_test", rows)
    write(local, "mmlu_dev", [{**row, "question": f"Example {i}?"} for i in range(5) for row in rows])
    model, seen = tiny(), list[Request]()

    class Looking(Answerer):
        def answer(self, requests: Sequence[Request], tick: Any) -> Any:
            seen.extend(requests)
            return super().answer(requests, tick)

    (scores,) = evaluate(
        Looking([model], [Feeder(model.backend)], Memory(None, {})), "mmlu", Source(local, limit=3), nothing
    )
    assert len(scores.values["acc"]) == 3
    assert len(seen) == 12
    assert all(f"Example {i}?" in one.context for one in seen for i in range(5))


def _subjects() -> list[str]:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return [load_yaml(path)["dataset_name"] for path in sorted(folder.glob("mmlu_*.yaml"))]


def test_a_whole_measurement_proves_identity_and_is_resumed(local: Path, tmp_path: Path) -> None:
    responses = tmp_path / "responses.jsonl"
    source = Source(local)
    found = measure(tiny("alora"), tiny(), ["arc_easy", "piqa"], source, responses=responses, say=nothing)
    assert found["tasks"] == found["base"]
    assert found["tasks"]["arc_easy"]["n"] == 3
    assert list(found["tasks"]["arc_easy"])[:4] == ["acc_norm", "stderr", "n", "of"]
    assert found["differences"]["piqa"]["lost"] == 0
    assert found["identical_tokens"]["different"] == found["identical_tokens"]["inexact"] == 0
    assert found["identical_tokens"]["decisions"] > 0
    assert "3 of 2376" in tables(found)
    again = measure(tiny("alora"), tiny(), ["arc_easy", "piqa"], source, responses=responses, say=nothing)
    assert again["identical_tokens"]["decisions"] == 0  # nothing was asked again
    assert again["tasks"] == found["tasks"]


def test_another_adapter_of_the_same_name_is_not_resumed(local: Path, tmp_path: Path) -> None:
    responses, source = tmp_path / "responses.jsonl", Source(local)
    measure(tiny("alora"), tiny(), ["piqa"], source, responses=responses, say=nothing)
    ours = tiny("alora")
    retrained = replace(ours, adapter=replace(ours.adapter, rows=tiny_rows(seed=1)))
    with pytest.raises(UsageError, match="another --out"):
        measure(retrained, tiny(), ["piqa"], source, responses=responses, say=nothing)


def test_a_base_with_another_tokenizer_is_refused(local: Path) -> None:
    class Shifted(ByteTokenizer):
        def encode(self, text: str, *, special: bool = False) -> list[int]:
            return [token ^ 1 if token < 256 else token for token in super().encode(text, special=special)]

    other = replace(tiny(), name="other", template=Template.from_tokenizer(Shifted()))
    with pytest.raises(UsageError, match="another tokenizer"):
        measure(tiny(), other, ["piqa"], Source(local), responses=None, say=nothing)


# ------------------------------------------------------------------------------------------------- model-written code

try:
    sandbox.require()
    _can_isolate = True
except DuologueError:
    _can_isolate = False
isolated = pytest.mark.skipif(not _can_isolate, reason="this machine cannot isolate a process")


@isolated
@pytest.mark.parametrize(
    ("code", "is_passed"),
    [
        ("def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3", True),
        ("import math, re, heapq\nopen('/tmp/x', 'w').write(str(math.pi))", True),
        ("import os\nassert sorted(os.listdir('/tmp')) == []", True),
        ("assert False", False),
        ("def broken(:", False),
        ("import os\nos._exit(0)", False),
        ("raise SystemExit(0)", False),
        ("while True: pass", False),
        ("import os\nwhile True: os.fork()", False),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", False),
        ("x = bytearray(1 << 31)", False),
        ("for i in range(40): open(f'/tmp/{i}', 'wb').write(b'x' * 1_000_000)", False),
        ("open('/usr/x', 'w')", False),
        ("open('/etc/passwd')", False),
        ("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)", False),
    ],
)
def test_a_program_is_isolated(code: str, is_passed: bool) -> None:
    assert sandbox.passes(code) is is_passed


@isolated
def test_a_program_sees_neither_our_files_nor_our_processes(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    code = (
        f"import os\nassert not os.path.exists({str(tmp_path)!r})\nassert not os.path.exists({__file__!r})\n"
        f"try:\n    os.kill({os.getpid()}, 0)\nexcept ProcessLookupError:\n    pass\nelse:\n    raise AssertionError"
    )
    assert sandbox.passes(code)


def test_where_nothing_can_be_isolated_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_is_usable", None)
    monkeypatch.setattr(sandbox, "_TOOLS", ("no-such-tool",))
    with pytest.raises(UsageError, match="no-such-tool"):
        sandbox.passes("1")


# ---------------------------------------------------------------------------------------------------------- the command


def test_code_is_run_only_with_the_flag(local: Path) -> None:
    with pytest.raises(UsageError, match="--run-code"):
        require(["arc_easy", "mbpp"], Source(local))


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness_the_command_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "standard", "--tasks", "arc_easy"]) == 2
    assert 'pip install "duologue[eval]"' in capsys.readouterr().err


def test_an_unknown_task_is_explained_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "standard", "--tasks", "glue"]) == 2
    assert "no task 'glue'" in capsys.readouterr().err


def test_identities_add_up() -> None:
    assert Identity(1, 2, 3, 4) + Identity(10, 20, 30, 40) == Identity(11, 22, 33, 44)
