"""Chat templates in the manner of well-known models, written for the tests, and tokenizers that go with them."""

from dataclasses import dataclass, field

from tokenizers import AddedToken

import tiny_tokenizers
from duologue.backends.torch.tokenizer import HfTokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are Tiny.<|im_end|>\\n' }}{% endif %}" + CHATML
)
# Thinks before an answer unless told otherwise; takes thoughts out of what was said before.
THINKING = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (text if m.role == 'assistant' else m.content) + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
# Always thinks before an answer.
THINKING_ONLY = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (text if m.role == 'assistant' else m.content) + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# An answer has two channels, of which the history keeps one.
HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
    "{{ '<|message|>' + m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}"
    "{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set lead = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}" + _ALTERNATE + "{% if m.role == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m.role %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + (lead if loop.first else '') }}"
    "{{ m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA_NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + _ALTERNATE + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) }}"
    "{{ '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def _mistral(where: str, space: str) -> str:
    return (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
        "{% for m in rest %}" + _ALTERNATE + "{% if m.role == 'user' %}{{ '[INST]" + space + "' }}"
        "{% if system and " + where + " %}{{ system + '\\n\\n' }}{% endif %}{{ m.content + '" + space + "[/INST]' }}"
        "{% else %}{{ '" + space + "' + m.content + eos_token }}{% endif %}{% endfor %}"
    )


MISTRAL_FIRST = _mistral("loop.first", " ")
MISTRAL_LAST = _mistral("loop.last", " ")
MISTRAL_TIGHT = _mistral("loop.first", "")
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MINICPM = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<用户>' + m.content.strip() + '<AI>' }}"
    "{% else %}{{ m.content.strip() }}{% endif %}{% endfor %}"
)

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
ROLES = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
BOUNDS = {"bos_token": "<s>", "eos_token": "</s>"}


def _strips(texts: list[str]) -> list[AddedToken]:
    return [AddedToken(text, rstrip=True, special=True, normalized=False) for text in texts]


@dataclass(frozen=True)
class Format:
    """A template, a tokenizer, and how near to the template's own rendering the segments must come."""

    source: str
    tokenizer: HfTokenizer
    exact: bool = True  # all texts and ids, without a system text
    system_exact: bool = True  # with one
    alternates: bool = False  # the template refuses two turns of one role in a row
    user_opener: str = ""
    header: str = ""
    close: str = ""
    stops: frozenset[str] = field(default_factory=frozenset)


_bytes, _pieces = tiny_tokenizers.bytelevel, tiny_tokenizers.sentencepiece_like
_IM = {
    "user_opener": "<|im_start|>user\n",
    "header": "<|im_end|>\n<|im_start|>assistant\n",
    "close": "<|im_end|>\n",
    "stops": frozenset({"<|im_end|>", "<|im_start|>"}),
}
_GEMMA = {
    "alternates": True,
    "user_opener": "<start_of_turn>user\n",
    "header": "<end_of_turn>\n<start_of_turn>model\n",
    "close": "<end_of_turn>\n",
    "stops": frozenset({"<eos>", "<end_of_turn>", "<start_of_turn>"}),
}
_INST = {
    "alternates": True,
    "user_opener": "[INST] ",
    "header": " [/INST]",
    "close": "</s>",
    "stops": frozenset({"</s>"}),
}
_PHI = {
    "user_opener": "<|user|>\n",
    "header": "<|end|>\n<|assistant|>\n",
    "close": "<|end|>\n",
    "stops": frozenset({"<|endoftext|>", "<|end|>", "<|user|>"}),
}

FORMATS = {
    "chatml": Format(CHATML, _bytes(IM, eos_token="<|im_end|>"), **_IM),
    "chatml-default": Format(CHATML_DEFAULT, _bytes(IM, eos_token="<|im_end|>"), **_IM),
    "thinking": Format(
        THINKING,
        _bytes([*IM, AddedToken("<think>"), AddedToken("</think>")], eos_token="<|im_end|>"),
        exact=False,
        system_exact=False,
        **{**_IM, "header": "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"},
    ),
    "thinking-only": Format(
        THINKING_ONLY,
        _bytes([*IM, AddedToken("<think>"), AddedToken("</think>")], eos_token="<|im_end|>"),
        **{**_IM, "header": "<|im_end|>\n<|im_start|>assistant\n<think>\n"},
    ),
    "llama3": Format(
        LLAMA3,
        _bytes(HEADERS, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
        user_opener="<|start_header_id|>user<|end_header_id|>\n\n",
        header="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        close="<|eot_id|>",
        stops=frozenset({"<|eot_id|>", "<|start_header_id|>"}),
    ),
    "gemma": Format(GEMMA, _pieces(TURNS, space="never", bos_token="<bos>", eos_token="<eos>"), **_GEMMA),
    "gemma-no-system": Format(
        GEMMA_NO_SYSTEM, _pieces(TURNS, space="never", bos_token="<bos>", eos_token="<eos>"), **_GEMMA
    ),
    "mistral-first": Format(MISTRAL_FIRST, _pieces(["<s>", "</s>"], space="first", **BOUNDS), **_INST),
    "mistral-legacy": Format(MISTRAL_FIRST, _pieces(["<s>", "</s>"], space="legacy", **BOUNDS), **_INST),
    "mistral-last": Format(
        MISTRAL_LAST, _pieces(["<s>", "</s>"], space="always", **BOUNDS), system_exact=False, **_INST
    ),
    "mistral-tight": Format(
        MISTRAL_TIGHT,
        _bytes(["<s>", "</s>", "[INST]", "[/INST]"], **BOUNDS),
        alternates=True,
        user_opener="[INST]",
        header="[/INST]",
        close="</s>",
        stops=frozenset({"</s>", "[INST]"}),
    ),
    "phi": Format(PHI, _bytes(ROLES, eos_token="<|endoftext|>"), **_PHI),
    "phi-strips": Format(PHI, _pieces(_strips(ROLES), space="legacy", eos_token="<|endoftext|>"), **_PHI),
    "minicpm": Format(
        MINICPM,
        _pieces(["<s>", "</s>", AddedToken("<用户>"), AddedToken("<AI>")], space="first", **BOUNDS),
        user_opener="<用户>",
        header="<AI>",
        stops=frozenset({"</s>", "<用户>"}),
    ),
}
