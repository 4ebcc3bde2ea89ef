"""A linear probe: multinomial logistic regression on the base's hidden state at the last word, no token added.

It says how much of the states a model knows without any adapter. N samples, D hidden size, S states, T tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from duologue.backends.torch.huggingface import PreTrainedModel
from duologue.decisions.thresholds import Probabilities
from duologue.training.layout import Layout

_TOKENS_PER_PASS = 2048
_PENALTY = 1e-3  # on the squared weights of standardised features


def hidden_states(
    model: PreTrainedModel, layouts: Sequence[Layout], *, progress: Callable[[float], None] = lambda share: None
) -> Tensor:
    """Final hidden states [N, D] at the last token of each sample, in float32."""
    decoder = model.get_decoder()
    found: list[Tensor | None] = [None] * len(layouts)
    done = 0
    for batch in _batches(layouts):
        lengths = torch.tensor([layouts[i].length for i in batch])
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)  # [B, T], filled up behind the words
        for row, i in enumerate(batch):
            ids[row, : layouts[i].length] = torch.tensor([*layouts[i].context, *layouts[i].text])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        with torch.inference_mode():
            output = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            found[i] = output[row, lengths[row] - 1].float().clone()
        done += len(batch)
        progress(done / len(layouts))
    return torch.stack([state for state in found if state is not None])


def fit(features: Tensor, labels: Tensor, num_states: int) -> Callable[[Tensor], Probabilities]:
    """Train on features [N, D] and labels [N]; returns what gives probabilities [N, S] of other features."""
    mean, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    weights = torch.zeros(num_states, features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def logits(inputs: Tensor) -> Tensor:
        scaled = (inputs - mean) / spread
        return functional.linear(scaled, weights[:, :-1], weights[:, -1])

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits(features), labels) + _PENALTY * weights[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]

    def predict(inputs: Tensor) -> Probabilities:
        with torch.inference_mode():
            return functional.softmax(logits(inputs), -1).numpy().astype(np.float32)

    return predict


def _batches(layouts: Sequence[Layout]) -> list[list[int]]:
    """Indices of samples of similar length, together at most so many tokens with what fills them up."""
    batches: list[list[int]] = []
    for i in sorted(range(len(layouts)), key=lambda i: layouts[i].length):
        if not batches or (len(batches[-1]) + 1) * layouts[i].length > _TOKENS_PER_PASS:
            batches.append([])
        batches[-1].append(i)
    return batches
