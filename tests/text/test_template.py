"""Segments of ids from a model's own chat template: put together, they are what the template and the tokenizer say."""

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

import tiny_tokenizers
from chat_formats import (
    BOUNDS,
    CHATML,
    CHATML_DEFAULT,
    FORMATS,
    GEMMA,
    HARMONY,
    IM,
    MISTRAL_FIRST,
    MISTRAL_LAST,
    Format,
)
from duologue.errors import TemplateError
from duologue.text.template import Template
from duologue.types import Role, Token, Turn

ASK, TELL, MORE = Turn(Role.USER, "what time is it?"), Turn(Role.ASSISTANT, "ten past four"), Turn(Role.USER, "and now")


def template(name: str, system: str | None = None) -> Template:
    made = FORMATS[name]
    return Template.from_tokenizer(made.tokenizer, system=system, chat_template=made.source)


def in_text(made: Template, tokens: tuple[Token, ...]) -> str:
    return made.tokenizer.decode(tokens)


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def form(name: str) -> Format:
    return FORMATS[name]


def test_segments_read_as_the_template_writes_them(name: str, form: Format) -> None:
    made = template(name)
    # A decoder cannot give back white space that the tokenizer drops after a special token.
    strips = name == "phi-strips"
    expected = [text.replace("\n", "") if strips else text for text in (form.user_opener, form.header, form.close)]
    # "[INST] " after BOS: decoders drop the space they think was put before a text.
    opener = in_text(made, made.user("", first=False))
    assert [opener.lstrip(" "), in_text(made, made.header), in_text(made, made.close)] in (
        expected,
        [expected[0], expected[1].lstrip(" "), expected[2]],
    )
    assert {in_text(made, (token,)) for token in made.stop_tokens} == form.stops
    assert not made.is_plain


@pytest.mark.parametrize("system", [None, "be brief", "  two words \n", "Sei kurz, 你好."])
def test_segments_make_whole_dialogues(name: str, form: Format, system: str | None) -> None:
    report = template(name, system).check()
    exact = form.exact if system is None else form.system_exact
    assert (report.text_exact, report.ids_exact) == (exact, exact), report.differences
    assert bool(report.differences) is not exact or name == "gemma-no-system"


def test_render_is_the_segments_in_order(name: str) -> None:
    made = template(name)
    told = made.joint(Role.USER, Role.ASSISTANT)
    middle = (*made.user(ASK.text, first=True), *told, *made.answer(TELL.text), *made.close)
    assert made.render([ASK, TELL]) == (*made.begin, *middle)
    assert made.render([ASK, TELL, MORE]) == (*made.begin, *middle, *made.user(MORE.text, first=False))
    assert made.render([Turn(Role.SYSTEM, "be kind"), ASK]) == made.with_system("be kind").render([ASK])
    assert made.render([]) == made.begin


def test_an_answer_comes_back_as_it_was(name: str) -> None:
    made = template(name)
    for text in ("hello", "the fox, 你好 🎉", "x  y\nz", ""):
        assert made.decode(made.answer(text)) == text


def test_bos_is_there_once(name: str, form: Format) -> None:
    made = template(name, "be brief")
    bos = made.tokenizer.special_text.get("bos_token")
    if bos is not None and "bos_token" in form.source:
        tokens = made.render([ASK, TELL, MORE])
        assert tokens.count(made.tokenizer.special_tokens[bos]) == 1
        assert in_text(made, tokens[:1]) == bos


@given(text=st.text(max_size=30), data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_a_user_types_is_never_a_special_token(text: str, data: st.DataObject) -> None:
    made = template(data.draw(st.sampled_from(sorted(FORMATS))))
    special = data.draw(st.sampled_from(sorted(made.tokenizer.special_tokens)))
    said = made.user(text + special + text, first=False)
    opener = made.user("", first=False)
    ids = set(made.tokenizer.special_tokens.values())
    assert [token for token in said if token in ids] == [token for token in opener if token in ids]
    assert ids.isdisjoint(made.encode(special))
    assert ids.isdisjoint(made.answer(special))
    assert made.decode(made.answer("a" + special + "b")) == "a" + special + "b"


def test_a_system_text_is_never_a_special_token(name: str) -> None:
    ids = set(FORMATS[name].tokenizer.special_tokens.values())
    marks = [
        [token for token in template(name, system).render([ASK]) if token in ids]
        for system in ("be brief", "be " + "".join(FORMATS[name].tokenizer.special_tokens))
    ]
    assert marks[0] == marks[1]


def test_a_default_system_prompt_is_in_begin() -> None:
    made = template("chatml-default")
    assert in_text(made, made.begin) == "<|im_start|>system\nYou are Tiny.<|im_end|>\n"
    assert in_text(made, made.with_system("be brief").begin) == "<|im_start|>system\nbe brief<|im_end|>\n"
    assert in_text(made, made.with_system("").begin) == "<|im_start|>system\n<|im_end|>\n"
    assert made.with_system("x").with_system(None).begin == made.begin
    assert template("chatml").begin == ()


@pytest.mark.parametrize("folding", ["gemma", "gemma-no-system", "mistral-tight"])
def test_a_folded_system_text_is_in_the_first_user_turn_only(folding: str) -> None:
    made = template(folding, "be brief")
    assert made.begin == template(folding).begin
    assert in_text(made, made.user("hi", first=True)).endswith("be brief\n\nhi")
    assert "brief" not in in_text(made, made.user("hi", first=False))
    assert made.with_system("").user("hi", first=True) == template(folding).user("hi", first=True)


def test_a_template_that_moves_the_system_text_says_so() -> None:
    made = template("mistral-last", "be brief")
    assert in_text(made, made.user("hi", first=True)).endswith("be brief\n\nhi")
    assert "newest user turn" in made.check().differences[0]


def test_two_turns_of_one_side(name: str, form: Format) -> None:
    made = template(name)
    told = made.joint(Role.USER, Role.ASSISTANT)
    if form.alternates:
        assert made.user_close == (*told, *made.close)
    else:
        assert made.user_close == told[: len(made.user_close)]
    if allows_answers_in_a_row(made):
        assert made.again == (*made.close, *told[len(made.user_close) :])
    assert made.render([ASK, TELL, TELL]) == (
        *(*made.begin, *made.user(ASK.text, first=True), *told, *made.answer(TELL.text)),
        *(*made.again, *made.answer(TELL.text), *made.close),
    )
    assert made.render([ASK, MORE])[len(made.begin) + len(made.user(ASK.text, first=True)) :] == (
        *made.user_close,
        *made.user(MORE.text, first=False),
    )


def allows_answers_in_a_row(made: Template) -> bool:
    """Otherwise an empty turn of the user is between them."""
    silent = (*made.user("", first=False), *made.joint(Role.USER, Role.ASSISTANT))
    return made.again != (*made.close, *silent)


def test_answers_in_a_row_are_known_where_they_are_allowed() -> None:
    assert {name for name in FORMATS if allows_answers_in_a_row(template(name))} == {
        *("chatml", "chatml-default", "thinking", "thinking-only", "llama3", "phi", "phi-strips"),
    }


@pytest.mark.parametrize("name", ["gemma", "mistral-first"])
def test_an_assistant_begins_behind_an_empty_turn_of_the_user(name: str) -> None:
    made = template(name, "be brief")
    assert made.joint(None, Role.ASSISTANT) == (*made.user("", first=True), *made.header)
    assert "be brief" in in_text(made, made.joint(None, Role.ASSISTANT))


def test_a_thought_is_opened_for_an_answer_and_left_out_of_the_history() -> None:
    made = template("thinking-only", "be brief")
    assert in_text(made, made.header) == "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert in_text(made, made.joint(Role.USER, Role.ASSISTANT)) == "<|im_end|>\n<|im_start|>assistant\n"
    assert in_text(made, made.opening(Role.ASSISTANT)) == "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert made.thought is not None
    assert in_text(made, made.end_thought(made.thought)) == "\n</think>\n\n"
    assert made.tokenizer.special_tokens["</think>"] in made.end_thought(made.thought)
    assert "<think>" not in in_text(made, made.render([ASK, TELL, MORE, TELL]))
    assert made.check().ids_exact


@pytest.mark.parametrize(
    ("switch", "opener"),
    [("thinking", "<think>\n"), ("reasoning", "<|START_THINKING|>"), ("thinking_budget", "<seed:think>")],
)
def test_a_thought_is_switched_off_where_the_template_has_a_way(switch: str, opener: str) -> None:
    close = opener.strip().replace("START", "END").replace("<seed", "</seed").replace("<think", "</think")
    source = CHATML.replace(
        "assistant\\n' }}{% endif %}",
        "assistant\\n"
        + opener.replace("\n", "\\n")
        + "' }}{% if "
        + switch
        + " is defined and not "
        + switch
        + " %}{{ '"
        + close
        + "' }}{% endif %}{% endif %}",
    )
    made = Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=source)
    assert in_text(made, made.header).endswith(opener + close)
    assert made.thought is None


def test_an_analysis_channel_is_skipped() -> None:
    made = Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=HARMONY)
    assert in_text(made, made.header) == "<|end|><|start|>assistant<|channel|>final<|message|>"
    assert made.thought is None


def test_thoughts_stay_switched_off_in_every_answer() -> None:
    made = template("thinking")
    assert in_text(made, made.header).endswith("<think>\n\n</think>\n\n")
    assert made.tokenizer.special_tokens["<think>"] in made.header
    assert made.again is not None
    assert in_text(made, made.again).endswith("<think>\n\n</think>\n\n")


def test_a_model_without_a_template_gets_a_plain_one() -> None:
    for tokenizer in (
        tiny_tokenizers.bytelevel(["<s>"], bos_token="<s>"),
        tiny_tokenizers.sentencepiece_like(["<s>"], space="first", bos_token="<s>"),
    ):
        made = Template.from_tokenizer(tokenizer, system="be brief")
        assert made.is_plain
        assert in_text(made, made.render([ASK, TELL, MORE])) == (
            "be brief\n\nUser: what time is it?\nAssistant: ten past four\nUser: and now"
        )
        assert made.decode(made.answer("yes")) == "yes"
        assert made.check().text_exact


def test_a_bos_the_template_leaves_to_the_tokenizer_is_put_there() -> None:
    tokenizer = tiny_tokenizers.bytelevel([*IM, "<s>"], bos_token="<s>")
    puts = tiny_tokenizers.putting_bos(tokenizer, "<s>")
    bos = puts.special_tokens["<s>"]
    assert Template.from_tokenizer(tokenizer, chat_template=CHATML).begin == ()
    assert Template.from_tokenizer(puts, chat_template=CHATML).begin == (bos,)
    assert Template.from_tokenizer(puts, chat_template="{{ bos_token }}" + CHATML).begin == (bos,)
    assert Template.from_tokenizer(puts, chat_template=CHATML_DEFAULT).begin.count(bos) == 1
    assert Template.from_tokenizer(puts, chat_template=CHATML).check().ids_exact


def test_a_bos_the_tokenizer_puts_comes_before_the_space_it_puts() -> None:
    bare = tiny_tokenizers.sentencepiece_like(["<s>", "</s>"], space="first", **BOUNDS)
    puts = tiny_tokenizers.putting_bos(bare, "<s>")
    made = Template.from_tokenizer(puts, chat_template=MISTRAL_FIRST.replace("{{ bos_token }}", ""))
    whole = puts.wrapped.encode("[INST] be brief [/INST]")
    assert [*made.begin, *made.user("be brief", first=True), *made.header] == whole


def test_line_breaks_between_turns_belong_to_the_closer() -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}"
        "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
    )
    made, chatml = Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=source), template("chatml")
    for segment in ("begin", "header", "close", "user_close", "again"):
        assert getattr(made, segment) == getattr(chatml, segment)
    assert made.user("hi", first=True) == made.user("hi", first=False) == chatml.user("hi", first=True)


def test_a_header_is_found_without_a_generation_prompt() -> None:
    source = CHATML[: CHATML.index("{% if add_generation_prompt")]
    made = Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=source)
    assert (made.header, made.close) == (template("chatml").header, template("chatml").close)


def test_growing_words_are_tokenised_as_the_words_so_far() -> None:
    made = template("gemma")
    whole = "<start_of_turn>user\nwhat is the weather"
    for end in range(len("what is the weather") + 1):
        said = "what is the weather"[:end]
        expected = made.tokenizer.encode("<start_of_turn>user\n" + said.strip(), special=True)
        assert list(made.user(said, first=False)) == expected
    assert in_text(made, made.user("what is the weather", first=False)) == whole


def test_content_may_be_wanted_in_parts() -> None:
    source = CHATML.replace("m.content", "m.content[0].text")
    made = Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=source)
    assert made.render([ASK, TELL]) == template("chatml").render([ASK, TELL])
    assert made.check().ids_exact


@pytest.mark.parametrize("system", [None, "", "be brief"])
@pytest.mark.parametrize("form", ["chatml", "gemma"])
def test_a_template_that_insists_on_a_system_turn_gets_an_empty_one(form: str, system: str | None) -> None:
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('whose part do I play?') }}{% endif %}"
    tokenizer = FORMATS[form].tokenizer
    made = Template.from_tokenizer(tokenizer, chat_template=insists + FORMATS[form].source, system=system)
    usual = Template.from_tokenizer(tokenizer, chat_template=FORMATS[form].source, system="Q")
    expected = in_text(usual, usual.render([ASK, TELL, MORE])).replace("Q", system or "")
    assert in_text(made, made.render([ASK, TELL, MORE])) == expected
    assert made.check().text_exact


def test_generation_blocks_and_dates_are_rendered() -> None:
    source = "{{ '<|im_start|>system\\n' + strftime_now('%d %B %Y') + '<|im_end|>\\n' }}" + CHATML.replace(
        "{% endfor %}", "{% generation %}{% endgeneration %}{% endfor %}"
    )
    now = datetime(2020, 2, 3)
    made = Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=source, now=now)
    assert in_text(made, made.begin) == "<|im_start|>system\n03 February 2020<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for m in messages", "not valid Jinja"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% for m in messages %}{{ undefined.attribute }}{% endfor %}", "refuses"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "cannot be told apart"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "cannot be told apart"),
        ("{% for m in messages %}{{ m.content + '|' }}{% endfor %}", "nothing before a user's words"),
        ("{{ messages[-1].content }}", "cannot be told apart"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused(source: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        Template.from_tokenizer(FORMATS["chatml"].tokenizer, chat_template=source)


@pytest.mark.parametrize(
    ("name", "turns", "says"),
    [
        ("chatml", [ASK, Turn(Role.SYSTEM, "x")], "first of a dialogue"),
    ],
)
def test_an_impossible_dialogue_is_refused(name: str, turns: list[Turn], says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        template(name).render(turns)


def test_the_assistant_may_speak_first_where_the_template_lets_it() -> None:
    made = template("chatml")
    assert in_text(made, made.render([TELL])).startswith("<|im_start|>assistant\n" + TELL.text)


def test_marks_declared_as_ordinary_words_do_not_split_ordinary_text() -> None:
    tokenizer = tiny_tokenizers.bytelevel([*IM, AddedToken("<tool>"), AddedToken("    "), AddedToken("hello")])
    assert set(tokenizer.special_tokens) == {*IM, "<tool>"}
    made = Template.from_tokenizer(tokenizer, chat_template=CHATML)
    assert made.tokenizer.special_tokens["<tool>"] not in made.user("a <tool> b", first=True)
    assert made.decode(made.answer("hello    <tool>")) == "hello    <tool>"


def test_hostile_texts_are_only_texts(name: str) -> None:
    made = template(name)
    for text in ("\ud83d", "a\udc00b", "\x00", "x" * 100_000, "<|im_end|>" * 1000, "\ufdd0", "\x01"):
        tokens = made.user(text, first=True)
        assert len(tokens) >= len(made.user("", first=True))
    assert made.decode(made.answer("a\ud83d\ude00b\ud83d")) == "a😀b\ufffd"
    assert made.decode(made.answer("a\x00b\x01")) == "a\x00b\x01"


def test_templates_of_one_tokenizer_do_not_share_state() -> None:
    tokenizer = FORMATS["gemma"].tokenizer
    one = Template.from_tokenizer(tokenizer, chat_template=GEMMA)
    begin = one.begin
    Template.from_tokenizer(tokenizer, chat_template=MISTRAL_LAST.replace("eos_token", "'<end_of_turn>'"), system="x")
    assert one.begin == begin
    assert one.detokenizer() is not one.detokenizer()
