"""A sample as sequences to fine-tune on: words and probe, for the state; words and response, for what is said.

These are two sequences because the probe is rolled back when an input is promoted: a response must neither see the
probe nor be shifted by its position. One sequence with a mask that hides the probe would be equivalent, but not every
attention accepts such a mask: sliding windows, fused kernels and recurrent layers do not. The price is that words with
a response are fed twice. Probes and states of earlier turns are left out for the same reason.

B samples, R of them with a response, T tokens, S states.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from duologue.data.samples import Sample
from duologue.text.template import Template
from duologue.training.layout import Layouts, Lost, Truncation, fit
from duologue.training.tensors import padded, target_rows
from duologue.types import InputState, Token

NO_LABEL = -100  # what cross-entropy ignores


@dataclass(frozen=True, slots=True)
class Example:
    """A sample as token ids."""

    sample: Sample
    heard: tuple[Token, ...]  # everything committed, the user's opener and words; the probe follows
    reply: tuple[Token, ...] = ()  # the same, the header, the response and its end; empty if there is no response
    num_response: int = 0  # number of tokens at the end of `reply` that the assistant says

    @property
    def length(self) -> int:
        """Tokens of the longer sequence, probe included."""
        return max(len(self.heard) + 1, len(self.reply))


def lay_out(samples: Sequence[Sample], template: Template, max_length: int) -> tuple[list[Example], Truncation]:
    """All samples with no sequence longer than `max_length`, and what was truncated.

    Turns are dropped in favour of a response that takes up to half of the length.

    Raises:
        UsageError: not even one word fits after the system prompt.
    """
    layouts = Layouts(template)
    # the assistant ends its turn up to the token at which a session stops sampling
    ends = [i for i, token in enumerate(template.close) if token in template.stop_tokens]
    end = template.close[: ends[0] + 1] if ends else ()
    examples, counts, num_responses_cut = [], Counter[Lost](), 0
    for sample in samples:
        layout, lost = fit(layouts, sample, max_length - 1)
        example = Example(sample, layout.tokens)
        if sample.state is InputState.PROCESS and (response := template.answer(sample.response)):
            said = (*response, *end)
            room = max_length - len(template.header) - min(len(said), max_length // 2)
            layout, lost_before_response = fit(layouts, sample, room)
            before = (*layout.tokens, *template.header)
            kept = said[: max_length - len(before)]
            example = replace(example, reply=(*before, *kept), num_response=len(kept))
            num_responses_cut += len(kept) < len(said)
            lost = max(lost, lost_before_response)
        examples.append(example)
        counts[lost] += 1
    return examples, Truncation(counts[Lost.TURNS], counts[Lost.WORDS], num_responses_cut)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples as tensors, padded on the right: a causal model never attends to what follows."""

    heard: Tensor  # [B, T], ending with the probe; its id stands for the added row
    heard_mask: Tensor  # [B, T], 1 where there is a token
    targets: Tensor  # [B, S], 1 for the label, less for accepted states
    replies: Tensor  # [R, T]
    replies_mask: Tensor  # [R, T]
    labels: Tensor  # [R, T], the next token; NO_LABEL where the assistant does not say it

    @classmethod
    def of(
        cls, examples: Sequence[Example], probe: Token, states: Sequence[InputState], accepted_weight: float
    ) -> "Batch":
        """A batch for `states`. `probe` is the id of the probe: the first after the base vocabulary."""
        heard, heard_mask = padded([(*example.heard, probe) for example in examples])
        replying = [example for example in examples if example.reply]
        replies, replies_mask = padded([example.reply for example in replying])
        labels = torch.full_like(replies, NO_LABEL)
        for row, example in enumerate(replying):
            end = len(example.reply)
            start = end - example.num_response
            labels[row, start - 1 : end - 1] = replies[row, start:end]
        targets = target_rows([example.sample for example in examples], states, accepted_weight)
        return cls(heard, heard_mask, targets, replies, replies_mask, labels)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))
