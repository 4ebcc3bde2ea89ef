"""Where speech can be cut: at its end, in a pause, at the end of a word, or within a word. S samples at 16 kHz."""

import random
from dataclasses import dataclass

import numpy as np

from duologue.voice.engines.interfaces import Speech
from duologue.voice.sound import RATE, Samples, silence

_FRAME = RATE // 100
_SPEECH = 0.35  # of the way from the quietest to the loudest frame, in dB
_LEAST_RANGE_DB = 12.0  # with less between them there is no speech, or nothing else
_PAUSE_S = 0.2  # least length of a real pause
_AFTER_S = (0.1, 0.2)  # of quiet before a decision, whether the speaker goes on or not
_SEARCH_S = 0.06  # around the reported end of a word, for its quietest point
_FADE = RATE // 100


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A sound up to a moment at which a decision is made."""

    kind: str  # "whole", "pause", "word end" or "in a word"
    samples: Samples

    @property
    def is_whole(self) -> bool:
        """Whether the speaker has finished."""
        return self.kind == "whole"


def speech_frames(sound: Samples) -> list[tuple[int, int]]:
    """Where `sound` [S] is speech: begin and end of each stretch in samples. Shorter pauses than 0.2 s are part of it.

    None for silence and for even noise.
    """
    count = len(sound) // _FRAME
    if not count:
        return []
    power = np.square(sound[: count * _FRAME].reshape(count, _FRAME), dtype=np.float64).mean(1)
    levels = 10.0 * np.log10(np.maximum(power, 1e-10))
    quiet, loud = np.quantile(levels, (0.05, 0.98))
    if loud - quiet < _LEAST_RANGE_DB:
        return []
    found: list[tuple[int, int]] = []
    for frame in np.flatnonzero(levels > quiet + _SPEECH * (loud - quiet)):
        begin, end = int(frame) * _FRAME, (int(frame) + 1) * _FRAME
        if found and begin - found[-1][1] < _PAUSE_S * RATE:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


def cuts_of_recording(sound: Samples, chance: random.Random) -> list[Cut]:
    """A recording [S] whole, in one of its pauses, where it is quietest between words, and within a word.

    What follows the end and the quiet point is the recording's own noise, the same for both: neither silence nor the
    words that come next give away which it is. Sounds without a pause, or too short to be cut, have fewer cuts.
    """
    stretches = speech_frames(sound)
    if not stretches:
        return []
    begin, end = stretches[0][0], stretches[-1][1]
    after = int(chance.uniform(*_AFTER_S) * RATE)
    noise = _own_noise(sound, after)
    found = [Cut("whole", _faded(sound[:end], noise))]
    pauses = [one[1] for one in stretches[:-1] if one[1] - begin > RATE // 2]
    if pauses:
        found.append(Cut("pause", sound[: chance.choice(pauses) + after]))
    if dips := _dips(sound, begin + int(0.25 * (end - begin)), end - RATE // 3):
        found.append(Cut("word end", _faded(sound[: chance.choice(dips)], noise)))
    least = begin + int(0.3 * (end - begin))
    starts = [(max(first, least), last - RATE // 4) for first, last in stretches]
    within = [(first, last) for first, last in starts if first < last]
    if within:
        found.append(Cut("in a word", sound[: chance.randint(*chance.choice(within))]))
    return found


def cuts_of_speech(speech: Speech, sound: Samples, chance: random.Random) -> list[Cut]:
    """Synthesised `speech`, `sound` [S] at 16 kHz, whole, and cut at the end of a word or within one.

    The whole sentence was synthesised, so that the voice before a cut goes on as it does within a sentence.
    """
    stretches = speech_frames(sound)
    if not stretches:
        return []
    after = silence(int(chance.uniform(*_AFTER_S) * RATE))
    found = [Cut("whole", _faded(sound[: stretches[-1][1]], after))]
    ends = [mark.sample * RATE // speech.rate for mark in speech.marks[:-1]]
    ends = [end for end in ends if stretches[0][0] + RATE // 3 < end < stretches[-1][1] - RATE // 4]
    if not ends:
        return found
    end = chance.choice(ends)
    if chance.random() < 0.25:
        return [*found, Cut("in a word", sound[: end + RATE // 10])]
    return [*found, Cut("word end", _faded(sound[: _quietest(sound, end)], after))]


def _dips(sound: Samples, begin: int, end: int) -> list[int]:
    """The three quietest points of `sound` between two samples, at least a fifth of a second apart."""
    if end - begin < RATE // 2:
        return []
    power = np.convolve(np.square(sound[begin:end]), np.ones(2 * _FRAME, np.float32), "same")
    power[: 2 * _FRAME] = power[-2 * _FRAME :] = np.inf
    found: list[int] = []
    for _ in range(3):
        at = int(np.argmin(power))
        if not np.isfinite(power[at]):
            break
        found.append(begin + at)
        power[max(0, at - RATE // 5) : at + RATE // 5] = np.inf
    return found


def _own_noise(sound: Samples, count: int) -> Samples:
    """The quietest 100 ms of `sound` [S], forwards and backwards until there are `count` samples."""
    size = min(len(sound), RATE // 10)
    power = np.convolve(np.square(sound), np.ones(size, np.float32), "valid")
    at = int(np.argmin(power))
    quiet = sound[at : at + size]
    both = np.concatenate([quiet, quiet[::-1]])
    return np.tile(both, -(-count // len(both)))[:count]


def _quietest(sound: Samples, near: int) -> int:
    """The quietest point around sample `near`."""
    first = max(0, near - int(_SEARCH_S * RATE))
    around = sound[first : near + int(_SEARCH_S * RATE)]
    power = np.convolve(np.square(around), np.ones(_FRAME, np.float32), "same")
    return first + int(np.argmin(power))


def _faded(sound: Samples, after: Samples) -> Samples:
    """`sound` without a click at its end, and what comes after it."""
    size = min(_FADE, len(sound))
    faded = sound.copy()
    faded[len(sound) - size :] *= np.linspace(1.0, 0.0, size, dtype=np.float32)
    return np.concatenate([faded, after])
