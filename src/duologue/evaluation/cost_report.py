"""The result of `duologue bench cost` for people: Markdown tables, and a picture."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from duologue import pictures
from duologue.evaluation.markdown import MISSING, table

_TITLES = {
    "cdm": "channel division (ours)",
    "sequential": "sequential",
    "tdm": "time division, idles kept",
    "tdm_skip_idle": "time division, idles skipped",
    "turns": "turns",
    "vad": "voice activity",
}
Sessions = Mapping[str, Mapping[str, Any]]


def tables(sessions: Sessions) -> str:
    """All tables, with what they show."""
    kinds = ", ".join(f"{_TITLES[name]}: {one['decider']}" for name, one in sessions.items() if name.startswith("tdm"))
    return "\n\n".join(
        [
            summary(sessions),
            "Times in ms are compute time; further waiting on the conversation's clock is in brackets. "
            f"Decisions of {kinds}.{_apart(sessions)}",
            growth(sessions),
        ]
    )


def growth(sessions: Sessions) -> str:
    """How passes and KV entries grow with the conversation, and with the slices heard over an answer."""
    return "\n\n".join(
        [
            "Passes / KV entries after each exchange of the first conversation:",
            _growth(sessions, "by_exchange", "exchanges", "kv_entries"),
            "Passes / peak KV entries of one answer, by the number of slices heard over it:",
            _growth(sessions, "by_slices", "slices", "kv_entries_peak"),
        ]
    )


def summary(sessions: Sessions) -> str:
    """One row per kind of session."""
    header = [
        "",
        "said",
        "passes",
        "listening",
        "speaking",
        "overlap",
        "silence",
        "tokens fed",
        "s",
        "KV peak",
        "after 1 h silence",
        "first word",
        "cut",
    ]
    rows = []
    for name, one in sessions.items():
        by_phase = one["passes_by_phase"]
        rows.append(
            [
                _TITLES[name],
                f"{one['spoken_tokens']:,}",
                f"{one['passes']:,}",
                *(f"{by_phase[phase]:,}" for phase in ("listening", "speaking", "overlap", "silence")),
                f"{one['tokens_fed']:,}",
                f"{one['seconds']:.1f}",
                _held(one["kv_entries_peak"], one["kv_bytes_peak"]),
                _held(one["kv_entries_after_hour"], one["kv_bytes_after_hour"]),
                _reaction(one, "first_word"),
                _reaction(one, "interruption"),
            ]
        )
    return table(header, rows)


def short(sessions: Sessions) -> str:
    """The figures that matter, one row per kind of session."""
    header = [
        "",
        "passes per token said",
        "extra passes per slice overheard",
        "first word",
        "cut",
        "KV entries per hour of silence",
    ]
    rows = []
    for name, one in sessions.items():
        first, last = one["by_slices"][0], one["by_slices"][-1]
        is_heard = last["overlap_passes"] > 0
        more = (last["passes"] - first["passes"]) / last["slices"]
        rows.append(
            [
                _TITLES[name],
                f"{one['passes'] / max(1, one['spoken_tokens']):.2f}",
                f"{more:.0f}" if is_heard else MISSING,
                _reaction(one, "first_word"),
                _reaction(one, "interruption"),
                f"{one['kv_entries_of_hour']:,}",
            ]
        )
    return table(header, rows)


def _apart(sessions: Sessions) -> str:
    apart, judged = (sum(one.get(name, 0) for one in sessions.values()) for name in ("judged_apart", "judged"))
    return f" {apart:,} of {judged:,} decisions took a pass of their own." if apart else ""


def _growth(sessions: Sessions, name: str, count: str, entries: str) -> str:
    counts = [str(row[count]) for row in next(iter(sessions.values()))[name]]
    rows = [
        [_TITLES[kind], *(f"{row['passes']:,} / {row[entries]:,}" for row in one[name])]
        for kind, one in sessions.items()
    ]
    return table([count, *counts], rows)


def _held(entries: int, num_bytes: int) -> str:
    return f"{entries:,} ({num_bytes / 2**20:.1f} MiB)"


def _reaction(one: Mapping[str, Any], name: str) -> str:
    passes = one[f"{name}_passes"]
    if passes is None:
        return MISSING
    waited = one[f"{name}_wait_ms"]
    words = f"{passes} pass{'' if passes == 1 else 'es'}, {one[f'{name}_ms']:.0f} ms"
    return f"{words} (+{waited:.0f})" if waited else words


def draw(sessions: Sessions, path: Path) -> None:
    """Write a PNG file: passes per phase, KV entries by exchange, and passes by slices heard over an answer.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    panels = [partial(fill, sessions=sessions) for fill in (_draw_passes, _draw_growth, _draw_slices)]
    pictures.draw(path, panels, width=11.0)


def _draw_passes(axes: Any, sessions: Sessions) -> None:
    names = [name.replace("_", "\n", 1) for name in sessions]
    floor = [0.0] * len(names)
    for phase in ("listening", "speaking", "overlap", "silence"):
        shares = [one["passes_by_phase"][phase] / max(1, one["spoken_tokens"]) for one in sessions.values()]
        axes.bar(names, shares, bottom=floor, label=phase)
        floor = [below + share for below, share in zip(floor, shares, strict=True)]
    axes.tick_params(axis="x", labelsize=7)
    axes.set(title="Forward passes", ylabel="per token said", ylim=(0.0, 1.15 * max(floor)))
    axes.legend(fontsize=7, loc="upper center", ncols=4)


def _draw_growth(axes: Any, sessions: Sessions) -> None:
    _draw_lines(axes, sessions, "by_exchange", "exchanges", "kv_entries")
    axes.set(title="KV, as the conversation grows", xlabel="exchanges", ylabel="entries")


def _draw_slices(axes: Any, sessions: Sessions) -> None:
    _draw_lines(axes, sessions, "by_slices", "slices", "passes")
    axes.set(title="Passes, as more is overheard", xlabel="slices", ylabel="passes")


def _draw_lines(axes: Any, sessions: Sessions, name: str, x: str, y: str) -> None:
    styles = ("o-", "s--", "^-", "v--", "x:", "+:")  # distinct, because some lines coincide
    for (kind, one), style in zip(sessions.items(), styles, strict=False):
        axes.plot([row[x] for row in one[name]], [row[y] for row in one[name]], style, markersize=4, label=kind)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=7)
