"""What a model that was trained for time division knows of it. `duologue train tdm` writes it beside the weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duologue.baselines.tdm import SLICE_TOKENS
from duologue.errors import AdapterMismatch, UsageError, refuse
from duologue.types import Token

FILE = "tdm.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class TdmModel:
    """The slices that a model was trained with."""

    idle: tuple[Token, ...]  # ids of `<idle>`
    slice_tokens: int = SLICE_TOKENS  # most tokens of the assistant
    base: str = ""  # the model that was trained, for display
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, and what it decides on held-out dialogues."""

    def __post_init__(self) -> None:
        refuse([(not self.idle or self.slice_tokens < 1, "idle and a slice need at least one token")])

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `Tdm` for this model."""
        return {"idle": self.idle, "slice_tokens": self.slice_tokens, "trained": True}

    def save(self, folder: Path) -> None:
        """Write `tdm.json` into the model's folder."""
        content = {
            "format": FORMAT,
            "base": self.base,
            "idle": list(self.idle),
            "slice_tokens": self.slice_tokens,
            "training": dict(self.facts),
        }
        path = folder / FILE
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, folder: Path | None) -> "TdmModel":
        """Read `tdm.json` from a model's folder.

        Raises:
            AdapterMismatch: the model was not trained for time division, or the file is damaged.
        """
        path = None if folder is None else folder / FILE
        if path is None or not path.is_file():
            raise AdapterMismatch(
                f"{folder or 'this model'} was not trained for time division: there is no {FILE} beside its weights. "
                "Train one with `duologue train tdm`, and give its folder `model`"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise AdapterMismatch(
                    f"{path} has format {content['format']!r}; this version of duologue reads format {FORMAT}"
                )
            return cls(
                idle=tuple(int(token) for token in content["idle"]),
                slice_tokens=int(content["slice_tokens"]),
                base=str(content["base"]),
                facts=dict(content["training"]),
            )
        except AdapterMismatch:
            raise
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, UsageError) as error:
            raise AdapterMismatch(f"{path} is damaged: {type(error).__name__}: {error}") from None
