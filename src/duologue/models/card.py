"""The model card of an adapter: `README.md` in the form of the Hugging Face hub, from what `adapter.json` says.

A card states what is recorded and nothing else: how the adapter is used, what it was trained
on, and what its training measured. The licence is left to whoever publishes it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from duologue.models.adapters import Adapter

_MARK = "<!-- Written by `duologue train`, which writes it again. Remove this line to keep your changes. -->"
_PARTS = {"all": "all", "idle": "assistant silent", "over_an_answer": "over an answer"}


def card(adapter: Adapter) -> str:
    """The card of a trained adapter, as Markdown with a YAML header."""
    base = str(adapter.facts.get("base") or adapter.name or "its base model")
    sections = [_header(adapter, base), _introduction(adapter, base), _use(adapter)]
    sections += [section for section in (_data(adapter.facts), _figures(adapter), _thresholds(adapter)) if section]
    return "\n\n".join(sections) + "\n"


def write_card(adapter: Adapter, folder: Path) -> None:
    """Write the card to `README.md` in `folder`. One that somebody wrote or changed there stays as it is."""
    path, text = folder / "README.md", card(adapter)
    if not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace"):
        path.write_text(f"{text}\n{_MARK}\n", encoding="utf-8")


def _header(adapter: Adapter, base: str) -> str:
    lines = ["library_name: duologue"]
    if "/" in base and not base.startswith(("/", ".")):  # a name on the hub; file names mean nothing elsewhere
        lines.append(f"base_model: {json.dumps(base)}")
    lines += ["tags:", *(f"- {tag}" for tag in ("duplex", "turn-taking", adapter.kind))]
    return "\n".join(["---", *lines, "---"])


def _introduction(adapter: Adapter, base: str) -> str:
    states = ", ".join(f"*{state.value}*" for state in adapter.states)
    parts = "added rows" if adapter.lora is None else f"added rows and a LoRA of rank {adapter.lora.rank} at the probe"
    if adapter.cascade is not None:
        parts += (
            ", and the rows of a cascade: on llama.cpp they are read first, and the LoRA only where they are unsure"
        )
    timing = " It also predicts whether the speaker goes on." if adapter.has_timing else ""
    return (
        f"# Duplex adapter for {_plain(base)}\n\nAn adapter of kind `{adapter.kind}` ({parts}) for Duologue. It "
        f"decides about words while they are heard: {states}.{timing} The base model "
        "is unchanged, and so is what it says."
    )


def _use(adapter: Adapter) -> str:
    fingerprint = adapter.fingerprint
    fits = (
        ""
        if fingerprint is None
        else f"\n\nIt fits models with {fingerprint.vocab_size} tokens, width {fingerprint.hidden_size} and "
        f"{fingerprint.num_layers} layers whose tokenizer has the fingerprint `{fingerprint.tokenizer}`; others are "
        "refused."
    )
    return f"## Use\n\n```bash\nduologue chat --model MODEL --adapter THIS_FOLDER\n```{fits}"


def _data(facts: Mapping[str, Any]) -> str:
    samples, sources = facts.get("samples") or {}, facts.get("sources") or {}
    if not samples:
        return ""
    seconds = facts.get("seconds")
    took = "" if seconds is None else f" Training took {round(float(seconds) / 60)} minutes."
    text = f"## Training data\n\n{sum(samples.values())} samples.{took}"
    tables = [_table(("state", "samples"), samples.items())]
    if sources:
        tables.append(_table(("source", "samples"), sorted(sources.items())))
    return "\n\n".join([text, *tables])


def _figures(adapter: Adapter) -> str:
    """What training measured on held-out samples, in percent."""
    rows = []
    for part, label in _PARTS.items():
        found = (adapter.facts.get("dev") or {}).get(part)
        if found:
            recalls = [found["recall"].get(state.value) for state in adapter.states]
            rows.append((label, found["n"], *map(_percent, (found["answer_f1"], found["false_answer_rate"], *recalls))))
    if not rows:
        return ""
    states = [f"{state.value}, recall" for state in adapter.states]
    text = _table(("held-out samples", "n", "answer F1", "false answers", *states), rows)
    if adapter.compared is not None:
        ours, prompted = map(_percent, adapter.compared)
        text += f"\n\nMean recall of the states: {ours}; the same model prompted: {prompted}."
    return f"## Evaluation\n\nIn percent, on samples of the training sources that were not trained on.\n\n{text}"


def _thresholds(adapter: Adapter) -> str:
    rows = [
        (weights, label, *(f"{each.of(state):.2f}" for state in adapter.states))
        for weights, pair in adapter.thresholds.items()
        for label, each in zip(("silent", "speaking"), pair, strict=True)
    ]
    header = ("weights", "assistant", *(state.value for state in adapter.states))
    return f"## Thresholds\n\n{_table(header, rows)}" if rows else ""


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Names of sources and models come from files: they stay one cell, or one heading."""
    return " ".join(text.replace("|", "\\|").split())


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * float(share):.1f}"
