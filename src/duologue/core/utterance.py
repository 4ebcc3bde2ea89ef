"""Words of one speaker that grow and end."""


class Utterance:
    """One utterance as it stands. `skip` characters of its text belong to an earlier turn and are not counted again."""

    __slots__ = ("final", "id", "skip", "text")

    def __init__(self, name: str, text: str = "", *, final: bool = False, skip: int = 0) -> None:
        self.id = name
        self.text = text
        self.final = final
        self.skip = skip

    @property
    def words(self) -> str:
        """The part of the text that belongs to the turn in hand."""
        return self.text[self.skip :].strip()
