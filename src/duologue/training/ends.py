"""How probable it is that a request ends after each of its words, by the base model itself.

A cut of a request is often a request in itself; a language model knows which. One forward pass per text.
"""

import torch
from transformers import PreTrainedModel

from duologue.backends.hf_tokenizer import HfTokenizer
from duologue.template import Template

_MARKS = ("?", ".", "!", "\n", "?\n", ".\n")


class ModelEnds:
    """A `duologue.data.forms.Ends`: the probability, after each word, of a final mark or the end of the turn."""

    def __init__(self, model: PreTrainedModel, tokenizer: HfTokenizer) -> None:
        template = Template.from_tokenizer(tokenizer)
        self._model, self._tokenizer = model, tokenizer
        self._opener = [*template.begin, *template.user("", first=True)]
        marks = {tokens[0] for mark in _MARKS if (tokens := tokenizer.encode(mark))}
        self._ends = sorted(marks | set(template.user_close[:1]))
        self._known: dict[str, list[float]] = {}

    def __call__(self, text: str) -> list[float]:
        """One probability per word of `text`; nothing for a text without words."""
        parts = text.split(" ") if text else []
        if text not in self._known:
            self._known[text] = self._judge(parts) if parts else []
        return self._known[text]

    def _judge(self, parts: list[str]) -> list[float]:
        tokens, lasts = list(self._opener), []
        for number, part in enumerate(parts):
            tokens += self._tokenizer.encode(part if number == 0 else f" {part}")
            lasts.append(len(tokens) - 1)
        with torch.inference_mode():
            logits = self._model(torch.tensor([tokens])).logits[0, lasts].float()
        return [float(p) for p in torch.softmax(logits, -1)[:, self._ends].sum(-1)]
