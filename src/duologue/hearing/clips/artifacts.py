"""What a classifier of the room alone can tell: if it guesses the states, clips give them away by their microphone.

N clips, R numbers about the room.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from duologue.decisions.timing import auc
from duologue.types import InputState
from duologue.voice.sound import RATE, Samples

_FRAME = RATE // 50
_NUM_BANDS = 16
_QUIET = 0.2  # share of the frames that are taken for the room
_PENALTY = 1.0

FloatArray = npt.NDArray[np.float32]


def room_of(sound: Samples) -> FloatArray:
    """The level of the loudest frames of a clip [S], and the spectrum of the quietest: [17], in dB."""
    count = len(sound) // _FRAME
    if not count:
        return np.full(_NUM_BANDS + 1, -120.0, np.float32)
    spectra = np.square(np.abs(np.fft.rfft(sound[: count * _FRAME].reshape(count, _FRAME))))[:, 1:]  # [T, 160]
    order = np.argsort(spectra.sum(1))
    quiet = spectra[order[: max(1, int(_QUIET * count))]].mean(0)
    bands = [quiet.sum(), *(part.mean() for part in np.array_split(quiet, _NUM_BANDS))]
    bands[0] = spectra[order[-max(1, count // 20) :]].sum(1).mean()
    return np.asarray(10.0 * np.log10(np.maximum(bands, 1e-12)), np.float32)


def room_aucs(rooms: FloatArray, states: Sequence[InputState], groups: Sequence[str]) -> dict[str, float]:
    """How well the room [N, R] tells each state from the others: the area under the ROC curve, 0.5 by chance.

    A linear classifier is trained on one half of the groups and judged on the other, and the reverse. States that do
    not occur in both halves are left out.
    """
    half = _halves(groups)
    found = {}
    for state in dict.fromkeys(states):
        is_state = np.array([one is state for one in states])
        scores = np.zeros(len(states))
        if any(is_state[half == side].all() or not is_state[half == side].any() for side in (False, True)):
            continue
        for side in (False, True):
            train = half == side
            scores[~train] = _fitted(rooms[train], is_state[train], rooms[~train])
        value = auc(scores, is_state)
        if value is not None:
            found[state.value] = round(value, 3)
    return found


def _halves(groups: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which clips [N] are in the second half: every other group."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] % 2 == 1 for group in groups])


def _fitted(x: FloatArray, y: npt.NDArray[np.bool_], other: FloatArray) -> npt.NDArray[np.float64]:
    """Scores of `other` [M, R] by ridge regression on x [N, R] and y [N], as log odds that are ranked only."""
    mean, spread = x.mean(0), x.std(0) + 1e-3
    design = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], 1)
    weights = np.linalg.solve(design.T @ design + _PENALTY * np.eye(design.shape[1]), design.T @ y.astype(np.float64))
    return np.asarray(((other - mean) / spread) @ weights[:-1] + weights[-1])
