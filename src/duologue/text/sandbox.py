"""A jinja2 environment that limits how long templates run and how much they produce.

Chat templates are programs from elsewhere. jinja2's own sandbox keeps them from reaching the rest of the process, but
not from looping, or allocating memory, for ever. Here each rendering has a deadline and a budget. Every iteration of a
loop, call, filter, operator and output is charged for what it makes, and operations whose result can be much larger
than their operands are measured before they are carried out.
"""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from itertools import chain
from math import prod
from typing import Any, TypeVar, final

import jinja2
import jinja2.defaults
import jinja2.nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 1.0  # that a rendering may take
BUDGET = 10_000_000  # characters and items that a rendering may make, intermediate results included
MAX_PRODUCT = 100_000_000  # of the sizes of everything that goes into one operation
MAX_BITS = 1_000_000  # of a number

_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{5})|\{[^{}]*:[^{}]*\d{5}")  # "%100000d", "%*d", "{:100000}"


T = TypeVar("T")


class LimitExceeded(jinja2.TemplateError):  # type: ignore[misc]
    """The rendering takes too long or makes too much."""


@final
class _Meter:
    """The remaining budget of one rendering."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + SECONDS
        self._left = BUDGET

    def spend(self, amount: int) -> None:
        """Charge `amount` characters or items."""
        self._left -= amount
        if self._left < 0:
            raise LimitExceeded(f"it makes more than {BUDGET} characters")
        if time.thread_time() > self._deadline:
            raise LimitExceeded(f"it takes longer than {SECONDS:g} s")

    def charge(self, value: Any) -> Any:
        """Charge for `value`, and return it."""
        self.spend(_weight(value, self._left + 1))
        return value


_meter: ContextVar[_Meter] = ContextVar("meter")


def within_limits(work: Callable[..., T], *args: Any) -> T:
    """`work(*args)`, which compiles or renders a template of a `LimitedEnvironment`.

    Compiling is limited, too, since constant expressions are computed then.

    Raises:
        LimitExceeded: it takes too long or makes too much.
        Exception: whatever the template raises.
    """
    token = _meter.set(_Meter())
    try:
        return work(*args)
    finally:
        _meter.reset(token)


def _weight(value: Any, most: int) -> int:
    """Characters and items of `value`, nested ones included. Stops counting beyond `most`."""
    if isinstance(value, (str, bytes)):
        return len(value) + 1
    if isinstance(value, int):
        return value.bit_length() // 8 + 1
    if not isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return 1
    total = 1
    for item in chain(value.keys(), value.values()) if isinstance(value, Mapping) else value:
        total += _weight(item, most - total)
        if total > most:
            break
    return total


def _check_operands(operands: Iterable[Any]) -> None:
    """Refuse operands of which an operation could make something enormous: a number counts as much as it says."""
    sizes = (1 + abs(x) if isinstance(x, int) else _weight(x, MAX_PRODUCT) for x in operands)
    if prod(sizes) > MAX_PRODUCT:
        raise LimitExceeded("an operation in it could make an enormous text")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDE.search(text):
        raise LimitExceeded("it formats with an enormous width")


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `function`, measured before and after."""

    @functools.wraps(function)  # with the marks that tell jinja2 what else to pass
    def call(*args: Any, **options: Any) -> Any:
        _check_operands((*args, *options.values()))
        if name == "format":
            _check_format(args[0])
        return _meter.get().charge(function(*args, **options))

    return call


def _watched(_: Context, items: Iterable[Any]) -> Iterator[Any]:
    """What a loop goes over."""
    for item in items:
        _meter.get().spend(1)
        yield item


def _charged(_: Context, value: Any) -> Any:
    """The value of a list, tuple or dictionary that the template writes out."""
    return _meter.get().charge(value)


def _joined(_: Context, parts: list[Any]) -> str:
    """The value of `a ~ b ~ c`."""
    return "".join(map(str, parts))


@final
class _Instrument(NodeTransformer):  # type: ignore[misc]
    """Passes the loops, literals and concatenations of a template through the filters above."""

    def visit(self, node: jinja2.nodes.Node, *args: Any, **options: Any) -> jinja2.nodes.Node:
        self.generic_visit(node, *args, **options)
        match node:
            case jinja2.nodes.For():
                node.iter = _through("watched", node.iter)
            case jinja2.nodes.Tuple(ctx="store"):  # the names that an assignment or a loop sets
                pass
            case jinja2.nodes.List() | jinja2.nodes.Tuple() | jinja2.nodes.Dict():
                return _through("charged", node)
            case jinja2.nodes.Concat():
                operands = jinja2.nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
                return _through("joined", _through("charged", operands))
        return node


def _through(name: str, node: Any) -> jinja2.nodes.Filter:
    where = {"lineno": node.lineno, "environment": node.environment}
    return jinja2.nodes.Filter(node, f"limits_{name}", [], [], None, None, **where)


@final
class LimitedEnvironment(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """The sandbox with limits."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, filters: Mapping[str, Callable[..., Any]] | None = None, **options: Any) -> None:
        """Templates may use `filters` beside those of jinja2."""
        super().__init__(finalize=lambda value: _meter.get().charge(value), **options)
        known = {**jinja2.defaults.DEFAULT_FILTERS, **(filters or {})}
        self.filters = {name: _limited(name, each) for name, each in known.items()}
        for own in (_watched, _charged, _joined):  # as filters that depend on the context, they are never precomputed
            self.filters[f"limits{own.__name__}"] = jinja2.pass_context(own)
        del self.globals["lipsum"]  # random text of any length

    def concat(self, parts: Iterable[str]) -> str:
        return "".join(map(_meter.get().charge, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            num_bits = {"**": left.bit_length() * abs(right), "*": left.bit_length() + right.bit_length()}
            if num_bits.get(operator, 0) > MAX_BITS:
                raise LimitExceeded("it computes an enormous number")
        elif operator == "*":
            _check_operands((left, right))
        elif operator == "%":
            _check_format(left)
        return _meter.get().charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **options: Any) -> Any:  # noqa: N805 - as its base
        receiver = getattr(__obj, "__self__", None)  # of a method
        _check_operands((receiver, *args, *options.values()))
        return _meter.get().charge(super().call(__context, __obj, *args, **options))

    def wrap_str_format(self, value: Any) -> Any:
        safe = super().wrap_str_format(value)  # None: not `str.format`
        if safe is not None:
            _check_format(value.__self__)
        return safe

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **options: Any) -> str:
        code: str = super()._generate(_Instrument().visit(source), *args, **options)
        return code
