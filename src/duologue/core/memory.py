"""What became of utterances that are no longer open but may still grow: judged and dropped, or part of a turn."""

from collections import OrderedDict
from collections.abc import Iterable

from duologue.core.utterance import Utterance

_SIZE = 32  # utterances remembered of each kind


class Memory:
    """Recognises late words of utterances. One that has ended is not remembered: its id may name a new one."""

    def __init__(self) -> None:
        self._dropped: OrderedDict[str, str] = OrderedDict()  # id to the text that was judged
        self._answered: OrderedDict[str, str] = OrderedDict()  # id to the text that became part of a turn

    def drop(self, utterances: Iterable[Utterance]) -> None:
        """These were dropped: more words bring them back whole (design rule 1)."""
        _remember(self._dropped, utterances)

    def answer(self, utterances: Iterable[Utterance]) -> None:
        """These are part of a turn that is being answered: more words are a turn of their own."""
        _remember(self._answered, utterances)

    def take_back(self, utterances: Iterable[Utterance]) -> None:
        """The turn of these is open again."""
        for utterance in utterances:
            if utterance.skip and not utterance.final:
                self._answered[utterance.id] = utterance.text[: utterance.skip]
            else:
                self._answered.pop(utterance.id, None)

    def was_dropped(self, utterance: str, text: str, *, final: bool) -> bool:
        """Whether exactly these words were judged and dropped, so that only their end can be new."""
        if self._dropped.get(utterance) != text:
            return False
        if final:
            del self._dropped[utterance]
        return True

    def num_answered(self, utterance: str, text: str) -> int:
        """Characters of `text` that are part of an earlier turn already."""
        before = self._answered.get(utterance)
        if before is None:
            return 0
        if text.startswith(before):
            return len(before)
        num_words = len(before.split())  # revised since: leave out as many words
        rest = text.split(maxsplit=num_words)
        return len(text) - len(rest[num_words]) if len(rest) > num_words else len(text)

    def end(self, utterance: str) -> None:
        """It has ended: its id may be used anew."""
        self._answered.pop(utterance, None)
        self._dropped.pop(utterance, None)


def _remember(where: OrderedDict[str, str], utterances: Iterable[Utterance]) -> None:
    for utterance in utterances:
        if not utterance.final:
            where[utterance.id] = utterance.text
    while len(where) > _SIZE:
        where.popitem(last=False)
