"""Signs that a decider has learned nothing, on held-out samples. N samples, S states."""

import numpy as np
import numpy.typing as npt

from duologue.decisions.calibration import TEMPERATURES, apply_temperature, chance_loss, fit_temperature, mean_loss
from duologue.decisions.thresholds import Probabilities


def fault(p: Probabilities, right: npt.NDArray[np.bool_]) -> str | None:
    """What shows that a decider with probabilities p, [N, S], has not learned which columns are `right`, [N, S].

    None if nothing does. The lowest temperature is no sign: a decider may be more careful than it needs to be.
    """
    if not np.isfinite(p).all():
        return "the probabilities are not finite"
    if len(set(p.argmax(1).tolist())) == 1:
        return "all held-out samples get the same state"
    temperature, chance = fit_temperature(p, right), chance_loss(right)
    loss = mean_loss(apply_temperature(p, temperature), right)
    if loss >= chance:
        return f"the held-out loss is {loss:.2f}, and {chance:.2f} by chance"
    if temperature == TEMPERATURES[-1]:
        return f"even divided by {temperature:.1f}, its logits are too large to be calibrated"
    return None
