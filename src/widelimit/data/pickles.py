"""Pickles of which nothing is run: dictionaries, lists, text, numbers and plain arrays alone.

The codes of a pickle are read with `pickletools`, which executes none of them, and interpreted
here. The only functions and classes that may be named are those with which NumPy rebuilds an array,
and these are not called, either: what they are given is checked, and the array made of it.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.reading import refusing

__all__ = ["unpickle"]

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_GLOBALS = {
    **{(module, "_reconstruct"): "array" for module in _NUMPY[1:]},
    (_NUMPY[0], "ndarray"): "ndarray",
    (_NUMPY[0], "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
_DTYPES = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
_MAX_CODES = 10_000_000  # operations
_MAX_DEPTH = 16
_PLAIN = (str, bytes, int, float, type(None))


@dataclass(slots=True)
class _Named:
    """A function or class that a pickle names."""

    role: str


@dataclass(slots=True)
class _Dtype:
    code: str
    order: str = "|"


@dataclass(slots=True)
class _Array:
    value: NDArray[Any] | None = None


class _Mark:
    """Where a group of values on the stack begins."""


def unpickle(content: bytes, name: str) -> Any:
    """Return what a pickle holds, if that is plain data.

    Parameters
    ----------
    content : bytes
    name : str
        What messages call it.

    Returns
    -------
    dict, list, tuple, bytes, str, int, float, bool, None or ndarray
        Text of Python 2 is bytes.

    Raises
    ------
    ValueError
        If the pickle is damaged, or names anything but what an array of numbers is made of; then
        nothing of it has been run.
    """
    with refusing(
        f"{name} must be a pickle of arrays, numbers and text, it is not",
        "nothing in it was run; get it from its publisher, or use another form of the data",
    ):
        return _plain(_Machine().run(content), 0, {})


class _Machine:
    """The stack, and the memory, of a pickle that is read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count > _MAX_CODES:
                raise ValueError(f"it has more than {_MAX_CODES:,} operations")
            if code.name == "STOP":
                return self.stack.pop()
            self._step(code.name, argument)
        raise ValueError("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(_VALUES[name](argument))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("TUPLE", "LIST", "DICT"):
            values = self._marked()
            made: Any = tuple(values) if name == "TUPLE" else values
            stack.append(_pairs({}, values) if name == "DICT" else made)
        elif name == "APPEND":
            value = stack.pop()
            self._last(list).append(value)
        elif name == "APPENDS":
            values = self._marked()
            self._last(list).extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _pairs(self._last(dict), [key, value])
        elif name == "SETITEMS":
            values = self._marked()
            _pairs(self._last(dict), values)
        elif name == "GLOBAL":
            module, _, attribute = cast("str", argument).partition(" ")
            stack.append(_named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(module, attribute))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_called(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            _built(stack[-1], state)
        elif name == "POP":
            stack.pop()
        else:
            raise ValueError(f"it has the operation {name}")

    def _marked(self) -> list[Any]:
        """Return the values above the last mark, and take all of them from the stack."""
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def _last(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"it adds to what is no {kind.__name__}")
        return self.stack[-1]


def _text(argument: Any) -> bytes:
    """Return text of Python 2, which `pickletools` shows as if every byte were a character."""
    return cast("str", argument).encode("latin-1")


_VALUES: dict[str, Callable[[Any], Any]] = {
    "MARK": lambda _: _Mark(),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _text),
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        ),
        lambda argument: argument,
    ),
}


def _pairs(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError("a key has no value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | bytes | int):
            raise ValueError(f"a key is a {type(key).__name__}")
        target[key] = value
    return target


def _named(module: Any, attribute: Any) -> _Named:
    role = _GLOBALS.get((_as_text(module), _as_text(attribute)))
    if role is None:
        raise ValueError(f"it names {_as_text(module)}.{_as_text(attribute)}"[:200])
    return _Named(role)


def _as_text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _called(function: Any, arguments: Any) -> Any:
    """Return what a function of NumPy would make of arguments, to be filled by `_built`."""
    role = function.role if isinstance(function, _Named) else ""
    if role == "array" and len(arguments) == 3 and arguments[0] == _Named("ndarray"):
        return _Array()
    if role == "dtype" and 1 <= len(arguments) <= 3:
        code = _as_text(arguments[0])
        if code.lstrip("<>|=") not in _DTYPES:
            raise ValueError(f"it holds an array of {code!r:.20}")
        return _Dtype(code.lstrip("<>|="))
    if role == "encode" and len(arguments) in (1, 2):  # bytes, in protocols before 3
        if len(arguments) == 2 and _as_text(arguments[1]) not in ("latin1", "latin-1"):
            raise ValueError("it has bytes of an encoding that pickles do not use")
        return _text(arguments[0])
    raise ValueError("it calls what is no function")


def _built(made: Any, state: Any) -> None:
    """Fill a dtype or an array with its state."""
    if isinstance(made, _Dtype):
        order = _as_text(state[1])
        if order not in ("|", "<", ">", "=") or any(state[2:5]):
            raise ValueError("it holds an array of more than numbers")
        made.order = order
        return
    if not isinstance(made, _Array):
        raise ValueError("it fills what is no array")
    _, shape, dtype, fortran, raw = state
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or not _is_shape(shape):
        raise ValueError("it holds an array of more than numbers")
    kind = np.dtype(_code_of(dtype))
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} has {len(raw):,} bytes")
    order: Any = "F" if fortran else "C"
    made.value = np.frombuffer(raw, kind).reshape(shape, order=order)


def _code_of(dtype: _Dtype) -> str:
    """Return what NumPy calls a dtype."""
    return ("" if dtype.order == "|" else dtype.order) + dtype.code


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, tuple)
        and len(cast("tuple[Any, ...]", shape)) <= 8
        and all(type(size) is int and size >= 0 for size in cast("tuple[Any, ...]", shape))
    )


def _plain(value: Any, depth: int, done: dict[int, Any]) -> Any:
    """Return a value with arrays in their places; ValueError if it is not plain.

    What is there several times is looked at once, and stays one.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"its values lie more than {_MAX_DEPTH} deep in one another")
    if id(value) in done:
        return done[id(value)]
    made = value
    if isinstance(value, _Array):
        made = value.value
        if made is None:
            raise ValueError("an array has no content")
    elif isinstance(value, dict):
        entries = cast("dict[Any, Any]", value).items()
        made = {k: _plain(v, depth + 1, done) for k, v in entries}
    elif isinstance(value, list | tuple):
        inner = [_plain(v, depth + 1, done) for v in cast("list[Any]", value)]
        made = inner if isinstance(value, list) else tuple(inner)
    elif not isinstance(value, _PLAIN):
        raise ValueError("it ends with what is no data")
    if isinstance(value, _Array | dict | list | tuple):
        done[id(cast("Any", value))] = made
    return made
