"""A chat template is a program from elsewhere: none runs or grows without end."""

import time
import tracemalloc

import pytest

from duologue.errors import TemplateError
from duologue.text import sandbox
from duologue.text.sandbox import LimitedEnvironment, within_limits
from duologue.text.template import Template
from scripted import CHATML, ByteTokenizer

ENDLESS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one range, nested": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a text, nested": "{% set t = 'x' * 100000 %}{% for a in t %}{% for b in t %}{% endfor %}{% endfor %}",
    "a loop in an expression": "{{ range(99999) | map('string') | map('length') | select | list | length }}" * 100,
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": "{% for a in [[1]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "comparison": "".join(
        f"{{% set {x} = [{x}, {x}] %}}" if i else f"{{% set {x} = [1] %}}" for i in range(60) for x in "lm"
    )
    + "{{ l == m }}",
}
ENORMOUS = {
    "multiplication": "{{ 'x' * 10 ** 9 }}",
    "a list, multiplied": "{{ ([1] * 10 ** 9) | length }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width as an argument": "{{ '%*d' % (10 ** 9, 1) }}",
    "a precision": "{{ '%.1000000000f' % 1 }}",
    "a filter with a width": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format('x') }}",
    "format with a nested width": "{{ '{:{}}'.format('x', 10 ** 9) }}",
    "center": "{{ 'x' | center(10 ** 9) }}",
    "a method": "{{ 'x'.center(10 ** 9) }}",
    "tabs": "{{ '\\t'.expandtabs(10 ** 9) }}",
    "indent": "{{ ('x\\n' * 1000) | indent(10 ** 8) }}",
    "replace": "{{ ('x' * 60000).replace('x', 'y' * 60000) | length }}",
    "replace, as a filter": "{{ ('x' * 60000) | replace('x', 'y' * 60000) | length }}",
    "join": "{{ ('x' * 60000).join(range(60000) | map('string')) | length }}",
    "many large texts": "{{ range(99999) | map('center', 99999) | list | length }}",
    "a power": "{{ 10 ** (10 ** 10) % 7 }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling in a block": "{% set x = 'x' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling in a list": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "doubling in a dictionary": "{% set x = [1] %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x }}",
    "text in a loop": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "text in a loop in a block": "{% set t %}{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}{% endset %}",
    "rounding": "{{ 1.5 | round(10 ** 9) }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.mark.parametrize("source", [*ENDLESS.values(), *ENORMOUS.values()], ids=[*ENDLESS, *ENORMOUS])
def test_a_template_that_never_ends_is_stopped(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    tracemalloc.start()
    begun = time.thread_time()
    with pytest.raises(TemplateError, match="chat template"):
        Template.from_tokenizer(ByteTokenizer(CHATML + source))
    seconds = time.thread_time() - begun
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 6.0, "tracing memory slows it down"
    assert peak < 200_000_000


def test_an_expression_that_python_cannot_compile_is_refused():
    source = "{{ " + " + ".join(["messages[0].role"] * 210) + " }}"  # too many nested parentheses
    with pytest.raises(TemplateError, match="not valid Jinja"):
        Template.from_tokenizer(ByteTokenizer(CHATML + source))


def test_only_one_rendering_is_waited_for(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(TemplateError, match="takes longer than"):
        Template.from_tokenizer(ByteTokenizer(CHATML + ENDLESS["nested ranges"]))
    assert time.monotonic() - begun < 2.0


ORDINARY = [
    ("{% for a, b in [(1, 2), (3, 4)] %}{{ a ~ '-' ~ b }}{% if not loop.last %}, {% endif %}{% endfor %}", "1-2, 3-4"),
    ("{% for x in [1, 2, 3] %}{{ loop.revindex }}{{ loop.length }}{{ loop.nextitem }};{% endfor %}", "332;233;13;"),
    (
        "{% for x in [[1, [2]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% endif %}{{ x }}{% endfor %}",
        "(1(2)[2])[1, [2]]",
    ),
    ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "a=1"),
    ("{% for x in nothing %}{% else %}none{% endfor %}", "none"),
    ("{{ [3, 1, 2] | sort | map('string') | join('+') }}", "1+2+3"),
    ("{{ 'a b'.split()[1] | upper }}{{ '%3d|%s' % (7, 'x') }}{{ '{:>3}'.format(1) }}", "B  7|x  1"),
    ("{{ 2 ** 10 }} {{ 7 % 4 }} {{ 'ab' * 2 }} {{ 1 + 2 }} {{ 1.5 * 2 }}", "1024 3 abab 3 3.0"),
    ("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(a=3, b=4) }}", "1234"),
    ("{% set n = namespace(x=0) %}{% for i in range(10) %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}", "45"),
    ("{% set t %}{{ 'a' }}b{% endset %}{{ t }}{{ {'x': [1, 'y']} }}", "ab{'x': [1, 'y']}"),
    ("{{ messages[0].content | trim | length }}{{ messages | length }}{{ nothing | default('d') }}", "51d"),
]


@pytest.mark.parametrize(("source", "expected"), ORDINARY)
def test_what_ordinary_templates_do_is_as_it_was(source, expected):
    template = within_limits(LimitedEnvironment().from_string, source)
    assert within_limits(template.render, {"messages": [{"content": " words "}]}) == expected
