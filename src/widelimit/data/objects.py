"""Data sets of other libraries, as objects: Hugging Face, PyTorch, pairs of arrays, data frames."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.data.dataset import Dataset
from widelimit.data.parts import PART_WORDS, Part, Reading, assemble, check_images
from widelimit.data.table import Table, from_tables
from widelimit.matrices.foreign import is_from, read_items, stack_items, to_array

__all__ = ["load_object"]

_LABELS = ("label", "labels", "class", "target", "y")
_SHOWN = 8
_NUMBERS = ("int", "uint", "float", "bool")
_MAX_ROWS = 2**24  # of a column that is no image


def load_object(source: Any, reading: Reading) -> Dataset:
    """Return the data set that an object of another library is.

    Parameters
    ----------
    source : object
        As for `load_dataset`.
    reading : Reading

    Raises
    ------
    TypeError
        If it is none.
    ValueError
        If samples or labels cannot be told, or do not fit together.
    """
    if is_from(source, "datasets") and hasattr(source, "column_names"):
        return _load_hugging_face(source, reading)
    if is_from(source, "torch.utils.data"):
        x, labels = read_items(source, "the data set", ordered=False)
        if labels is None:
            raise ValueError("the data set must give pairs of a sample and a label, got samples")
        check_images("the data set", replace(reading, channels=None))
        inner = getattr(source, "dataset", source)
        names = getattr(inner, "classes", None)
        return _assembled({"train": Part(x, _labels(labels))}, "PyTorch", reading, names)
    given: Any = source
    if type(given) is tuple and len(cast("tuple[Any, ...]", given)) == 2:
        check_images("(x, y)", replace(reading, channels=None))
        x, y = cast("tuple[Any, Any]", given)
        part = Part(np.asarray(to_array(x, "x")), np.asarray(to_array(y, "y")))
        columns: Any = getattr(x, "columns", None)
        names = None if columns is None else [str(name) for name in columns]
        return assemble("data", {"train": part}, "Arrays", reading, feature_names=names)
    if hasattr(source, "columns") and (is_from(source, "pandas") or is_from(source, "polars")):
        return from_tables({"train": _as_table(source)}, "data", "A data frame", reading)
    raise TypeError(
        "load_dataset takes a name, a path, a data set of Hugging Face or PyTorch, a data frame, "
        f"or a pair (x, y), got {_class_of(source)}"
    )


def _class_of(x: object) -> str:
    return f"{type(x).__module__}.{type(x).__name__}"


def _labels(values: Sequence[Any]) -> NDArray[Any]:
    array = np.asarray(values)
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _assembled(parts: Mapping[str, Part], source: str, reading: Reading, names: Any) -> Dataset:
    class_names = None if names is None else [str(name) for name in names]
    title = f"A data set of {source}"
    return assemble("data", parts, title, reading, class_names=class_names, first=0)


def _as_table(frame: Any) -> Table:
    if is_from(frame, "polars"):
        pandas = importlib.import_module("pandas")
        if hasattr(frame, "collect"):
            frame = frame.collect()
        frame = pandas.DataFrame({name: frame[name].to_numpy() for name in frame.columns})
    frame = frame.reset_index(drop=True)
    frame.columns = [str(name) for name in frame.columns]
    return Table(Path("data frame"), frame, named=True)


# ---------------------------------------------------------------- Hugging Face


def _load_hugging_face(source: Any, reading: Reading) -> Dataset:
    """Read the columns of a data set, of all its splits."""
    names: Any = source.column_names
    if isinstance(names, dict):
        keys = list(cast("dict[Any, Any]", names))
        splits: dict[str, Any] = {
            PART_WORDS.get(str(key).lower(), str(key)): source[key] for key in keys
        }
        splits = {key: splits[key] for key in ("train", "test", "val") if key in splits}
        if "train" not in splits:
            raise ValueError(
                "the data set must have a split train, got "
                f"{', '.join(map(str, keys))}: give one of them"
            )
    else:
        splits = {"train": source}
    features: dict[str, Any] = dict(splits["train"].features)
    label = _label_of(features, reading.label)
    columns = _columns_of(features, label)
    parts: dict[str, Part] = {}
    for key, split in splits.items():
        plain = split.with_format(None)
        y = _labels(list(plain[label]))
        parts[key] = Part(_samples_of(plain, columns, features), y)
    names = getattr(features[label], "names", None)  # of a ClassLabel
    feature_names = columns if len(columns) > 1 else None
    return assemble(
        "data",
        parts,
        "A data set of Hugging Face",
        reading,
        class_names=None if names is None else [str(name) for name in names],
        feature_names=feature_names,
        label_name=label,
        first=0,
    )


def _shown(features: Mapping[str, Any]) -> str:
    kinds = [f"{name} ({_kind(feature)})" for name, feature in features.items()]
    return ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(getattr(feature, "dtype", name)) if name == "Value" else name


def _label_of(features: Mapping[str, Any], label: str | None) -> str:
    if label is not None:
        if label not in features:
            raise ValueError(f"the data set has no column {label!r}, got {_shown(features)}")
        return label
    named = [name for name in features if name.lower() in _LABELS]
    found = named or [name for name in features if _kind(features[name]) == "ClassLabel"]
    if len(found) != 1:
        several = f", and {' and '.join(map(repr, found))} may be it" if found else ""
        raise ValueError(
            f"the data set must have one column of labels{several}, got {_shown(features)}: name "
            "it with label="
        )
    return found[0]


def _columns_of(features: Mapping[str, Any], label: str) -> list[str]:
    """Return the column of images or arrays, or all columns of numbers."""
    rest = {name: _kind(feature) for name, feature in features.items() if name != label}
    for kinds in (("Image",), ("Array2D", "Array3D"), ("Sequence", "List", "LargeList")):
        if found := [name for name, kind in rest.items() if kind in kinds]:
            if len(found) > 1:
                raise ValueError(
                    f"the data set must have one column of images, got {', '.join(found)}: "
                    "remove_columns() the others"
                )
            return found
    found = [name for name, kind in rest.items() if kind.rstrip("0123456789") in _NUMBERS]
    if not found:
        raise ValueError(f"the data set must have images or numbers, got {_shown(features)}")
    return found


def _samples_of(split: Any, columns: Sequence[str], features: Mapping[str, Any]) -> NDArray[Any]:
    if _kind(features[columns[0]]) == "Image":
        return stack_items(list(split[columns[0]]), f"column {columns[0]!r}")
    arrays = [np.asarray(list(split[name])) for name in columns]
    return arrays[0] if len(columns) == 1 and arrays[0].ndim > 1 else np.stack(arrays, axis=1)
