"""The two tokenizers behind the protocol: transformers' and llama.cpp's, the same for the same model."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

import tiny_tokenizers
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.errors import BrokenModel, ModelNotFound
from duologue.text.detokenizer import Detokenizer
from duologue.text.template import Template
from duologue.text.tokenizer import Tokenizer
from duologue.types import Role, Turn, well_formed

HOSTILE = [
    "",
    "\ud800",
    "x\udfffy",
    "\ud83d\ude00",
    "\x00",
    "a\x00b",
    "<s>",
    "</s><s>",
    "\ufffe",
    "\x01",
    "\r\n\t",
    "<0x41>",
]


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [("plain 你好", "plain 你好"), ("\ud83d\ude00", "😀"), ("\ud83d", "\ufffd"), ("\ude00\ud83d", "\ufffd\ufffd")],
)
def test_surrogates_become_characters(given_text: str, expected: str) -> None:
    assert well_formed(given_text) == expected


@pytest.fixture(
    params=[
        *("bytelevel", "first", "legacy"),
        pytest.param("spm", marks=pytest.mark.llamacpp),
        pytest.param("smollm2-hf", marks=pytest.mark.smollm2),
        pytest.param("smollm2-gguf", marks=[pytest.mark.smollm2, pytest.mark.llamacpp]),
    ]
)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytelevel":
        return tiny_tokenizers.bytelevel(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    if request.param in ("first", "legacy"):
        space: str = request.param
        return tiny_tokenizers.sentencepiece_like(["<s>", "</s>"], space=space, bos_token="<s>", eos_token="</s>")
    made: Tokenizer = request.getfixturevalue(request.param.replace("-", "_"))
    return made


@pytest.fixture(scope="session")
def smollm2_hf() -> HfTokenizer:
    from transformers import AutoTokenizer

    path = tiny_tokenizers.smollm2()
    return HfTokenizer(AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Tokenizer:
    pytest.importorskip("llama_cpp")
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    return GgufTokenizer.from_file(tiny_tokenizers.smollm2())


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A SentencePiece vocabulary in a GGUF file."""
    pytest.importorskip("llama_cpp")
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    return GgufTokenizer.from_file(tiny_tokenizers.write_spm(tmp_path_factory.mktemp("spm") / "tiny.gguf"))


def test_text_comes_back(tokenizer: Tokenizer) -> None:
    for text in [*tiny_tokenizers.LINES, *HOSTILE, "two  spaces ", "🎉 漢字 e\u0301", "x" * 3000]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == well_formed(text)
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert set(tokenizer.special_tokens.values()).isdisjoint(tokens)
        detokenizer = Detokenizer(tokenizer)
        assert "".join([*map(detokenizer.push, tokens), detokenizer.flush()]) == well_formed(text)


def test_special_tokens_stand_for_themselves_when_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens
    for text, token in list(tokenizer.special_tokens.items())[:20]:
        assert token in tokenizer.encode(f"a{text}b", special=True)
        assert tokenizer.decode([token]) == text


def test_characters_without_an_id_do_no_harm(tokenizer: Tokenizer) -> None:
    decoded = tokenizer.decode(tokenizer.encode("a\U00040000\U0010ffffb"))
    assert decoded.startswith("a")
    assert decoded.endswith("b")


def test_ids_without_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([-1, tokenizer.vocab_size, 2**31 - 1]) == ""


def test_stops_are_ids_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens[tokenizer.special_text["eos_token"]] in tokenizer.stop_tokens
    assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.stop_tokens)


def test_the_wrapped_tokenizer_stays_as_it_is() -> None:
    made = tiny_tokenizers.bytelevel(["<s>"], bos_token="<s>")
    before = made.wrapped.encode("a<s>b")
    assert made.special_tokens["<s>"] in before
    made.encode("a<s>b")
    assert made.wrapped.encode("a<s>b") == before


def test_further_stop_tokens_of_a_generation_config() -> None:
    inner = tiny_tokenizers.bytelevel(["<s>", "</s>"], eos_token="</s>").wrapped
    assert HfTokenizer(inner, stop_tokens=[5]).stop_tokens == {5, inner.eos_token_id}


def test_the_default_one_of_several_chat_templates() -> None:
    inner = tiny_tokenizers.bytelevel(["<s>"]).wrapped
    assert HfTokenizer(inner).chat_template is None
    inner.chat_template = {"default": "a", "tool_use": "b"}
    assert HfTokenizer(inner).chat_template == "a"


def test_bos_is_what_the_tokenizer_puts_itself() -> None:
    made = tiny_tokenizers.bytelevel(["<s>"], bos_token="<s>")
    assert made.bos is None
    assert tiny_tokenizers.putting_bos(made, "<s>").bos == made.special_tokens["<s>"]


@pytest.mark.llamacpp
def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    with pytest.raises(ModelNotFound, match=r"none\.gguf"):
        GgufTokenizer.from_file(tmp_path / "none.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(BrokenModel, match=r"broken\.gguf"):
        GgufTokenizer.from_file(tmp_path / "broken.gguf")


@pytest.mark.llamacpp
def test_a_sentencepiece_vocabulary_in_gguf(spm: Tokenizer) -> None:
    assert spm.bos == spm.special_tokens["<s>"]
    source = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '</s>' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    )
    made = Template.from_tokenizer(spm, chat_template=source)
    assert made.begin == (spm.bos,)
    report = made.check()
    assert report.text_exact
    said = made.user("a fox", first=True)
    # llama.cpp puts a space before text that follows a special token.
    assert list(said) == spm.encode("[user] a fox")
    assert made.decode(made.answer("the hen")) == "the hen"
    assert made.encode("the hen") != made.encode(" the hen")


@pytest.mark.smollm2
@pytest.mark.llamacpp
def test_both_tokenizers_of_the_default_model_agree(smollm2_hf: HfTokenizer, smollm2_gguf: Tokenizer) -> None:
    assert smollm2_hf.vocab_size == smollm2_gguf.vocab_size == 49152
    assert smollm2_hf.special_tokens == smollm2_gguf.special_tokens
    assert smollm2_hf.chat_template == smollm2_gguf.chat_template
    assert smollm2_hf.bos is smollm2_gguf.bos is None
    for text in [
        *tiny_tokenizers.LINES,
        *HOSTILE,
        "1,234.5 kg",
        "I'm  here\n\n\nnow",
        "<|im_end|> typed",
        "नमस्ते 👩‍👩‍👧",
    ]:
        assert smollm2_hf.encode(text) == smollm2_gguf.encode(text)
        assert smollm2_hf.encode(text, special=True) == smollm2_gguf.encode(text, special=True)
    for first in range(0, 49152, 997):
        tokens = range(first, min(first + 40, 49152))
        assert smollm2_hf.decode(tokens) == smollm2_gguf.decode(tokens)


@pytest.mark.smollm2
@pytest.mark.llamacpp
def test_the_default_model_speaks_its_own_format(smollm2_hf: HfTokenizer, smollm2_gguf: Tokenizer) -> None:
    turns = [Turn(Role.USER, "hi <|im_end|>"), Turn(Role.ASSISTANT, "hello"), Turn(Role.USER, "what time is it?")]
    for system in (None, "be brief", ""):
        hf, gguf = (Template.from_tokenizer(one, system=system) for one in (smollm2_hf, smollm2_gguf))
        assert hf.check().ids_exact
        assert gguf.check() == hf.check()
        assert gguf.render(turns) == hf.render(turns)
        for segment in ("begin", "header", "close", "user_close", "again"):
            assert getattr(gguf, segment) == getattr(hf, segment)
        assert {1, 2} <= hf.stop_tokens <= gguf.stop_tokens
    default = Template.from_tokenizer(smollm2_gguf)
    assert default.tokenizer.decode(default.begin).startswith("<|im_start|>system\nYou are a helpful AI assistant")


@pytest.mark.smollm2
@pytest.mark.llamacpp
@settings(max_examples=150, deadline=None)
@given(
    # Control characters and bytes of unassigned planes are not all in this vocabulary.
    text=st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cc", "Cs", "Co", "Cn"]), max_size=60),
    tokens=st.lists(st.integers(0, 49151), max_size=60),
)
def test_any_text_and_any_tokens_of_the_default_model(text: str, tokens: list[int]) -> None:
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    if "gguf" not in _loaded:  # a fixture of pytest cannot be used by hypothesis
        _loaded["gguf"] = GgufTokenizer.from_file(tiny_tokenizers.smollm2())
    one = _loaded["gguf"]
    for ids in (one.encode(text), tokens):
        detokenizer = Detokenizer(one)
        told = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
        assert told.replace("\ufffd", "") == one.decode(ids).replace("\ufffd", "")
    assert one.decode(one.encode(text)) == well_formed(text)


_loaded: dict[str, Tokenizer] = {}


def test_unbreakable_words_that_are_marks() -> None:
    made = tiny_tokenizers.bytelevel(
        ["<s>", AddedToken("<think>"), AddedToken("  "), AddedToken("[x]"), AddedToken("<")]
    )
    assert set(made.special_tokens) == {"<s>", "<think>", "[x]"}
