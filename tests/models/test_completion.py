"""One answer without a conversation: the system prompt is used, and nothing stays on the backend."""

import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.errors import UsageError
from duologue.models.adapters import prompted
from duologue.models.completion import complete
from duologue.models.model import Model
from duologue.text.template import Template
from duologue.types import Token
from scripted import PROBE, ByteTokenizer


def scripted_model() -> Model:
    """It says the turns before its own."""

    def speak(ids: list[Token]) -> Token:
        *before, own = ByteTokenizer().decode(ids).split("<|im_start|>")[1:]
        answer = "; ".join(turn.removesuffix("<|im_end|>\n").replace("\n", ": ") for turn in before)
        at = len(own.partition("\n")[2])
        return answer.encode()[at] if at < len(answer) else 257

    backend = ScriptedBackend(speak, lambda ids: (0.25,) * 4, vocab_size=258, num_added=7)
    return Model("a script", backend, Template.from_tokenizer(ByteTokenizer()), prompted(), PROBE, 512)


def test_it_answers_to_system_prompt_and_text_and_frees_what_it_held() -> None:
    model = scripted_model()
    for _ in range(3):
        assert complete(model, "Be brief.", "what is it") == "system: Be brief.; user: what is it"
    assert model.backend.usage().num_seqs == 0


def test_an_answer_is_limited() -> None:
    assert complete(scripted_model(), "Be brief.", "what is it", max_answer=6) == "system"


def test_a_text_that_does_not_fit_is_explained() -> None:
    with pytest.raises(UsageError, match="a script cannot answer a text of 4000 characters"):
        complete(scripted_model(), "Be brief.", "word " * 800)
