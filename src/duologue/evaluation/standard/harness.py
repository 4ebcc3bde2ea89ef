"""Runs benchmarks through lm-evaluation-harness: its tasks, prompts, filters and metrics, on our backends.

The only module that imports the harness (extra `eval`).
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from duologue.errors import BadData, MissingDependency, UsageError
from duologue.evaluation.standard import sandbox
from duologue.evaluation.standard.answering import Answerer, Generation, Request, Response, Scoring, Tick
from duologue.evaluation.standard.benchmarks import BENCHMARKS, Benchmark, Row, read, spread

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

_SEED = 1234  # with which the harness chooses examples
_MAX_GENERATED = 256  # tokens, where a task names no limit, as in the harness

Say = Callable[[str, float | None], None]
"""Called with the current stage and the share of it that is done, if known."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The values of one benchmark, a row after the other; the reported metric has one for each row."""

    metric: str  # the one to report
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows come from, and how many are asked."""

    data: Path | None  # a folder of local files; None: the hub
    limit: int | None = None  # rows of each benchmark, evenly spread; None: all
    run_code: bool = False  # programs that the model wrote may be run, isolated


def require(names: Sequence[str], source: Source) -> None:
    """Check what can be checked before a model is loaded.

    Raises:
        MissingDependency: the harness is not installed.
        UsageError: a benchmark runs code, and that is not allowed or not possible here; or a file is missing.
        BadData: a file is damaged.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependency('benchmarks need lm-evaluation-harness: pip install "duologue[eval]"')
    runs_code = [name for name in names if BENCHMARKS[name].runs_code]
    if runs_code and not source.run_code:
        raise UsageError(
            f"{' and '.join(runs_code)} run programs that the model writes; allow it with --run-code: each runs "
            "isolated, without network and files, for five seconds"
        )
    if runs_code:
        sandbox.require()
    if source.data is not None:
        for name in names:
            read(source.data, name)


def evaluate(answerer: Answerer, name: str, source: Source, say: Say) -> list[Scores]:
    """The scores of each of the answerer's models on benchmark `name`.

    Raises:
        UsageError, BadData: see `require`; or the hub cannot be reached.
    """
    say(f"{name}: reading", None)
    tasks = _tasks(name, source)
    rows = dict(zip(tasks, spread([len(task.eval_docs) for task in tasks.values()], source.limit), strict=True))
    tasks = {task: built for task, built in tasks.items() if rows[task]}
    rows = {task: chosen for task, chosen in rows.items() if chosen}

    def tick(done: int, total: int) -> None:
        say(f"{name}: asking", done / total)

    scores = []
    for index in range(len(answerer.models)):
        for task in tasks.values():
            task.set_fewshot_seed(_SEED)  # the same examples for each model
        found = _evaluated(_language_model(answerer, index, name, tick), tasks, rows)
        scores.append(_scores(BENCHMARKS[name], found))
    return scores


def _evaluated(language_model: Any, tasks: Mapping[str, Any], rows: Mapping[str, list[int]]) -> Any:
    import lm_eval.evaluator

    return lm_eval.evaluator.evaluate(
        lm=language_model,
        task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
        samples=dict(rows),
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=True,
    )


def _language_model(answerer: Answerer, index: int, name: str, tick: Tick) -> Any:
    """The harness's view of one of the answerer's models, for benchmark `name`."""
    from lm_eval.api.model import LM

    class DuologueModel(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            asked = [Scoring(*request.args) for request in requests]
            return [(result[0], result[1]) for result in self._results(asked)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            raise UsageError("benchmarks of perplexity are not supported")

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            is_turn = BENCHMARKS[name].is_turn
            return list(self._results([_generation(*request.args, is_turn=is_turn) for request in requests]))

        def _results(self, asked: Sequence[Request]) -> list[Any]:
            responses: list[Response] = answerer.answer(asked, tick)
            return [response.results[index] for response in responses]

    return DuologueModel()


def _generation(context: str, settings: Mapping[str, Any], *, is_turn: bool) -> Generation:
    until = settings.get("until") or []
    max_tokens = settings.get("max_gen_toks", _MAX_GENERATED)
    if settings.get("do_sample") or settings.get("temperature"):
        raise UsageError(f"the task samples ({dict(settings)}); only greedy answers are supported")
    return Generation(context, (until,) if isinstance(until, str) else tuple(until), int(max_tokens), is_turn)


# --- Tasks -----------------------------------------------------------------------------------------------------------


def _tasks(name: str, source: Source) -> dict[str, "ConfigurableTask"]:
    """The harness's tasks of a benchmark, with the rows of the local file or of the hub."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    for logger in ("lm_eval", "lm-eval"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    benchmark = BENCHMARKS[name]
    if name == "ifeval":
        _import_verifiers()
    local = None if source.data is None else read(source.data, name)
    folder = Path(lm_eval.tasks.__file__).parent / benchmark.folder
    tasks = {}
    for path in sorted(folder.glob(benchmark.files)):
        config = load_yaml(path, resolve_func=not benchmark.runs_code)
        config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
        config["num_fewshot"] = benchmark.shots
        if benchmark.runs_code:
            config |= _code_settings(name)
        if local is not None:
            part = None if benchmark.group is None else config["dataset_name"]
            config |= _local_data(config, benchmark, part, *local)
        try:
            task = ConfigurableTask(config=config)
        except (OSError, ValueError, RuntimeError) as error:  # of `datasets`
            raise UsageError(f"{name} cannot be read from {source.data or 'the hub'}: {error}") from error
        tasks[config["task"]] = task
    return tasks


def _local_data(
    config: Mapping[str, Any], benchmark: Benchmark, part: str | None, rows: Sequence[Row], examples: Sequence[Row]
) -> dict[str, Any]:
    """Settings that make a task read these rows instead of a dataset of the hub."""
    from datasets import Dataset

    def of_part(all_rows: Sequence[Row]) -> Any:
        chosen = [row for row in all_rows if part is None or row[benchmark.group or ""] == part]
        if not chosen:
            raise BadData(f"the local file has no rows whose {benchmark.group} is {part}")
        return Dataset.from_list(chosen)

    tested = "test_split" if config.get("test_split") else "validation_split"
    splits = {config[tested]: of_part(rows)}
    settings: dict[str, Any] = {"training_split": None, "validation_split": None, "test_split": None}
    settings[tested] = config[tested]
    if examples:
        splits[config["fewshot_split"]] = of_part(examples)
    return {**settings, "custom_dataset": lambda **_: splits, "dataset_path": None, "dataset_name": None}


def _code_settings(name: str) -> dict[str, Any]:
    """Instead of the harness's metric, which runs programs in a thread of this process: one that isolates them."""

    def passed(references: Sequence[str], predictions: Sequence[Any]) -> float:
        (reference,), (prediction,) = references, predictions
        program = prediction[0] if isinstance(prediction, list) else prediction
        return float(sandbox.passes(f"{program}\n{reference}\n"))

    passed.__name__ = BENCHMARKS[name].metric
    settings: dict[str, Any] = {
        "metric_list": [{"metric": passed, "aggregation": "mean", "higher_is_better": True}],
        "unsafe_code": True,
    }
    if name == "humaneval":

        def whole_programs(resps: Sequence[Sequence[str]], docs: Sequence[Row]) -> list[list[str]]:
            return [[doc["prompt"] + one for one in resp] for resp, doc in zip(resps, docs, strict=True)]

        settings["filter_list"] = [
            {"name": "create_test", "filter": [{"function": "custom", "filter_fn": whole_programs}]}
        ]
    else:
        settings["fewshot_config"] = {"sampler": "first_n", "samples": _mbpp_examples()}
    return settings


def _import_verifiers() -> None:
    """Import IFEval's verifiers without the sentence splitter that they download; one of 25 finds words with it."""
    import nltk

    download, nltk.download = nltk.download, lambda *_: True
    try:
        from lm_eval.tasks.ifeval import instructions_util
    finally:
        nltk.download = download
    words = nltk.tokenize.NLTKWordTokenizer()
    instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=words.tokenize)
    import langdetect

    langdetect.DetectorFactory.seed = 0  # or it answers differently every time


def _mbpp_examples() -> list[Row]:
    """The harness's three examples. They stand in a module that downloads its metric when it is imported."""
    import ast

    import lm_eval.tasks

    path = Path(lm_eval.tasks.__file__).parent / "mbpp" / "utils.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples":
            (returned,) = [part for part in node.body if isinstance(part, ast.Return)]
            assert returned.value is not None
            found: list[Row] = ast.literal_eval(returned.value)
            return found
    raise UsageError("this version of lm-evaluation-harness has no examples for MBPP where they were in 0.4.13")


def _scores(benchmark: Benchmark, result: Any) -> Scores:
    """The values of every row, over all tasks of the benchmark."""
    values: dict[str, list[float]] = {}
    for samples in result["samples"].values():
        for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
            for metric in sample["metrics"] if sample["filter"] == benchmark.filter else ():
                if metric != "perplexity":
                    found = sample[metric]  # of IFEval a list with one value for each instruction
                    values.setdefault(metric, []).extend(map(float, found if isinstance(found, list) else [found]))
    if benchmark.metric not in values:
        raise UsageError(f"the harness returned {sorted(values)} instead of {benchmark.metric}")
    return Scores(benchmark.metric, {metric: tuple(each) for metric, each in values.items()})
