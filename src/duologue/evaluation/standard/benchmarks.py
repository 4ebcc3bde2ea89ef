"""The benchmarks of the DUO paper's Table 1 and four more: their tasks in lm-evaluation-harness and their local files.

Prompts, names and metrics are those of the harness. A local file is converted row by row to the fields that the task
reads; rows that have these fields already stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.data.jsonl import read_rows
from duologue.errors import BadData, UsageError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark of the harness, of one task or of many."""

    folder: str  # of its YAML files, in the harness's `tasks`
    files: str  # pattern of these
    metric: str  # the one that is reported first
    stem: str  # of the local file: STEM.jsonl or STEM.jsonl.gz
    size: int  # rows of the whole benchmark
    convert: Callable[[Row], Row]
    shots: int = 0
    examples: str | None = None  # stem of the local file of examples for the prompt
    group: str | None = None  # field of a row that names its task's part (`dataset_name`)
    filter: str = "none"  # which of the harness's filters the metric is read behind
    runs_code: bool = False  # model-written programs are run
    is_turn: bool = False  # the prompt is what a user says, for the model's chat template


def _arc(row: Row) -> Row:
    if "question" in row:
        return row
    labels = "ABCDEFGH"[: len(row["choices"])]
    question = row["query"].removeprefix("Question: ")
    return {
        "question": question,
        "choices": {"text": row["choices"], "label": list(labels)},
        "answerKey": labels[row["gold"]],
    }


def _hellaswag(row: Row) -> Row:
    return {**{key: row[key] for key in ("activity_label", "ctx_a", "ctx_b", "endings")}, "label": str(row["label"])}


def _piqa(row: Row) -> Row:
    if "goal" in row:
        return row
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def _winogrande(row: Row) -> Row:
    if "sentence" in row:
        return row
    one, other = row["context_options"]
    same = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
    start = one[:same].rfind(" ") + 1  # of the word in which they differ
    return {
        "sentence": f"{one[:start]}_ {row['continuation']}",
        "option1": one[start:],
        "option2": other[start:],
        "answer": str(row["gold"] + 1),
    }


def _lambada(row: Row) -> Row:
    return row if "text" in row else {"text": f"{row['context']} {row['continuation']}"}


def _mmlu(row: Row) -> Row:
    return {key: row[key] for key in ("subject", "question", "choices", "answer")}


def _cmmlu(row: Row) -> Row:
    if "Question" in row:
        return row
    choices = dict(zip("ABCD", row["choices"], strict=True))
    return {"subject": row["subject"], "Question": row["question"], **choices, "Answer": "ABCD"[row["answer"]]}


def _bbh(row: Row) -> Row:
    return {key: row[key] for key in ("task", "input", "target")}


def _gsm8k(row: Row) -> Row:
    return {key: row[key] for key in ("question", "answer")}


def _humaneval(row: Row) -> Row:
    return {key: row[key] for key in ("task_id", "prompt", "test", "entry_point")}


def _ifeval(row: Row) -> Row:
    return {key: row[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")}


def _mbpp(row: Row) -> Row:
    return {key: row[key] for key in ("task_id", "text", "code", "test_list")}


BENCHMARKS: Mapping[str, Benchmark] = {
    "mmlu": Benchmark(
        "mmlu/default", "mmlu_*.yaml", "acc", "mmlu_test", 14042, _mmlu, shots=5, examples="mmlu_dev", group="subject"
    ),
    "cmmlu": Benchmark(
        "cmmlu", "cmmlu_*.yaml", "acc", "cmmlu_test", 11582, _cmmlu, shots=5, examples="cmmlu_dev", group="subject"
    ),
    "bbh": Benchmark(
        "bbh/cot_fewshot", "*.yaml", "exact_match", "bbh", 6511, _bbh, shots=3, group="task", filter="get-answer"
    ),
    "humaneval": Benchmark(
        "humaneval", "humaneval.yaml", "pass@1", "humaneval", 164, _humaneval, filter="create_test", runs_code=True
    ),
    "mbpp": Benchmark("mbpp", "mbpp.yaml", "pass@1", "mbpp", 500, _mbpp, shots=3, runs_code=True),
    "gsm8k": Benchmark(
        *("gsm8k", "gsm8k.yaml", "exact_match", "gsm8k_test", 1319, _gsm8k),
        shots=5,
        examples="gsm8k_fewshot",
        filter="strict-match",
    ),
    "arc_easy": Benchmark("arc", "arc_easy.yaml", "acc_norm", "arc_easy", 2376, _arc),
    "arc_challenge": Benchmark("arc", "arc_challenge.yaml", "acc_norm", "arc_challenge", 1172, _arc),
    "hellaswag": Benchmark("hellaswag", "hellaswag.yaml", "acc_norm", "hellaswag", 10042, _hellaswag),
    "piqa": Benchmark("piqa", "piqa.yaml", "acc_norm", "piqa", 1838, _piqa),
    "winogrande": Benchmark("winogrande", "default.yaml", "acc", "winogrande", 1267, _winogrande),
    "lambada_openai": Benchmark("lambada", "lambada_openai.yaml", "acc", "lambada_openai", 5153, _lambada),
    "ifeval": Benchmark("ifeval", "ifeval.yaml", "prompt_level_strict_acc", "ifeval", 541, _ifeval, is_turn=True),
}
"""By the name that the harness gives them. The first nine are the paper's."""

_MBPP_TEST = range(11, 511)  # task ids of the test split in a file with all of them


def read(folder: Path, name: str) -> tuple[list[Row], list[Row]]:
    """The rows of benchmark `name` in `folder` (or below it), and those of the examples for its prompt, converted.

    Raises:
        UsageError: there is no such file, or several.
        BadData: a row has not the fields that the task needs; the message names the line.
    """
    benchmark = BENCHMARKS[name]
    rows = _converted(_file(folder, benchmark.stem, name), benchmark.convert)
    if name == "mbpp":
        rows = [row for row in rows if row["task_id"] in _MBPP_TEST]
    if benchmark.examples is None:
        return rows, []
    return rows, _converted(_file(folder, benchmark.examples, name), benchmark.convert)


def _file(folder: Path, stem: str, name: str) -> Path:
    names = [f"{stem}.jsonl", f"{stem}.jsonl.gz", f"{stem}_sample.jsonl", f"{stem}_sample.jsonl.gz"]
    found = sorted(path for each in names for path in folder.rglob(each))
    if len(found) != 1:
        what = f"has {len(found)} files" if found else "has no file"
        raise UsageError(f"--data {folder} {what} {stem}.jsonl (or .jsonl.gz, or {stem}_sample), which {name} needs")
    return found[0]


def _converted(path: Path, convert: Callable[[Row], Row]) -> list[Row]:
    rows = []
    for line, row in read_rows(path):
        try:
            rows.append(convert(row))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise BadData(
                f"{path}, line {line}: not a row of this benchmark ({type(error).__name__}: {error}); it has the "
                f"fields {', '.join(row)}"
            ) from None
    if not rows:
        raise BadData(f"{path} has no rows")
    return rows


def chosen(names: str) -> list[str]:
    """The benchmarks in a list separated by commas; `paper` are the nine of the paper, `all` all.

    Raises:
        UsageError: there is no such benchmark.
    """
    groups = {"all": list(BENCHMARKS), "paper": list(BENCHMARKS)[:9]}
    found = [one for name in names.split(",") for one in groups.get(name.strip(), [name.strip()])]
    if unknown := [name for name in found if name not in BENCHMARKS]:
        raise UsageError(f"no task {unknown[0]!r}; there are {', '.join(BENCHMARKS)}, paper (the first nine) and all")
    return list(dict.fromkeys(found))


def spread(sizes: Sequence[int], limit: int | None) -> list[list[int]]:
    """Which rows of each part to ask: all, or `limit` of them, evenly spread over all parts, always the same."""
    total = sum(sizes)
    if limit is None or limit >= total:
        return [list(range(size)) for size in sizes]
    wanted = sorted(index * total // limit for index in range(limit))
    parts, start = [], 0
    for size in sizes:
        parts.append([index - start for index in wanted if start <= index < start + size])
        start += size
    return parts
