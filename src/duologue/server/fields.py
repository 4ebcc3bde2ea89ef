"""Tables of the fields that a client may send, and the function that reads a message by its table."""

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from duologue.errors import BadData, UsageError

_EXPECTED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

_MOST_BRACKETS = 10_000  # objects and lists; parsing them takes milliseconds


class Rejection(UsageError):
    """A request was rejected. `code` distinguishes cases for clients; `param` names the field at fault."""

    def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a JSON object. `null` means that the field is left out (but see `only_given` of `read`)."""

    kind: type  # `object`: any value; see `parse`
    default: Any = None
    is_needed: bool = False
    least: float | None = None  # of a number; of text and lists, the length
    most: float | None = None
    choices: tuple[Any, ...] = ()
    fields: "Table | None" = None  # of an object
    parse: Callable[[Any], Any] | None = None  # for rules that the other attributes cannot express; raises `ValueError`


Table: TypeAlias = Mapping[str, Field]


def parse(text: str | bytes | bytearray) -> dict[str, Any]:
    """The JSON object that a client sent. Raises `BadData`."""
    num_brackets = text.count("{") + text.count("[") if isinstance(text, str) else text.count(b"{") + text.count(b"[")
    if num_brackets > _MOST_BRACKETS:
        raise BadData(f"a message may have at most {_MOST_BRACKETS} objects and lists")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"this is not JSON: {error}"[:200]) from error
    if not isinstance(message, dict):
        raise BadData("a message is a JSON object")
    return message


def read(table: Table, row: Mapping[str, Any], where: str = "", *, only_given: bool = False) -> dict[str, Any]:
    """Check and return the fields of `row`. Names that are not in the table are ignored.

    Args:
        where: prefix of the names in errors, such as `session.`.
        only_given: leave out fields that `row` does not have, here and in nested objects; `null` is not allowed where
            it is not the default.

    Raises:
        Rejection: a field is missing, has the wrong type, or has an invalid value.
    """
    return {
        name: _value(field, row.get(name), where + name, only_given)
        for name, field in table.items()
        if name in row or not only_given
    }


def _value(field: Field, value: Any, param: str, only_given: bool) -> Any:
    if value is None and not (only_given and field.default is not None):
        if field.is_needed:
            raise Rejection(f"{param} is missing", code="missing_required_parameter", param=param)
        return field.default
    if field.choices:
        if value not in field.choices:
            raise _invalid(param, value, f"one of {', '.join(map(str, field.choices))}")
        return value
    if field.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _is_of_kind(field.kind, value):
        raise _invalid(param, value, _EXPECTED[field.kind], code="invalid_type")
    _check_range(field, value, param)
    if field.parse is not None:
        try:
            return field.parse(value)
        except (ValueError, TypeError) as error:
            raise _invalid(param, value, str(error)) from error
    if field.fields is not None:
        return read(field.fields, value, f"{param}.", only_given=only_given)
    return value if field.kind is not float else _float(value, param)


def _float(value: float, param: str) -> float:
    try:
        return float(value)
    except OverflowError as error:  # an integer with hundreds of digits
        raise _invalid(param, value, "a number that fits into a float") from error


def _is_of_kind(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _check_range(field: Field, value: Any, param: str) -> None:
    least, most = field.least, field.most
    size = len(value) if isinstance(value, (str, list)) else value
    if (least is None or size >= least) and (most is None or size <= most):
        return
    unit = " characters" if field.kind is str else " entries" if field.kind is list else ""
    bounds = [f"at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    raise _invalid(param, value, f"{_EXPECTED[field.kind]} of {' and '.join(bounds)}{unit}")


def _shown(value: Any) -> str:
    """The beginning of a value, which may be long."""
    return reprlib.repr(value)[:60]


def _invalid(param: str, value: Any, expected: str, *, code: str = "invalid_value") -> Rejection:
    return Rejection(f"{param} is {_shown(value)}: it must be {expected}", code=code, param=param)
