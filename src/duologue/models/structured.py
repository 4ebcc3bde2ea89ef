"""Answers in the form of a JSON schema."""

from collections.abc import Mapping
from typing import Any

from duologue.core.backend import Constraint
from duologue.errors import UsageError
from duologue.models.model import Model


def json_constraint(model: Model, schema: Mapping[str, Any]) -> Constraint:
    """A grammar for one conversation with `model`, whose answers are then JSON texts of `schema`.

    Raises:
        UsageError: the model does not run on llama.cpp, or the schema cannot be turned into a grammar.
    """
    name = model.backend.info.name
    if name != "llamacpp":
        raise UsageError(
            f"answers in the form of a JSON schema need llama.cpp, and {model.name} runs on {name}: "
            "load a GGUF file with --backend llamacpp"
        )
    from duologue.backends.llamacpp.grammar import JsonGrammar
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    tokenizer = model.template.tokenizer
    assert isinstance(tokenizer, GgufTokenizer), "llama.cpp has its own"
    return JsonGrammar(schema, tokenizer)
