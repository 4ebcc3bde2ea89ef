"""Rooms, noise and levels, drawn alike for all classes, so that no class has a microphone of its own.

A clip is spoken, cut, and only then put into a room: reverberation and noise go on after the cut as they do after the
end of a sentence. S samples at 16 kHz.
"""

import random
from dataclasses import dataclass

import numpy as np

from duologue.voice.sound import RATE, Samples, gain, level_db, resampled

_COLOURS = {"white": 0.0, "pink": -0.5, "brown": -1.0}  # exponent of the amplitude over frequency
_TELEPHONE = 8000  # samples per second
_SILENT_DB = -90.0


@dataclass(frozen=True, slots=True)
class Room:
    """Where a clip is heard."""

    seed: int  # of its echoes and its noise
    decay_s: float  # until reverberation has fallen by 60 dB; 0: none
    echo_db: float  # of the reverberation, relative to the direct sound
    colour: str  # of the noise
    noise_db: float  # relative to the speech
    level_db: float  # of the speech, relative to full scale
    is_telephone: bool  # only up to 4 kHz

    @classmethod
    def draw(cls, chance: random.Random) -> "Room":
        """A room by chance."""
        return cls(
            seed=chance.getrandbits(32),
            decay_s=chance.choice([0.0, chance.uniform(0.1, 0.5)]),
            echo_db=chance.uniform(-18.0, -6.0),
            colour=chance.choice(sorted(_COLOURS)),
            noise_db=chance.uniform(-40.0, -12.0),
            level_db=chance.uniform(-38.0, -14.0),
            is_telephone=chance.random() < 0.15,
        )

    def applied(self, sound: Samples) -> Samples:
        """`sound` [S] in this room, as long as before. Silence gets its noise at the level that speech would have."""
        chance = np.random.default_rng(self.seed)
        loudness = level_db(sound[np.abs(sound) > 1e-4]) if np.abs(sound).max(initial=0.0) > 1e-4 else _SILENT_DB
        heard = sound * gain(self.level_db - loudness) if loudness > _SILENT_DB else sound
        if self.decay_s:
            heard = _reverberant(heard, self.decay_s, self.echo_db, chance)
        heard = heard + _noise(len(sound), self.colour, chance) * gain(self.level_db + self.noise_db)
        if self.is_telephone:
            heard = resampled(resampled(heard, RATE, _TELEPHONE), _TELEPHONE, RATE)
            heard = np.pad(heard, (0, max(0, len(sound) - len(heard))))[: len(sound)]
        return np.clip(heard, -1.0, 1.0).astype(np.float32)


def _reverberant(sound: Samples, decay_s: float, echo_db: float, chance: np.random.Generator) -> Samples:
    size = int(decay_s * RATE)
    echo = chance.standard_normal(size) * 10.0 ** (-3.0 * np.arange(size) / size)
    echo[: RATE // 200] = 0.0  # the first reflection comes after 5 ms
    response = np.concatenate([[1.0], echo / np.sqrt(np.square(echo).sum()) * gain(echo_db)])
    length = len(sound) + len(response)
    spectrum = np.fft.rfft(sound, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[: len(sound)].astype(np.float32)


def _noise(count: int, colour: str, chance: np.random.Generator) -> Samples:
    """Noise [count] of level 0 dB."""
    if not count:
        return np.zeros(0, np.float32)
    spectrum = np.fft.rfft(chance.standard_normal(count))
    spectrum *= np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0) ** _COLOURS[colour]
    noise = np.fft.irfft(spectrum, count)
    return np.asarray(noise / max(1e-12, float(np.sqrt(np.square(noise).mean()))), np.float32)
