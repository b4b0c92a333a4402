"""Files of MATLAB, versions 5 to 7, read with NumPy alone.

SciPy's reader crashes on one in a hundred damaged files, since it believes sizes in them; here
every size is checked before anything is taken from it. Numbers, text, cells and structures are
read; complex and sparse matrices, objects and functions are not.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["Variable", "read_matlab", "scan_matlab"]

_HEADER = 128
_INTS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 12: "i8", 13: "u8"}
_STORED = {**_INTS, 7: "f4", 9: "f8", 16: "u1", 17: "u2", 18: "u4"}  # how numbers lie in the file
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCTURE, _OBJECT, _CHARACTERS, _SPARSE = 1, 2, 3, 4, 5
_CLASSES = {
    6: "f8",
    7: "f4",
    8: "i1",
    9: "u1",
    10: "i2",
    11: "u2",
    12: "i4",
    13: "u4",
    14: "i8",
    15: "u8",
}
_WORDS = {_CELL: "cells", _STRUCTURE: "a structure", _CHARACTERS: "text", _SPARSE: "sparse"}
_COMPLEX, _LOGICAL = 0x0800, 0x0200  # flags
_START = 2**12  # bytes in which the header of a matrix lies: names have at most 63 characters
_MAX_RANK, _MAX_DEPTH, _MAX_ENTRIES = 8, 4, 100_000
_MAX_VARIABLES, _MAX_CHARACTERS = 10_000, 2**22
_MAX_RATIO, _FREELY_UNPACKED = 100, 2**28  # as for ``.npz``


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a file, of which only the header has been read.

    Parameters
    ----------
    shape : tuple of int
    kind : str
        What to call its type.
    is_structure : bool
        Whether it is one structure: `read` then returns its fields.
    read : callable
        Returns an array of numbers or text, or the arrays of a structure by name.
    """

    shape: tuple[int, ...]
    kind: str
    is_structure: bool
    read: Callable[[], NDArray[Any] | dict[str, NDArray[Any]]]


def scan_matlab(file: BinaryIO) -> dict[str, Variable]:
    """Return the variables of a file by name.

    Raises
    ------
    ValueError
        If it is no such file, or damaged; the message says what is wrong with it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    order = _order(file.read(_HEADER))
    found: dict[str, Variable] = {}
    at = _HEADER
    while at < size:
        file.seek(at)
        tag = _tag(memoryview(file.read(8)), 0, order)
        if tag.small or tag.size > size - at - 8:
            raise ValueError("it ends inside a variable")
        start = file.read(min(tag.size, _START))
        whole = partial(_content, file, at + 8, tag, size, order)
        if tag.kind == _COMPRESSED:
            start = zlib.decompressobj().decompress(start, _START)
            inner = _tag(memoryview(start), 0, order)
            kind, start = inner.kind, start[8:]
        else:
            kind = tag.kind
        if kind == _MATRIX and start:
            head = _head(memoryview(start), order)
            if head is not None:
                found[head.name] = _variable(head, whole, order)
        if len(found) > _MAX_VARIABLES:
            raise ValueError(f"it has more than {_MAX_VARIABLES:,} variables")
        at += 8 + tag.size
    return found


def read_matlab(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """Return all arrays of a file by name; those of structures have paths, ``train/images``.

    Raises
    ------
    ValueError
        As for `scan_matlab`.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, variable in scan_matlab(file).items():
        if variable.kind in _UNREAD:
            continue
        made = variable.read()
        if isinstance(made, dict):
            arrays |= {f"{name}/{inner}": array for inner, array in made.items()}
        else:
            arrays[name] = made
    return arrays


# ---------------------------------------------------------------- elements


@dataclass(frozen=True, slots=True)
class _Tag:
    """What is said before the content of an element, which begins at `start`."""

    kind: int
    size: int
    start: int
    following: int
    small: bool


@dataclass(frozen=True, slots=True)
class _Head:
    """What a matrix says of itself; its content begins at `start`."""

    name: str
    kind: int
    flags: int
    shape: tuple[int, ...]
    start: int


@dataclass(slots=True)
class _Count:
    """How many matrices may still be read from one variable."""

    left: int = field(default=_MAX_ENTRIES)


def _order(header: bytes) -> str:
    """Return the byte order of a file, as NumPy calls it."""
    if len(header) < _HEADER:
        raise ValueError("it is shorter than a header")
    if 0 in header[:4]:
        raise ValueError("it is of version 4 or older, or none: save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None:
        raise ValueError("its header does not tell the order of bytes")
    return order


def _tag(view: memoryview, at: int, order: str) -> _Tag:
    if at + 8 > len(view):
        raise ValueError("it ends inside an element")
    first, second = np.frombuffer(view, f"{order}u4", 2, at).tolist()
    if first >> 16:  # a small element: size, type and content are one
        size = first >> 16
        if size > 4:
            raise ValueError(f"a small element has {size} bytes")
        return _Tag(first & 0xFFFF, size, at + 4, at + 8, True)
    return _Tag(first, second, at + 8, at + 8 + -(-second // 8) * 8, False)


def _element(view: memoryview, at: int, order: str) -> tuple[_Tag, memoryview]:
    """Return an element of a matrix that is there as a whole, and its content."""
    tag = _tag(view, at, order)
    if tag.start + tag.size > len(view):
        raise ValueError("it ends inside an element")
    return tag, view[tag.start : tag.start + tag.size]


def _numbers(tag: _Tag, content: memoryview, order: str) -> NDArray[Any]:
    code = _STORED.get(tag.kind)
    if code is None:
        raise ValueError(f"numbers have the type {tag.kind}")
    dtype = np.dtype(order + code)
    if tag.size % dtype.itemsize:
        raise ValueError(f"{tag.size} bytes are no numbers of {dtype.itemsize}")
    return np.frombuffer(content, dtype)


def _head(view: memoryview, order: str) -> _Head | None:
    """Return the header of a matrix; None of one that is hidden, as an object is."""
    tag, content = _element(view, 0, order)
    flags = _numbers(tag, content, order)
    if tag.kind != 6 or len(flags) != 2:
        raise ValueError("a matrix has no flags")
    word = int(flags[0])
    kind = word & 0xFF
    if kind > 15:  # functions and opaque objects go on in another way
        return None
    tag, content = _element(view, tag.following, order)
    if tag.kind != 5:
        raise ValueError("a matrix has no shape")
    shape = tuple(_numbers(tag, content, order).tolist())
    if not 2 <= len(shape) <= _MAX_RANK or min(shape) < 0:
        raise ValueError(f"a matrix has the shape {shape}")
    tag, content = _element(view, tag.following, order)
    name = bytes(content).decode("latin-1")
    return _Head(name, kind, word, shape, tag.following)


_UNREAD = ("sparse", "complex", "objects")


def _variable(head: _Head, whole: Callable[[], memoryview], order: str) -> Variable:
    kind = _WORDS.get(head.kind, _CLASSES.get(head.kind, "objects"))
    kind = "complex" if head.flags & _COMPLEX else "bool" if head.flags & _LOGICAL else kind
    one = head.kind == _STRUCTURE and math.prod(head.shape) == 1
    shown = np.dtype(kind).name if kind in _CLASSES.values() else kind

    def read() -> Any:
        view = whole()
        again = _head(view, order)
        if again != head:
            raise ValueError("it has changed while it was read")
        if one:
            return _fields(view, head, order, "", 0, _Count())
        return _value(view, head, order, 0, _Count())

    return Variable(head.shape, shown, one, read)


def _content(file: BinaryIO, at: int, tag: _Tag, size: int, order: str) -> memoryview:
    """Return the content of a variable, unpacked: the matrix without its tag."""
    file.seek(at)
    packed = file.read(tag.size)
    if tag.kind != _COMPRESSED:
        return memoryview(packed)
    most = max(_FREELY_UNPACKED, _MAX_RATIO * size)
    unpacker = zlib.decompressobj()
    view = memoryview(unpacker.decompress(packed, most + 1))
    if len(view) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    inner = _tag(view, 0, order)
    if inner.kind != _MATRIX or inner.size > len(view) - 8 or not unpacker.eof:
        raise ValueError("a variable is cut off")
    return view[8 : 8 + inner.size]


# ---------------------------------------------------------------- values


def _value(view: memoryview, head: _Head, order: str, depth: int, count: _Count) -> NDArray[Any]:
    """Return a matrix: numbers, text, or an array of objects for cells."""
    if head.kind == _CELL:
        return _cells(view, head, order, depth, count)
    if head.kind == _CHARACTERS:
        return _characters(view, head, order)
    code = _CLASSES.get(head.kind)
    if code is None or head.flags & _COMPLEX:
        raise ValueError(f"{head.name or 'it'} is complex, sparse or an object")
    tag, content = _element(view, head.start, order)
    stored = _numbers(tag, content, order)
    if stored.size != math.prod(head.shape):
        raise ValueError(f"{head.name} of shape {head.shape} has {stored.size:,} numbers")
    made = stored.astype(np.bool_ if head.flags & _LOGICAL else code)
    return made.reshape(head.shape, order="F")


def _characters(view: memoryview, head: _Head, order: str) -> NDArray[Any]:
    """Return the lines of text of a matrix of characters, without spaces at their ends."""
    tag, content = _element(view, head.start, order)
    if tag.size > _MAX_CHARACTERS:
        raise ValueError(f"{head.name} has {tag.size:,} bytes of text")
    if tag.kind in _TEXT:
        ends = {"<": "-le", ">": "-be"}[order] if tag.kind != 16 else ""
        letters = list(bytes(content).decode(_TEXT[tag.kind] + ends))
    else:
        letters = [chr(code) for code in _numbers(tag, content, order).tolist()]
    if len(head.shape) != 2 or len(letters) != math.prod(head.shape):
        raise ValueError(f"{head.name} of shape {head.shape} has {len(letters):,} characters")
    if not letters:
        return np.array([""] * head.shape[0], np.str_)
    table = np.array(letters, np.str_).reshape(head.shape, order="F")
    return np.array(["".join(line).rstrip(" \0") for line in table], np.str_)


def _matrix(
    view: memoryview, at: int, order: str, depth: int, count: _Count
) -> tuple[memoryview, _Head | None, int]:
    """Return a matrix in another one, its header if it is not empty, and where the next begins."""
    count.left -= 1
    if count.left < 0 or depth > _MAX_DEPTH:
        raise ValueError("it has too many matrices in one another")
    tag, content = _element(view, at, order)
    if tag.kind != _MATRIX:
        raise ValueError("a cell or a field is no matrix")
    return content, _head(content, order) if tag.size else None, tag.following


def _cells(view: memoryview, head: _Head, order: str, depth: int, count: _Count) -> NDArray[Any]:
    total, at = math.prod(head.shape), head.start
    if total > count.left:
        raise ValueError(f"it has {total:,} cells")
    cells = np.empty(total, object)
    for place in range(total):
        content, inner, at = _matrix(view, at, order, depth + 1, count)
        if inner is not None and inner.kind != _STRUCTURE:
            cells[place] = _value(content, inner, order, depth + 1, count)
    return cells.reshape(head.shape, order="F")


def _fields(
    view: memoryview, head: _Head, order: str, prefix: str, depth: int, count: _Count
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a structure, and of those in it, by path."""
    tag, content = _element(view, head.start, order)
    width = _numbers(tag, content, order)
    tag, content = _element(view, tag.following, order)
    if width.size != 1 or not 1 <= (size := int(width[0])) <= 256 or tag.size % size:
        raise ValueError("a structure has fields without names")
    names = bytes(content)
    at, arrays = tag.following, dict[str, NDArray[Any]]()
    for start in range(0, len(names), size):
        name = prefix + names[start : start + size].split(b"\0")[0].decode("latin-1")
        inside, inner, at = _matrix(view, at, order, depth + 1, count)
        if inner is None or inner.flags & _COMPLEX:
            continue
        if inner.kind == _STRUCTURE and math.prod(inner.shape) == 1:
            arrays |= _fields(inside, inner, order, f"{name}/", depth + 1, count)
        elif inner.kind in (*_CLASSES, _CELL, _CHARACTERS):
            arrays[name] = _value(inside, inner, order, depth + 1, count)
    return arrays
