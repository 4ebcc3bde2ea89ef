"""A linear probe: multinomial logistic regression on the base's hidden state at the last word, with no added token.

It measures how much a model knows about the states without any adapter. N samples, D hidden size, S states.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from duologue.backends.torch.huggingface import PreTrainedModel
from duologue.decisions.thresholds import Probabilities
from duologue.training.layout import Layout
from duologue.training.tensors import batches_by_tokens, padded

_TOKENS_PER_PASS = 2048
_PENALTY = 1e-3  # on the squared weights of standardised features


def hidden_states(
    model: PreTrainedModel, layouts: Sequence[Layout], *, progress: Callable[[float], None] = lambda share: None
) -> Tensor:
    """Final hidden states [N, D] at the last token of each sample, in float32."""
    found: dict[int, Tensor] = {}
    order = sorted(range(len(layouts)), key=lambda i: layouts[i].length)
    for batch in batches_by_tokens(order, lambda i: layouts[i].length, _TOKENS_PER_PASS):
        ids, mask = padded([layouts[i].tokens for i in batch])  # [B, T]
        with torch.inference_mode():
            output = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, i in enumerate(batch):
            found[i] = output[row, layouts[i].length - 1].float().clone()
        progress(len(found) / len(layouts))
    return torch.stack([found[i] for i in range(len(layouts))])


def fit(features: Tensor, labels: Tensor, num_states: int) -> Callable[[Tensor], Probabilities]:
    """Fit to features [N, D] and labels [N]; the result maps other features [N, D] to probabilities [N, S]."""
    mean, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    weights = torch.zeros(num_states, features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def logits(inputs: Tensor) -> Tensor:
        """Features [N, D] to logits [N, S]."""
        return functional.linear((inputs - mean) / spread, weights[:, :-1], weights[:, -1])

    def loss() -> Tensor:
        """The regularised loss [], with its gradient."""
        optimizer.zero_grad()
        value = functional.cross_entropy(logits(features), labels) + _PENALTY * weights[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]

    def predict(inputs: Tensor) -> Probabilities:
        """Features [N, D] to probabilities [N, S]."""
        with torch.inference_mode():
            return functional.softmax(logits(inputs), -1).numpy().astype(np.float32)

    return predict
