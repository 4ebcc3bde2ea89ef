"""One tree of errors, by what the caller can do about them.

`UsageError`: your call. `EngineError`: the backend. `RemoteError`: the other side of a wire.
An error says what came, what was expected, and what to write instead; a call that raises leaves everything as it was.
"""

from collections.abc import Iterable

from duologue.types import Seq


class DuologueError(Exception):
    """Root of every error this package raises on purpose."""


class UsageError(DuologueError):
    """The call cannot be carried out as it stands; change the call."""


class UnknownSeq(UsageError):
    """No sequence of that name is open on this backend."""


class ContextOverflow(UsageError):
    """The tokens would not fit into the model's context."""


class ModelNotFound(UsageError):
    """No model of that name or at that place."""


class BrokenModel(UsageError):
    """There is a model file, but it cannot be read as one."""


class UnsupportedModel(UsageError):
    """The model works, but not for duplex decoding: it cannot roll back, or ignores the attention mask."""


class AdapterMismatch(UsageError):
    """The adapter was made for another model, or its folder is damaged."""


class TemplateError(UsageError):
    """The model's chat template cannot be taken apart into turns."""


class MissingDependency(UsageError):
    """An optional package is needed; the message says which command installs it."""


class BadData(UsageError):
    """A file of samples, a script or a recipe has something in it that cannot be used; the message says where."""


class EngineError(DuologueError):
    """The backend could not do what was a legal request."""


class CacheFull(EngineError):
    """No room for these tokens or for another sequence; free something and try again.

    Where a backend has several caches and one of them is full, `seqs` are the sequences that lie in it: room that is
    made elsewhere does not help, and what feeds other caches has nothing to do with it. None stands for all.
    """

    def __init__(self, message: str, seqs: frozenset[Seq] | None = None) -> None:
        super().__init__(message)
        self.seqs = seqs

    def is_about(self, seqs: Iterable[Seq]) -> bool:
        """Whether any of `seqs` lies in the full cache."""
        return self.seqs is None or not self.seqs.isdisjoint(seqs)


class EngineFull(EngineError):
    """The engine has no room for another session; close one, or try again later."""


class RemoteError(DuologueError):
    """A server on the other side failed or spoke out of turn."""
