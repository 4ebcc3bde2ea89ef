"""The errors of the package, by what the caller can do about them.

`UsageError`: the call was wrong. `EngineError`: the backend failed. `RemoteError`: the other side of a connection
failed.
A message says what was passed, what was expected, and what to write instead. A call that raises changes nothing.
"""

from collections.abc import Iterable

from duologue.types import Seq


class DuologueError(Exception):
    """Root of all errors that this package raises on purpose."""


class UsageError(DuologueError):
    """The call cannot be carried out; change the call."""


def refuse(rules: Iterable[tuple[bool, str]], error: type[DuologueError] = UsageError) -> None:
    """Raise `error` with the message of the first of `rules` (is violated, message) that is violated."""
    for is_violated, message in rules:
        if is_violated:
            raise error(message)


def require(condition: bool, message: str) -> None:
    """Raise `UsageError` with `message` unless `condition` holds."""
    if not condition:
        raise UsageError(message)


class UnknownSeq(UsageError):
    """The backend has no such sequence."""


class ContextOverflow(UsageError):
    """The tokens do not fit into the model's context."""


class ModelNotFound(UsageError):
    """There is no model of that name or at that path."""


class BrokenModel(UsageError):
    """The model file is damaged or has an unknown format."""


class UnsupportedModel(UsageError):
    """The model cannot be used for duplex decoding: it cannot roll back, or ignores the attention mask."""


class AdapterMismatch(UsageError):
    """The adapter belongs to another model, or its folder is damaged."""


class WorseAdapter(UsageError):
    """The adapter decides worse than the model without it, prompted."""


class TemplateError(UsageError):
    """The model's chat template cannot be used: it is invalid, or its turns cannot be separated."""


class MissingDependency(UsageError):
    """An optional package is missing; the message says which command installs it."""


class BadData(UsageError):
    """A file of samples, a script or a recipe is invalid; the message says where."""


class EngineError(DuologueError):
    """The backend could not carry out a valid call."""


class CacheFull(EngineError):
    """There is no room for these tokens or for another sequence; free something and try again.

    If one of several caches is full, `seqs` are the sequences in it, and only freeing these helps. None means all.
    """

    def __init__(self, message: str, seqs: frozenset[Seq] | None = None) -> None:
        super().__init__(message)
        self.seqs = seqs

    def is_about(self, seqs: Iterable[Seq]) -> bool:
        """Whether any of `seqs` is in the full cache."""
        return self.seqs is None or not self.seqs.isdisjoint(seqs)


class EngineFull(EngineError):
    """The engine has no room for another session; close one, or try again later."""


class RemoteError(DuologueError):
    """The server failed, or violated the protocol."""
