"""Text and roles to ids and back, for any model, from its own chat template.

`chat_template` reads the template, and `splicing` tokenises its parts in their places. Here they become the segments
that a session puts together: begin, user, header, answer, close.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import final

from duologue.errors import TemplateError
from duologue.text import words
from duologue.text.chat_template import PLAIN, Renderer, Skeleton, take_apart
from duologue.text.detokenizer import Detokenizer
from duologue.text.splicing import Context, Place, Span, Splicer
from duologue.text.thoughts import THOUGHT_MARKS
from duologue.text.tokenizer import Tokenizer
from duologue.types import Role, ThoughtMarks, Token, Turn

__all__ = ["Template", "TemplateReport", "Tokenizer"]


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """How dialogues made of segments compare with the template's own rendering."""

    num_dialogues: int
    text_exact: bool  # every dialogue has the text that the template renders
    ids_exact: bool  # and the ids that the tokenizer gives to the whole text, unless an answer starts with a space
    differences: tuple[str, ...]  # for display; known deviations first


@final
@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A model's chat format with one system text bound to it, as segments of ids.

    A dialogue is begin + user(u1, first=True) + header + a1 + close + user(u2, first=False) + header + a2 + close …,
    where the ids of an answer are those that were sampled, or `answer(text)`. Made by `from_tokenizer`.

    A template that has no way to answer without a thought opens one at the end of `header` (`thought`). Answers of the
    history have none: `joint` puts them behind the header without that end.
    """

    tokenizer: Tokenizer
    is_plain: bool  # the model has no chat template: "User: …", "Assistant: …"
    system: str | None  # None: the default of the chat template
    begin: tuple[Token, ...]  # before the first user's opener: BOS, system turn; may be empty
    header: tuple[Token, ...]  # user closer and assistant opener, and what opens a thought
    close: tuple[Token, ...]  # closes an answer, up to the next user's opener; may be empty
    user_close: tuple[Token, ...]  # user closer before another user turn; an empty answer, if there is none
    again: tuple[Token, ...]  # closes an answer and opens another; with an empty turn of the user, if there is none
    stop_tokens: frozenset[Token]  # an answer ends before one of these
    thought: ThoughtMarks | None  # what `header` opens
    _opener: tuple[Token, ...]  # the part of `header` that does
    _joints: Mapping[tuple[Role | None, Role], tuple[Token, ...]]  # see `joint`
    _renderer: Renderer
    _skeleton: Skeleton
    _splicer: Splicer
    _at_first: Context  # what stands before the opener of the first user turn,
    _at_user: Context  # of a later one,
    _at_answer: Context  # and before an answer

    @property
    def is_elsewhere(self) -> bool:
        """Whether answers come from elsewhere: never, since these ids are fed to a model."""
        return False

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        chat_template: str | None = None,
        now: datetime | None = None,
    ) -> "Template":
        """Read the tokenizer's chat template, or the Jinja source `chat_template` instead.

        `system=None` leaves the system prompt to the template (some insert a default); "" is an empty system prompt.
        `now` is the time for templates that write the date.

        Raises:
            TemplateError: the template is invalid, never ends, or does not allow turns to be told apart.
        """
        source = chat_template if chat_template is not None else tokenizer.chat_template
        renderer = Renderer(PLAIN if source is None else source, tokenizer.special_text, now or datetime.now())
        return cls._build(tokenizer, renderer, Splicer(tokenizer), system, is_plain=source is None)

    @classmethod
    def _build(
        cls, tokenizer: Tokenizer, renderer: Renderer, splicer: Splicer, system: str | None, *, is_plain: bool
    ) -> "Template":
        skeleton = take_apart(renderer, splicer.split, system)
        begin, at_first = splicer.encode(skeleton.begin, Place.START)
        start, _ = splicer.encode([*skeleton.begin, *skeleton.first_opener], Place.START)
        if tokenizer.bos is not None and start[:1] != [tokenizer.bos]:
            # If the template does not write BOS, the tokenizer puts it before the rendered text.
            begin = [tokenizer.bos, *begin]
        told, at_answer = splicer.encode([Span(skeleton.told)], Place.MIDDLE)
        opener = splicer.encode([Span(skeleton.header.removeprefix(skeleton.told))], at_answer)[0]
        close, at_user = splicer.encode([Span(skeleton.close)], Place.MIDDLE)

        def middle(text: str) -> tuple[Token, ...]:
            return tuple(splicer.encode([Span(text)], Place.MIDDLE)[0])

        def silent_user(before: Iterable[Span], context: Context) -> tuple[Token, ...]:
            """A turn of the user without words, and the assistant's opener."""
            return (*splicer.encode(before, context)[0], *told)

        # Turns that the template does not allow in a row have an empty one of the other side between them.
        user_close = (*told, *close) if skeleton.user_close is None else middle(skeleton.user_close)
        if skeleton.again is not None:
            again = middle(skeleton.again)
        else:
            again = (*close, *silent_user([Span(skeleton.opener)], at_user))
        # The assistant's opener without the user's closer, if the header consists of these two.
        size = len(user_close)
        has_opener = skeleton.again is not None and tuple(told[:size]) == user_close
        joints = {
            (None, Role.USER): (),
            (None, Role.ASSISTANT): tuple(told[size:]) if has_opener else silent_user(skeleton.first_opener, at_first),
            (Role.USER, Role.USER): user_close,
            (Role.USER, Role.ASSISTANT): tuple(told),
            (Role.ASSISTANT, Role.USER): tuple(close),
            (Role.ASSISTANT, Role.ASSISTANT): again,
        }
        return cls(
            tokenizer=tokenizer,
            is_plain=is_plain,
            system=system,
            begin=tuple(begin),
            header=(*told, *opener),
            close=tuple(close),
            user_close=user_close,
            again=again,
            stop_tokens=tokenizer.stop_tokens | _opening_specials(tokenizer, splicer, skeleton),
            thought=skeleton.thought,
            _opener=tuple(opener),
            _joints=joints,
            _renderer=renderer,
            _skeleton=skeleton,
            _splicer=splicer,
            _at_first=at_first,
            _at_user=at_user,
            _at_answer=at_answer,
        )

    def with_system(self, text: str | None) -> "Template":
        """The same format with another system text."""
        return self._build(self.tokenizer, self._renderer, self._splicer, text, is_plain=self.is_plain)

    def user(self, text: str, *, first: bool) -> tuple[Token, ...]:
        """User opener and `text`, without a closer; `first` if the turn directly follows `begin`.

        The text is tokenised together with ordinary characters at the end of the opener, and never parsed for special
        tokens. White space around it is removed if the template does so. An empty text gives the opener alone.
        """
        skeleton = self._skeleton
        said = Span(skeleton.trim_user.apply(text), said=True)
        opener = skeleton.first_opener if first else (Span(skeleton.opener),)
        return tuple(self._splicer.encode([*opener, said], self._at_first if first else self._at_user)[0])

    def encode(self, text: str) -> tuple[Token, ...]:
        """Ids of plain text in the middle of a turn: no special tokens, and no space put before it."""
        return tuple(self._splicer.encode([Span(text, said=True)], Place.MIDDLE)[0])

    def answer(self, text: str) -> tuple[Token, ...]:
        """Ids of a whole answer after `header`; none for an empty text.

        They differ from those of `encode` if the format puts a space after the header.
        """
        said = self._skeleton.trim_assistant.apply(text)
        if not said:
            return ()
        spans = [Span(self._skeleton.lead), Span(said, said=True)]
        return tuple(self._splicer.encode(spans, self._at_answer)[0])

    def detokenizer(self) -> Detokenizer:
        """A new detokenizer for an answer that follows `header`."""
        puts_space = self._splicer.space_after(self._at_answer)
        return Detokenizer(self.tokenizer, self.header, skip=self._skeleton.lead or (" " if puts_space else ""))

    def word_ends(self, text: str) -> list[int]:
        """See `duologue.text.words`."""
        return words.word_ends(text)

    def is_word_end(self, text: str, position: int) -> bool:
        """See `duologue.text.words`."""
        return words.is_word_end(text, position)

    def decode(self, tokens: Sequence[Token]) -> str:
        """Text of a whole answer that follows `header`."""
        detokenizer = self.detokenizer()
        return "".join([*map(detokenizer.push, tokens), detokenizer.flush()])

    def render(self, turns: Sequence[Turn]) -> tuple[Token, ...]:
        """A whole dialogue made of segments. A last user turn stays open, without a header.

        A system turn at the start replaces the bound system text.

        Raises:
            TemplateError: see `joint`.
        """
        if turns and turns[0].role is Role.SYSTEM:
            return self.with_system(turns[0].text).render(turns[1:])
        tokens = [*self.begin, *self.lay_out(turns)]
        if turns and turns[-1].role is Role.ASSISTANT:
            tokens += self.close
        return tuple(tokens)

    def lay_out(self, turns: Iterable[Turn], previous: Role | None = None) -> list[Token]:
        """Ids of `turns` after a turn of `previous` (None: after `begin`), up to the last word.

        Raises:
            TemplateError: see `joint`.
        """
        tokens: list[Token] = []
        for turn in turns:
            is_user = turn.role is Role.USER
            said = self.user(turn.text, first=previous is None) if is_user else self.answer(turn.text)
            tokens += (*self.joint(previous, turn.role), *said)
            previous = turn.role
        return tokens

    def joint(self, previous: Role | None, role: Role) -> tuple[Token, ...]:
        """Ids between a turn of `previous` (None: `begin`) and one of `role`, without the user's opener.

        Where the template allows no turn of `role`, an empty one of the other side is among them.

        Raises:
            TemplateError: a system turn is not the first one.
        """
        if (previous, role) not in self._joints:
            raise TemplateError("a system turn must be the first of a dialogue, and the only one")
        return self._joints[previous, role]

    def opening(self, previous: Role | None) -> tuple[Token, ...]:
        """Ids that open an answer to be generated, after a turn of `previous` (None: after `begin`)."""
        return (*self.joint(previous, Role.ASSISTANT), *self._opener)

    @property
    def thought_marks(self) -> tuple[ThoughtMarks, ...]:
        """The marks of thoughts with which an answer may begin."""
        return THOUGHT_MARKS

    def end_thought(self, marks: ThoughtMarks) -> tuple[Token, ...]:
        """Ids that end a thought with these marks."""
        return tuple(self._splicer.encode([Span(marks.early_end)], Place.MIDDLE)[0])

    def check(self) -> TemplateReport:
        """Compare with the template's own rendering of several dialogues, some of them with awkward texts."""
        texts: list[str] = []
        ids: list[str] = []
        for turns in _AWKWARD:
            if self._skeleton.lead and any(not turn.text for turn in turns):
                continue  # a known deviation: nothing is put before an empty answer
            expected = self._renderer.render(self._with_system_turn(turns), reply=True)
            written = self._text(turns)
            if written != expected:
                texts.append(f"the template renders {expected!r}; the segments give {written!r}")
            # White space at the start of an answer could merge with the header, which is fed separately.
            merges = any(turn.role is Role.ASSISTANT and turn.text[:1].isspace() for turn in turns)
            if not merges and not self._same_ids(turns, expected):
                ids.append(f"the tokenizer gives other ids for {expected!r}")
        # One example of each kind is enough for display.
        differences = (*self._skeleton.notes, *texts[:1], *ids[:1])
        return TemplateReport(len(_AWKWARD), not texts, not ids, differences)

    def _with_system_turn(self, turns: Sequence[Turn]) -> list[Turn]:
        """`turns` with the bound system text, as the chat template expects it."""
        if self.system is None:
            return list(turns)
        if self._skeleton.folds:
            trim = self._skeleton.trim_user
            said = trim.apply(turns[0].text)
            text = f"{trim.apply(self.system)}\n\n{said}" if self.system else said
            return [replace(turns[0], text=text), *turns[1:]]
        return [Turn(Role.SYSTEM, self.system), *turns]

    def _text(self, turns: Sequence[Turn]) -> str:
        """The text of `render`, followed by `header`."""
        skeleton = self._skeleton
        text = "".join(span.text for span in skeleton.begin)
        opener = "".join(span.text for span in skeleton.first_opener)
        for index, turn in enumerate(turns):
            if turn.role is Role.USER:
                header = skeleton.header if index == len(turns) - 1 else skeleton.told
                text += opener + skeleton.trim_user.apply(turn.text) + header
            else:
                said = skeleton.trim_assistant.apply(turn.text)
                text += (skeleton.lead + said if said else "") + skeleton.close
            opener = skeleton.opener
        return text

    def _same_ids(self, turns: Sequence[Turn], expected: str) -> bool:
        bos = self.tokenizer.bos
        whole = self.tokenizer.encode(expected, special=True)
        if bos is not None and whole[:1] != [bos]:
            whole = [bos, *whole]
        return [*self.render(turns), *self.header] == whole


def _opening_specials(tokenizer: Tokenizer, splicer: Splicer, skeleton: Skeleton) -> set[Token]:
    """Special tokens at the start of an answer's closer and of a user's opener: sampling one ends the answer."""
    marks = [mark for text in (skeleton.close, skeleton.opener) for mark in splicer.split(text.lstrip())[:1]]
    return {tokenizer.special_tokens[mark.text] for mark in marks if not mark.said}


def _dialogue(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn(Role.ASSISTANT if index % 2 else Role.USER, text) for index, text in enumerate(texts))


_AWKWARD = (
    _dialogue("Hello"),
    _dialogue("What time is it?", "Ten past four.", "And in Oslo?"),
    _dialogue("one", "two", "three", "four", "five", "six", "seven"),
    _dialogue("  spaces before", "fine", "after  ", "too  ", " both "),
    _dialogue("spaces before", "  here", "end"),
    _dialogue("two\n\nparagraphs", "a list:\n- x\n- y", "\nline break first"),
    _dialogue("Grüße, 你好!", "naïve café, नमस्ते", "👩‍👩‍👧 🎉"),
    _dialogue("a", "", "an empty answer before this"),
    _dialogue("{{ braces }} {% and %} <tags> & \"quotes\" 'too'", "\\n is no line break", "end"),
)
