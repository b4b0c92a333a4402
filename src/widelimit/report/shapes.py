"""What a record must look like, before anything of it is believed: a small language of shapes.

A shape is ``str``, ``bool``, ``int`` (of 64 bits), ``float`` (any finite number), a list of one
shape (any number of these), a tuple of shapes (a list of just these), a dictionary of shapes by
key, `Maybe` (or null, or no such key) or `Each` (of a dictionary with any keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from widelimit.doctor import Machine
from widelimit.experiments.environment import Environment

__all__ = ["ENVIRONMENT", "Each", "Maybe", "check", "environment_of"]

Shape: TypeAlias = Any

_MOST = 2**63
_LARGEST = 1e300
_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Maybe:
    """A shape, or null, or that the key is not there."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Each:
    """A dictionary whose values all have one shape."""

    shape: Shape


ENVIRONMENT: dict[str, Shape] = {
    "command": str,
    "started": str,
    "version": str,
    "commit": Maybe(str),
    "dirty": Maybe(bool),
    "machine": {
        "system": str,
        "cpu": str,
        "cores_usable": int,
        "cores": int,
        "memory_free": Maybe(int),
        "gpu_driver": bool,
        "python": str,
        "packages": Each(Maybe(str)),
    },
}
"""Of `Environment`."""


def environment_of(content: dict[str, Any]) -> Environment:
    """Return what was checked to have the shape `ENVIRONMENT`."""
    fields: dict[str, Any] = content | {"machine": Machine(**content["machine"])}
    return Environment(**fields)


def check(value: Any, shape: Shape, where: str = "it") -> Any:
    """Return a value with nothing in it but what its shape has.

    Parameters
    ----------
    value : object
        Of JSON.
    shape : object
        As described above.
    where : str
        What messages call the value.

    Returns
    -------
    object
        Lists and dictionaries are new; keys that may be missing, and are, have None.

    Raises
    ------
    ValueError
        With the place that has another shape.
    """
    if isinstance(shape, Maybe):
        return None if value is None else check(value, shape.shape, where)
    if isinstance(shape, type):
        return _check_plain(value, shape, where)
    if isinstance(shape, list | tuple):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {value!r:.60}")
        items = cast("list[Any]", value)
        shapes = cast("list[Shape]", shape)
        if isinstance(shape, list):
            shapes = shapes * len(items)
        elif len(items) != len(shapes):
            raise ValueError(f"{where} must have {len(shapes)} entries, got {len(items)}")
        pairs = enumerate(zip(items, shapes, strict=True))
        return [check(v, s, f"{where}[{i}]") for i, (v, s) in pairs]
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got {value!r:.60}")
    entries = cast("dict[str, Any]", value)
    if isinstance(shape, Each):
        return {k: check(v, shape.shape, f"{where}.{k:.60}") for k, v in entries.items()}
    found: dict[str, Any] = {}
    for key, inner in cast("dict[str, Shape]", shape).items():
        if key not in entries and not isinstance(inner, Maybe):
            raise ValueError(f"{where} must have {key!r}")
        found[key] = check(entries.get(key), inner, key if where == "it" else f"{where}.{key}")
    return found


def _check_plain(value: Any, shape: type, where: str) -> Any:
    fits = isinstance(value, (int, float) if shape is float else shape)
    if isinstance(value, bool) and shape is not bool:
        fits = False
    if fits and isinstance(value, int | float):
        fits = abs(value) < (_MOST if shape is int else _LARGEST)
    if not fits:
        raise ValueError(f"{where} must be {_WORDS[shape]}, got {value!r:.60}")
    return value
