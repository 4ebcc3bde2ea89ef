"""How probable it is, according to the base model itself, that a request ends after each of its words.

A cut request is often a complete request; a language model knows which.
"""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.data.forms import is_unspaced, join, words
from duologue.text.template import Template
from duologue.text.words import needs_space
from duologue.training.tensors import padded

_BATCH = 32
_MARKS = ("?", ".", "!", "\n", "?\n", ".\n")
_WIDE_MARKS = ("？", "。", "！")


class EndOfTurnModel:
    """A `duologue.data.forms.EndOfTurn`: after each word, the probability of a final mark or the end of the turn."""

    def __init__(self, model: PreTrainedModel, tokenizer: HfTokenizer) -> None:
        template = Template.from_tokenizer(tokenizer)
        self._model, self._tokenizer = model, tokenizer
        opener = torch.tensor([[*template.begin, *template.user("", first=True)]], device=model.device)
        with torch.inference_mode():
            self._opener = model.get_decoder()(opener, use_cache=True).past_key_values  # of all texts, computed once
        marks = {tokens[0] for mark in _MARKS if (tokens := tokenizer.encode(mark))}
        wide = {tokens[0] for mark in _WIDE_MARKS if len(tokens := tokenizer.encode(mark)) == 1}
        self._ends = sorted(marks | set(template.user_close[:1]))
        self._unspaced_ends = sorted(wide | {*self._ends})  # where a text has no spaces

    def __call__(self, texts: Sequence[str]) -> list[Sequence[float]]:
        """One probability per word of each text; empty for a text without words."""
        found: dict[str, Sequence[float]] = {"": ()}
        order = sorted(filter(None, texts), key=len)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            found |= zip(batch, self._score([words(text) for text in batch]), strict=True)
        return [found[text] for text in texts]

    def _score(self, texts: list[list[str]]) -> list[list[float]]:
        """The same for texts that are split into words, in one forward pass of ids [B, T]."""
        rows, word_ends = [], []
        for parts in texts:
            tokens, ends, is_spaced = [], [], not is_unspaced(join(parts))
            for number, word in enumerate(parts):
                needs = number and (is_spaced or needs_space(parts[number - 1], word))
                tokens += self._tokenizer.encode(f" {word}" if needs else word)
                ends.append(len(tokens) - 1)
            rows.append(tokens)
            word_ends.append(ends)
        with torch.inference_mode():
            past = copy.deepcopy(self._opener)
            past.batch_repeat_interleave(len(rows))
            decoder = self._model.get_decoder()
            hidden = decoder(padded(rows)[0], past_key_values=past).last_hidden_state  # [B, T, D]
            head = self._model.get_output_embeddings()
            logits = [head(hidden[row, ends]).float() for row, ends in enumerate(word_ends)]  # each [words, V]
            marks = [self._unspaced_ends if is_unspaced(join(parts)) else self._ends for parts in texts]
            return [torch.softmax(each, -1)[:, ids].sum(-1).tolist() for each, ids in zip(logits, marks, strict=True)]
