"""How probable it is that a request ends after each of its words, by the base model itself.

A cut of a request is often a request in itself; a language model knows which.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.text.template import Template

_BATCH = 32
_MARKS = ("?", ".", "!", "\n", "?\n", ".\n")


class ModelEnds:
    """A `duologue.data.forms.Ends`: the probability, after each word, of a final mark or the end of the turn."""

    def __init__(self, model: PreTrainedModel, tokenizer: HfTokenizer) -> None:
        template = Template.from_tokenizer(tokenizer)
        self._model, self._tokenizer = model, tokenizer
        self._opener = [*template.begin, *template.user("", first=True)]
        marks = {tokens[0] for mark in _MARKS if (tokens := tokenizer.encode(mark))}
        self._ends = sorted(marks | set(template.user_close[:1]))

    def __call__(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One probability per word of each text; none for a text without words."""
        found: list[Sequence[float]] = [()] * len(texts)
        order = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            for i, p in zip(batch, self._judge([texts[i].split(" ") for i in batch]), strict=True):
                found[i] = p
        return found

    def _judge(self, texts: list[list[str]]) -> list[list[float]]:
        """Texts in words, in one forward pass; padded on the right, where no word looks."""
        rows, lasts = [], []
        for words in texts:
            tokens, last = list(self._opener), []
            for number, word in enumerate(words):
                tokens += self._tokenizer.encode(word if number == 0 else f" {word}")
                last.append(len(tokens) - 1)
            rows.append(tokens)
            lasts.append(last)
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])  # [B, T]
        with torch.inference_mode():
            hidden = self._model.get_decoder()(ids, use_cache=False).last_hidden_state
            found = []
            for row, last in enumerate(lasts):
                logits = self._model.get_output_embeddings()(hidden[row, last]).float()  # [words, V]
                found.append(torch.softmax(logits, -1)[:, self._ends].sum(-1).tolist())
        return found
