"""Plain data between the process of the program and that of its tests, as JSON.

The program's side may send anything. What arrives is built from Python's own types and these alone, so that no method of
the program (an ``__eq__`` that always agrees, say) runs where results are compared.
"""

from __future__ import annotations

import builtins
import json
import operator
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

# Of an iterator (which may never end) this many items are sent
LONGEST_ITERATOR = 100_000
_PLAIN_BITS = 1000  # larger integers go as hexadecimal digits: decimal ones are slow, and Python limits their number


class UnsupportedValueError(TypeError):
    """A value that cannot be sent."""


class Opaque:
    """Stands for an object of the program that is no plain data: equal to nothing but itself.

    Args:
        name: of its type.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<object of type {self.name}>"


def dumps(value: Any) -> bytes:
    """A value as one line. Objects that are no plain data become :class:`Opaque` on the other side.

    Raises:
        UnsupportedValueError: nested too deeply, or in itself.
    """
    try:
        return json.dumps(_encoded(value), separators=(",", ":")).encode("ascii") + b"\n"
    except RecursionError:
        raise UnsupportedValueError("a value nested too deeply, or in itself") from None


def loads(line: bytes) -> Any:
    """The value of a line.

    Raises:
        ValueError: no value of :func:`dumps`.
    """
    try:
        return _decoded(json.loads(line))
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__} in a message") from None


def _encoded(value: Any) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() < _PLAIN_BITS else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    for kind, encode in _ENCODERS:
        if isinstance(value, kind):
            return encode(value)
    return _rarer(value)


def _items(values: Iterable[Any]) -> list[Any]:
    return [_encoded(item) for item in values]


def _pairs(mapping: Any) -> list[Any]:
    return [[_encoded(key), _encoded(item)] for key, item in mapping.items()]


def _iterator(values: Iterator[Any]) -> Any:
    found = list(islice(values, LONGEST_ITERATOR + 1))
    if len(found) > LONGEST_ITERATOR:
        return {"opaque": "endless iterator"}
    return {"iterator": _items(found)}


_ENCODERS: list[tuple[Any, Callable[[Any], Any]]] = [
    (list, _items),
    (tuple, lambda v: {"tuple": _items(v)}),
    (frozenset, lambda v: {"frozenset": _items(v)}),
    (set, lambda v: {"set": _items(v)}),
    (Counter, lambda v: {"Counter": _pairs(v)}),
    (OrderedDict, lambda v: {"OrderedDict": _pairs(v)}),
    (dict, lambda v: {"dict": _pairs(v)}),
    (bytes, lambda v: {"bytes": v.hex()}),
    (bytearray, lambda v: {"bytearray": v.hex()}),
    (complex, lambda v: {"complex": [v.real, v.imag]}),
    (range, lambda v: {"range": _items((v.start, v.stop, v.step))}),
    (deque, lambda v: {"deque": _items(v)}),
    (type({}.keys()), lambda v: {"keys": _items(v)}),
    (type({}.values()), lambda v: {"values": _items(v)}),
    (type({}.items()), lambda v: {"items": _items(v)}),
    (Iterator, _iterator),
]


def _rarer(value: Any) -> Any:
    """Types of modules that only a program which uses them has loaded."""
    decimal, fractions, datetime = (sys.modules.get(name) for name in ("decimal", "fractions", "datetime"))
    if decimal is not None and isinstance(value, decimal.Decimal):
        return {"Decimal": str(value)}
    if fractions is not None and isinstance(value, fractions.Fraction):
        return {"Fraction": _items((value.numerator, value.denominator))}
    if datetime is not None:
        for name in ("datetime", "date", "time"):
            if isinstance(value, getattr(datetime, name)):
                return {name: value.isoformat()}
        if isinstance(value, datetime.timedelta):
            return {"timedelta": [value.days, value.seconds, value.microseconds]}
    name = getattr(value, "__name__", "")
    if isinstance(value, type) and vars(builtins).get(name) is value:
        return {"type": name}
    try:
        return _encoded(operator.index(value))  # integers of other libraries
    except TypeError:
        return {"opaque": str(type(value).__name__)[:100]}


def _decoded(content: Any) -> Any:
    if isinstance(content, list):
        return [_decoded(item) for item in content]
    if not isinstance(content, dict):
        return content
    ((kind, body),) = content.items()
    if kind in ("dict", "Counter", "OrderedDict"):
        found = {_decoded(key): _decoded(item) for key, item in body}
        return {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}[kind](found)
    return _DECODERS[kind](body)


def _from_module(module: str, name: str, build: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    def decode(body: Any) -> Any:
        return build(getattr(__import__(module), name), body)

    return decode


def _items_view(body: Any) -> Any:
    return dict([_decoded(pair) for pair in body]).items()


def _built_in_type(name: str) -> type:
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise TypeError(name)
    return found


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda body: int(body, 16),
    "tuple": lambda body: tuple(map(_decoded, body)),
    "set": lambda body: set(map(_decoded, body)),
    "frozenset": lambda body: frozenset(map(_decoded, body)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda body: complex(*body),
    "range": lambda body: range(*map(_decoded, body)),
    "deque": lambda body: deque(map(_decoded, body)),
    "keys": lambda body: dict.fromkeys(map(_decoded, body)).keys(),
    "values": lambda body: dict(enumerate(map(_decoded, body))).values(),
    "items": _items_view,
    "iterator": lambda body: iter(list(map(_decoded, body))),
    "type": _built_in_type,
    "Decimal": _from_module("decimal", "Decimal", lambda kind, body: kind(body)),
    "Fraction": _from_module("fractions", "Fraction", lambda kind, body: kind(*map(_decoded, body))),
    "datetime": _from_module("datetime", "datetime", lambda kind, body: kind.fromisoformat(body)),
    "date": _from_module("datetime", "date", lambda kind, body: kind.fromisoformat(body)),
    "time": _from_module("datetime", "time", lambda kind, body: kind.fromisoformat(body)),
    "timedelta": _from_module("datetime", "timedelta", lambda kind, body: kind(*body)),
    "opaque": lambda body: Opaque(str(body)),
}
