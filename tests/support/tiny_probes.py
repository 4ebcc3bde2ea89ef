"""The probe for the rows of `tiny_models.tiny_rows`, on models with `VOCAB_SIZE` ids."""

from duologue.core.prompt import Probe
from duologue.testing.tiny_models import VOCAB_SIZE
from duologue.types import InputState

TINY_PROBE = Probe(
    tokens=(VOCAB_SIZE,), watch=tuple(VOCAB_SIZE + 1 + i for i in range(len(InputState))), states=tuple(InputState)
)
