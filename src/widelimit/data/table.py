"""Tables: CSV files of features or pixels, with a column of labels, read with pandas."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.data.dataset import Dataset, check_size
from widelimit.data.parts import PART_WORDS, Part, Reading, assemble
from widelimit.machine import ALWAYS_FITS, available_memory
from widelimit.reading import open_regular, refusing

__all__ = [
    "TABLES",
    "Table",
    "find_columns",
    "find_label",
    "from_tables",
    "is_table",
    "load_tables",
    "needed",
    "read_table",
    "samples_of",
]

TABLES = (".csv", ".tsv", ".data", ".csv.gz", ".tsv.gz", ".data.gz")
"""How names of tables end, in lower case."""

_LABELS = ("label", "labels", "class", "target", "y", "category", "species", "classname", "emotion")
_SPLITS = ("split", "usage", "subset", "set", "partition")
_SPLIT_WORDS = {**PART_WORDS, "publictest": "val", "privatetest": "test", "dev": "val"}
# Columns that number or name rows, and are no features.
_NUMBERS = ("", "id", "index", "idx", "rowid", "rownumber", "unnamed0", "imageid", "sampleid")
_ROW_NAMES = ("file", "files", "filename", "path", "filepath", "image", "imagename", "imagepath")
# Labels whose number says all: 01, +1 and true are other texts than those of 1, 1 and 1.
_WHOLE, _WITH_POINT = re.compile(r"0|-?[1-9]\d*"), re.compile(r"-?(0|[1-9]\d*)([.,]\d*)?([eE]\S+)?")
_PIXEL = re.compile(r"(pixels?|pix|px)[ _.-]?\d+|\d+x\d+")
_MAX_BYTES = 2**32  # of a table, unpacked
_MAX_RATIO, _FREELY_UNPACKED = 100, 2**29  # as in `check_unpacked`
_START = 2**16  # bytes that tell what kind of table it is
_LEAST_SIDE, _DARK = 8, 127  # of images in a table that names no columns
_FEW = 100  # classes that numbers in a column without a name may have
_SHOWN = 8  # columns in a message


def is_table(path: Path) -> bool:
    """Return whether the name of a file ends as that of a table."""
    return path.name.lower().endswith(TABLES)


def needed(module: str, what: str) -> Any:
    """Import a package that only some files need.

    Raises
    ------
    ValueError
        If it is not there; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(
            f'{what} needs {module}, which is not installed: pip install {module}, or "widelimit'
            '[data]" for all readers'
        ) from None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table as it was read; nothing is known of its columns but their names.

    Parameters
    ----------
    path : Path
    frame : pandas.DataFrame
        Names of columns are text.
    named : bool
        Whether the file names its columns.
    written : callable or None
        Reads a column again, as the text that the file has; None: there is no file.
    """

    path: Path
    frame: Any
    named: bool
    written: Callable[[str], list[str]] | None = None

    @property
    def columns(self) -> list[str]:
        """Names of the columns: their places, from 0, where the file has none."""
        return list(self.frame.columns)

    def numeric(self, name: str) -> bool:
        """Return whether a column holds numbers."""
        return self.frame[name].dtype.kind in "buif"

    def values(self, name: str) -> NDArray[Any]:
        """Return one column: numbers, or text."""
        column = self.frame[name]
        if self.numeric(name):
            return column.to_numpy()
        self._check_full(name)
        return np.array([str(entry) for entry in column], dtype=np.str_)

    def labels(self, name: str) -> NDArray[Any]:
        """Return one column: numbers, if no text of the file is lost by that, or text."""
        values = self.values(name)
        if not self.numeric(name) or self.written is None:
            return values
        self._check_full(name)
        texts = self.written(name)
        number = {"b": None, "f": _WITH_POINT}.get(values.dtype.kind, _WHOLE)
        if number is not None and all(map(number.fullmatch, texts)):
            return values
        return np.array(texts, np.str_)

    def _check_full(self, name: str) -> None:
        missing = self.frame[name].isna().to_numpy()
        if missing.any():
            raise ValueError(
                f"{self.path}: column {name!r} is empty in {int(missing.sum()):,} rows, the first "
                f"is row {int(missing.argmax()) + 1}: fill or drop them"
            )

    def numbers(self, names: Sequence[str]) -> NDArray[Any]:
        """Return columns as one array (n, d); ValueError if one does not hold numbers."""
        for name in names:
            if self.numeric(name):
                continue
            found = [str(entry) for entry in self.frame[name].dropna().unique()[:3]]
            raise ValueError(
                f"{self.path}: column {name!r} must hold numbers to be a feature, got "
                f"{', '.join(map(repr, found)) or 'nothing'}: make numbers of it "
                "(pandas.get_dummies), drop it, or, if it has the labels, say so with label= "
                "(--label)"
            )
        check_size((len(self.frame), len(names)), str(self.path))
        values = self.frame[list(names)].to_numpy()
        if values.dtype.kind == "f" and np.isnan(values).any():
            row, column = np.argwhere(np.isnan(values))[0]
            raise ValueError(
                f"{self.path}: a value is missing in column {names[int(column)]!r} of row "
                f"{int(row) + 1}: fill it or drop the row"
            )
        return values

    def shown(self) -> str:
        """Say which columns there are."""
        names = [f"{name} ({'numbers' if self.numeric(name) else 'text'})" for name in self.columns]
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        what = "columns" if self.named else "columns without names"
        return f"{what} {', '.join(names[:_SHOWN])}{more}"


def read_table(path: Path) -> Table:
    """Read a table: separated by commas, semicolons or tabs, with names of columns or without.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no such table, too large, or pandas is not there.
    MemoryError
        If it does not fit into memory.
    """
    pandas = needed("pandas", f"{path}, a table,")
    content = _content(path)
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    encoding = "utf-16" if wide else "utf-8-sig"
    start = content[:_START].decode(encoding, "replace")
    if "\0" in start:
        raise ValueError(f"{path} must be a table, it is no text: is it the right file?")
    lines = [line for line in start.splitlines()[:20] if line.strip()]
    if not lines:
        raise ValueError(f"{path} must be a table, it is empty: is it the right file?")
    separator = _separator(path, lines[0])
    first = [cell.strip() for cell in next(csv.reader([lines[0]], delimiter=separator))]
    comma = separator == ";" and any(
        re.fullmatch(r"-?\d+,\d+", cell) for line in lines for cell in line.split(";")
    )
    named = _names_columns(first)
    parse = partial(
        pandas.read_csv,
        sep=separator,
        header=0 if named else None,
        encoding=encoding,
        encoding_errors="surrogateescape",
        low_memory=False,
        skipinitialspace=True,
        keep_default_na=False,
        na_values=[""],
        decimal="," if comma else ".",
    )
    with (
        refusing(f"{path} must be a table, it is not", "save it again as CSV, in UTF-8"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        frame = parse(io.BytesIO(content))
        # Where rows have more values than there are names, the first ones are now the index: names
        # of rows, which have no name themselves; unless there is a separator at the ends of lines.
        if named and lines[1:] and lines[1].rstrip().endswith(separator):
            *_, last = next(csv.reader([lines[1]], delimiter=separator))
            if not last.strip() and frame.iloc[:, -1].isna().all():
                raise ValueError(f"its rows end with {separator!r}, and the names do not")
    if not len(frame):
        raise ValueError(f"{path} must have rows, got none below the names of columns")
    names = {str(name).strip(): name for name in frame.columns}  # as the file has them
    if len(names) < frame.shape[1]:
        raise ValueError(f"{path} must have columns of different names")
    frame.columns = list(names)

    def written(name: str) -> list[str]:
        alone = [names[name]] if not named or name in first else None  # else pandas named it
        again = parse(io.BytesIO(_content(path)), usecols=alone, dtype={names[name]: str})
        if len(again) != len(frame):
            raise ValueError(f"{path} changed while it was read: read it again")
        return [str(entry).strip() for entry in again[names[name]]]

    return Table(path, frame, named, written)


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        most = size
        stream: Any = file
        if path.suffix.lower() == ".gz":
            stream, most = gzip.GzipFile(fileobj=file), max(_FREELY_UNPACKED, _MAX_RATIO * size)
        free = available_memory() if size > ALWAYS_FITS else None
        if min(most, size) > _MAX_BYTES or (free is not None and 5 * size > free):
            raise ValueError(
                f"{path} has {size:,} bytes, which are too many for a table: save it as .npz"
            )
        with refusing(f"{path} is damaged", "save or download it again"):
            content = stream.read(min(most, _MAX_BYTES) + 1)
        if len(content) > min(most, _MAX_BYTES):
            raise ValueError(f"{path} unpacks to more than {most:,} bytes: save it as .npz")
        return content


def _separator(path: Path, line: str) -> str:
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    return max(",;\t", key=line.count)


def _names_columns(first: Sequence[str]) -> bool:
    """Return whether the first line of a table has the names of its columns."""
    numbers = [cell for cell in first if _is_number(cell)]
    # Text alone is names; so are 0, 1, 2, ..., label, of columns that nobody has named.
    counted = [str(k) for k in range(len(numbers))]
    return not numbers or (2 < len(numbers) < len(first) and numbers == counted)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- what columns are


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_label(table: Table, label: str | None) -> str:
    """Return the name of the column of labels.

    Raises
    ------
    ValueError
        If it cannot be told.
    """
    columns = table.columns
    if label is not None:
        if label in columns:
            return label
        if re.fullmatch(r"-?\d+", label) and -len(columns) <= int(label) < len(columns):
            return columns[int(label)]
        raise ValueError(f"{table.path} has no column {label!r}, got {table.shown()}")
    found = [name for name in columns if table.named and _plain(name) in _LABELS]
    if not found:
        roles = (*_ROW_NAMES, *_SPLITS, *_NUMBERS, "pixels")
        texts = [name for name in columns if not table.numeric(name) and _plain(name) not in roles]
        found = texts if len(texts) == 1 else []
    if not found and not table.named and all(map(table.numeric, columns)):
        found = [name for name in dict.fromkeys((columns[0], columns[-1])) if _few(table, name)]
    if len(found) == 1:
        return found[0]
    several = f", and {' and '.join(map(repr, found))} may be it" if found else ""
    raise ValueError(
        f"{table.path} must have one column of labels, called label, class, target or y{several}; "
        f"got {table.shown()}: name it with label= (--label), or by its place, as -1"
    )


def _few(table: Table, name: str) -> bool:
    """Return whether a column of numbers may be one of labels."""
    values = table.values(name)
    if values.dtype.kind == "f" and not np.all(values == np.rint(values)):
        return False
    return 2 <= len(np.unique(values)) <= min(_FEW, len(values) // 2)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table are."""

    label: str | None
    features: list[str]
    pixels: str | None  # a column of text, each of which is an image
    files: str | None
    split: str | None
    passed: list[str]


def find_columns(table: Table, label: str | None) -> Columns:
    """Return what columns are; those that only number rows are passed over."""
    rest = [name for name in table.columns if name != label]
    files = split = pixels = None
    features: list[str] = []
    passed: list[str] = []
    for name in rest:
        plain = _plain(name) if table.named else "-"
        if plain in _ROW_NAMES and not table.numeric(name):
            files = name
        elif plain in _SPLITS and not table.numeric(name) and _parts_of(table, name) is not None:
            split = name
        elif plain == "pixels" and not table.numeric(name):
            pixels = name
        elif plain in (*_NUMBERS, *_ROW_NAMES):
            passed.append(name)
        else:
            features.append(name)
    return Columns(label, features, pixels, files, split, passed)


def _parts_of(table: Table, name: str) -> NDArray[np.str_] | None:
    """Return the part of each row, if a column says it."""
    words = [_SPLIT_WORDS.get(_plain(str(entry))) for entry in table.frame[name]]
    return None if None in words else np.array(words, np.str_)


def samples_of(table: Table, columns: Columns, reading: Reading) -> NDArray[Any]:
    """Return images (n, h, w) or (n, h, w, c), or rows (n, d), from the columns of a table."""
    if columns.pixels is not None:
        return _from_text(table, columns.pixels)
    values = table.numbers(columns.features)
    if not columns.features:
        raise ValueError(f"{table.path} must have columns beside the labels, got {table.shown()}")
    side = _side(table, columns, values)
    if reading.image_shape is not None or reading.series or side is None:
        return values
    if side > 0:
        return values.reshape(-1, side, side)
    side = math.isqrt(len(columns.features) // 3)
    warnings.warn(
        f"{table.path}: its columns may be pixels of {side} x {side} in three colours; they are "
        f"read as rows. --image-shape {side}x{side}x3 with --channels last (or first) reads images",
        stacklevel=2,
    )
    return values


def _side(table: Table, columns: Columns, values: NDArray[Any]) -> int | None:
    """Return the side of grey images that rows look like, 0 for coloured ones, None for rows."""
    d, names = len(columns.features), columns.features
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > 255:
        return None
    if table.named and not all(_PIXEL.fullmatch(name.lower()) for name in names):
        return None
    if not table.named and (d < _LEAST_SIDE**2 or values.max() <= _DARK):
        return None
    side = math.isqrt(d)
    if side * side == d:
        return side
    return 0 if d % 3 == 0 and math.isqrt(d // 3) ** 2 * 3 == d else None


def _from_text(table: Table, name: str) -> NDArray[Any]:
    """Return the square grey images that a column has as text, ``"70 80 82 ..."`` (FER2013)."""
    texts = [str(entry) for entry in table.frame[name]]
    counts = {text.count(" ") for text in texts[:1]} | {len(text.split()) - 1 for text in texts}
    side = math.isqrt(max(counts) + 1)
    if len(counts) != 1 or side * side != max(counts) + 1:
        raise ValueError(
            f"{table.path}: column {name!r} must hold square images of one size, as numbers with "
            f"spaces between them, got {texts[0][:40]!r}"
        )
    check_size((len(texts), side, side), str(table.path))
    with refusing(f"{table.path}: column {name!r} must hold pixels", "save it again"):
        flat = np.array(list(itertools.chain.from_iterable(t.split() for t in texts)), np.int64)
    return flat.reshape(-1, side, side)


# ---------------------------------------------------------------- data sets


def load_tables(
    paths: dict[str, Path], name: str, reading: Reading, wanted: str | None = None
) -> Dataset:
    """Read a table of each part of a data set.

    Parameters
    ----------
    paths : dict of Path
        "train", and perhaps "test" and "val"; or one table for all, with a column ``split`` or
        ``Usage`` that tells parts.
    name : str
    reading : Reading
    wanted : {"train", "val", "test"} or None
        The one part to take.

    Returns
    -------
    Dataset
        Of images, where columns are called ``pixel0``, ``1x1`` and so on, or have no names and
        hold whole numbers up to 255, as many as a square image has; of rows otherwise.

    Raises
    ------
    OSError, ValueError, MemoryError
        As for `read_table`; if it cannot be told which column has the labels, or another one
        holds no numbers.

    Warns
    -----
    UserWarning
        Of columns that number rows, and tables without labels: they are passed over.
    """
    tables = {key: read_table(path) for key, path in paths.items()}
    files = " and ".join(path.name for path in paths.values())
    source = f"{files}, a table" if len(paths) == 1 else f"{files}, tables"
    return from_tables(tables, name, source, reading, wanted)


def from_tables(
    tables: Mapping[str, Table], name: str, source: str, reading: Reading, wanted: str | None = None
) -> Dataset:
    """Return the data set that tables hold, as `load_tables` does."""
    first = tables["train"]
    label = find_label(first, reading.label)
    columns = find_columns(first, label)
    if columns.passed:
        shown = ", ".join(map(repr, columns.passed[:_SHOWN]))
        warnings.warn(
            f"{first.path}: passed over the columns {shown}, which number rows", stacklevel=2
        )
    parts: dict[str, Part] = {}
    for key, table in tables.items():
        if label not in table.columns:
            warnings.warn(f"{table.path}: passed over, it has no column {label!r}", stacklevel=2)
            continue
        if missing := [column for column in columns.features if column not in table.columns]:
            raise ValueError(
                f"{table.path} must have the columns of {first.path}, got no "
                f"{', '.join(map(repr, missing[:_SHOWN]))}"
            )
        files = None
        if columns.files is not None and columns.files in table.columns:
            files = tuple(cast("list[str]", table.values(columns.files).tolist()))
        parts[key] = Part(samples_of(table, columns, reading), table.labels(label), files)
    if columns.split is not None and len(tables) == 1:
        parts = _divided(parts["train"], _parts_of(first, columns.split), first.path)
    return assemble(
        name,
        parts,
        source,
        reading,
        where=str(first.path),
        feature_names=columns.features if first.named else None,
        label_name=label if first.named else None,
        wanted=wanted,
    )


def _divided(part: Part, words: NDArray[np.str_] | None, path: Path) -> dict[str, Part]:
    """Return the parts that a column tells; without names, samples have that of their row."""
    assert words is not None
    if "train" not in words:
        raise ValueError(f"{path} must have rows for training, got {', '.join(set(words))}")
    parts: dict[str, Part] = {}
    for key in ("train", "val", "test"):
        mine = np.flatnonzero(words == key)
        if mine.size:
            # Places in a part are not those in the file, which `predict` tells.
            files = part.files or [f"{path.name}[{i}]" for i in range(len(part.x))]
            parts[key] = Part(part.x[mine], part.y[mine], tuple(files[i] for i in mine))
    return parts
