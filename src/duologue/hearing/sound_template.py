"""A chat format in which users are heard instead of read: their turns are embedding rows among tokens.

A session knows words only. Each sound is written as a *mark*, one word that names its rows; where the session turns
text into ids, a mark becomes the rows.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, final

from duologue.core.prompt import Detokenizer, Probe, Template
from duologue.errors import require
from duologue.hearing.audio_model import AudioModel
from duologue.types import InputState, Role, ThoughtMarks, Token, Turn, VirtualId

_MARK = re.compile("⟦sound-[0-9a-f]{16}⟧")


@final
class _Sounds:
    """The rows of the newest sounds, by their marks. Sessions may read while another thread adds."""

    def __init__(self, max_rows: int) -> None:
        require(max_rows >= 1, f"max_rows {max_rows} remembers no sound")
        self._max_rows = max_rows
        self._rows: OrderedDict[str, tuple[VirtualId, ...]] = OrderedDict()  # the newest last
        self._num_rows = 0

    def add(self, rows: tuple[VirtualId, ...]) -> str:
        """Remember `rows` and return their mark. The oldest sounds are forgotten for them."""
        require(
            len(rows) <= self._max_rows,
            f"the sound has {len(rows)} rows, but only {self._max_rows} are remembered (max_rows); pass less of it",
        )
        mark = f"⟦sound-{blake2b(b''.join(row.row for row in rows), digest_size=8).hexdigest()}⟧"
        self._num_rows += len(rows) - len(self._rows.pop(mark, ()))
        self._rows[mark] = rows
        while self._num_rows > self._max_rows:
            self._num_rows -= len(self._rows.popitem(last=False)[1])
        return mark

    def rows(self, mark: str) -> tuple[VirtualId, ...]:
        """The rows of `mark`; none if they are forgotten."""
        return self._rows.get(mark, ())


@final
class SoundTemplate:
    """`template` with the users' turns as sound: opener, rows, and the closer as the first part of `header`.

    The token after the rows is the *boundary*, such as `<|audio_eos|>`. There the state is read, as in the paper (DUO,
    section 3.2): it is fed as the probe, rolled back, and when the turn is answered, fed again with the rest of the
    header. So whatever an adapter does at the boundary, answers are those of the model itself.

    Users' turns end with sound. Words may stand before it.

    Args:
        template: the model's chat format.
        audio: what encodes a sound.
        embed: `Backend.embed` of the backend that answers.
        max_rows: most rows that are remembered. A turn whose rows are forgotten, since so many came after it, is an
            empty sound when a long conversation is compacted.
    """

    def __init__(
        self,
        template: Template,
        audio: AudioModel,
        embed: Callable[[Any], tuple[VirtualId, ...]],
        *,
        max_rows: int = 8192,
    ) -> None:
        self._template = template
        self._audio = audio
        self._embed = embed
        self._sounds = _Sounds(max_rows)

    def write(self, sound: Any) -> str:
        """Encode `sound` and return its mark: what a session hears in its place.

        A sound that grows is one utterance with a new mark each time, or, where the encoder keeps what it has encoded,
        with one more mark after a space.

        Raises:
            UsageError: what `AudioModel.encode` and `Backend.embed` raise, or more rows than `max_rows`.
        """
        return self._sounds.add(self._embed(self._audio.encode(sound)))

    def probe(self, watch: Sequence[Token], states: Sequence[InputState]) -> Probe:
        """A probe that reads the state at the boundary itself: `watch` are the ids that stand for `states`.

        For a LoRA at the boundary, use the probe of an adapter with `boundary_rows` instead.
        """
        return Probe((self.boundary,), tuple(watch), tuple(states))

    @property
    def boundary(self) -> Token:
        """The token after the rows."""
        return self.header[0]

    # ------------------------------------------------------------------ core.prompt.Template

    @property
    def system(self) -> str | None:
        return self._template.system

    @property
    def is_elsewhere(self) -> bool:
        return self._template.is_elsewhere

    @property
    def begin(self) -> tuple[Token, ...]:
        return self._template.begin

    @property
    def header(self) -> tuple[Token, ...]:
        return (*self._audio.closer, *self._template.header)

    @property
    def close(self) -> tuple[Token, ...]:
        return self._template.close

    @property
    def stop_tokens(self) -> frozenset[Token]:
        return self._template.stop_tokens

    @property
    def thought(self) -> ThoughtMarks | None:
        return self._template.thought

    @property
    def thought_marks(self) -> tuple[ThoughtMarks, ...]:
        return self._template.thought_marks

    def with_system(self, text: str | None) -> "SoundTemplate":
        """The same format with another system prompt. It knows the same sounds."""
        other = SoundTemplate(self._template.with_system(text), self._audio, self._embed)
        other._sounds = self._sounds
        return other

    def user(self, text: str, *, first: bool) -> tuple[Token, ...]:
        words, sound = _split(text)
        return (*self._template.user(words, first=first), *self._heard(sound))

    def encode(self, text: str) -> tuple[Token, ...]:
        words, sound = _split(text)
        return (*self._template.encode(words), *self._heard(sound)) if sound else self._template.encode(text)

    def joint(self, previous: Role | None, role: Role) -> tuple[Token, ...]:
        closer = self._audio.closer if previous is Role.USER else ()
        return (*closer, *self._template.joint(previous, role))

    def opening(self, previous: Role | None) -> tuple[Token, ...]:
        closer = self._audio.closer if previous is Role.USER else ()
        return (*closer, *self._template.opening(previous))

    def end_thought(self, marks: ThoughtMarks) -> tuple[Token, ...]:
        return self._template.end_thought(marks)

    def lay_out(self, turns: Iterable[Turn], previous: Role | None = None) -> list[Token]:
        tokens: list[Token] = []
        for turn in turns:
            tokens += self.joint(previous, turn.role)
            if turn.role is Role.USER:
                tokens += self.user(turn.text, first=previous is None)
            else:
                told = self._template.lay_out([turn], previous)
                tokens += told[len(self._template.joint(previous, turn.role)) :]
            previous = turn.role
        return tokens

    def detokenizer(self) -> Detokenizer:
        return self._template.detokenizer()

    def word_ends(self, text: str) -> Sequence[int]:
        return self._template.word_ends(text)

    def is_word_end(self, text: str, position: int) -> bool:
        return self._template.is_word_end(text, position)

    def _heard(self, marks: Sequence[str]) -> tuple[Token, ...]:
        """Opener and rows of one sound, which may have been written in several parts. Without marks, nothing."""
        rows = [token for mark in marks for token in self._sounds.rows(mark)]
        return (*self._audio.opener, *rows) if marks else ()


def _split(text: str) -> tuple[str, list[str]]:
    """The words of a turn, and the marks in it."""
    return _MARK.sub("", text).strip(), _MARK.findall(text)
