"""What is given in place of arrays: tensors, images, columns and data sets of other libraries.

The one place where samples enter: `kernel`, `gram`, the estimators and `load_dataset` take the
same. No library is imported here; what an object is follows from what it has, and from the module
that its class is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_from", "read_items", "stack_items", "to_array", "to_host"]

_LOADER, _DATASET = "torch.utils.data.dataloader", "torch.utils.data"
_IN_ORDER, _OF_BATCHES = "SequentialSampler", "BatchSampler"  # torch.utils.data.sampler
_MAX_COLUMNS = 8  # in a message


def is_from(x: Any, module: str) -> bool:
    """Return whether the class of an object, or one that it is derived from, is of a module."""
    return any(
        cls.__module__ == module or cls.__module__.startswith(f"{module}.")
        for cls in type(x).__mro__
    )


def to_array(x: Any, name: str = "X") -> Any:
    """Return samples, or labels, as a NumPy array; what is none leave as it is.

    Parameters
    ----------
    x : object
        Tensors of PyTorch, arrays of JAX and CuPy, and all that has ``__dlpack__``, leave the graph
        of derivatives and the device. Lists of images, arrays or tensors of one shape, and columns
        of Hugging Face's ``datasets``, become one array; grey images become coloured if others are.
        Of a ``Dataset`` or ``DataLoader`` of PyTorch, the samples are taken, in their order. Data
        frames, and anything else, are returned as they are.
    name : str
        Of the argument, for messages.

    Raises
    ------
    TypeError
        If it is sparse, lazy, a data set of several columns, or a loader in random order; or NumPy
        has no such dtype.
    ValueError
        If images have different shapes.
    """
    if isinstance(x, np.ndarray | np.generic):
        return cast("Any", x)
    if hasattr(x, "toarray") and hasattr(x, "tocsr"):
        raise TypeError(
            f"{name} must be dense, got a sparse matrix ({type(x).__name__}) of shape "
            f"{getattr(x, 'shape', '?')}: give {name}.toarray()"
        )
    if hasattr(x, "__dlpack__"):
        return to_host(x)
    if is_from(x, "polars") and hasattr(x, "collect"):
        raise TypeError(f"{name} must hold values, got a lazy frame: give {name}.collect()")
    if is_from(x, "datasets") and hasattr(x, "column_names"):
        _refuse_columns(x, name)
    if is_from(x, _DATASET):
        return read_items(x, name, ordered=True)[0]
    if isinstance(x, list | tuple):
        entries = cast("Sequence[Any]", x)
        return stack_items(entries, name) if entries and _is_item(entries[0]) else entries
    if is_from(x, "datasets"):  # a column
        column = list(cast("Iterable[Any]", x))
        return stack_items(column, name) if column and _is_item(column[0]) else np.asarray(column)
    return x


def _refuse_columns(x: Any, name: str) -> None:
    columns: Any = x.column_names
    if isinstance(columns, dict):  # of several splits
        splits = list(cast("dict[str, Any]", columns))
        raise TypeError(
            f"{name} must be one column of a data set, got the splits {', '.join(splits)}: give "
            f"{name}[{splits[0]!r}][column], or all to load_dataset"
        )
    shown = ", ".join(map(str, columns[:_MAX_COLUMNS]))
    raise TypeError(
        f"{name} must be one column of a data set, got all of {shown}: give "
        f"{name}[{str(columns[0])!r}], or all to load_dataset"
    )


def to_host(x: Any) -> Any:
    """Copy an array of another library to the host, as a NumPy array of the same dtype.

    The one rule for tensors of PyTorch, arrays of JAX and of CuPy, and all that has ``__dlpack__``:
    they leave the graph of derivatives and the device, and become NumPy arrays. Results are NumPy
    arrays, too. Anything else, as a list or a data frame, is returned as it is.

    Raises
    ------
    TypeError
        If NumPy has no such dtype.
    """
    if isinstance(x, np.ndarray | np.generic) or not hasattr(x, "__dlpack__"):
        return cast("Any", x)
    plain = x.detach() if hasattr(x, "detach") else x  # PyTorch: out of the graph
    for move in ("cpu", "get"):  # PyTorch, CuPy; others come by themselves
        if hasattr(plain, move):
            plain = getattr(plain, move)()
            break
    try:
        return np.asarray(plain)
    except (TypeError, BufferError) as error:
        raise TypeError(
            f"an array of {type(x).__module__.partition('.')[0]} must have a dtype that NumPy has, "
            f"got {getattr(x, 'dtype', 'none')}: convert it, say to float32"
        ) from error


def _is_item(x: Any) -> bool:
    """Return whether an entry of a list is an image, an array or a tensor, and no number."""
    return _is_picture(x) or hasattr(x, "__dlpack__") or (hasattr(x, "shape") and bool(x.shape))


def _is_picture(x: Any) -> bool:
    """Return whether an object is an image of Pillow."""
    return is_from(x, "PIL") and hasattr(x, "mode")


def stack_items(items: Sequence[Any], name: str) -> NDArray[Any]:
    """Return samples of one shape as one array.

    Raises
    ------
    ValueError
        If they have different shapes.
    """
    arrays = _pictures(items) if all(map(_is_picture, items)) else [_item(x) for x in items]
    shapes = {array.shape: place for place, array in reversed(list(enumerate(arrays)))}
    if len(shapes) > 1:
        (first, _), (other, place), *_ = sorted(shapes.items(), key=lambda pair: pair[1])
        raise ValueError(
            f"{name} must hold samples of one shape, got {first} and, at {place}, {other}: resize "
            "them"
        )
    return np.stack(arrays)


def _item(x: Any) -> NDArray[Any]:
    return _pictures([x])[0] if _is_picture(x) else np.asarray(to_host(x))


def _pictures(images: Sequence[Any]) -> list[NDArray[Any]]:
    """Return images of Pillow as arrays (h, w) or (h, w, 3); grey ones like others."""
    grey = ("1", "L", "I", "F")
    coloured = any(not image.mode.startswith(grey) for image in images)
    made: list[NDArray[Any]] = []
    for image in images:
        deep = image.mode.startswith(("I", "F"))
        wanted = image.mode if deep and not coloured else "RGB" if coloured else "L"
        made.append(np.asarray(image if image.mode == wanted else image.convert(wanted)))
    return made


# ---------------------------------------------------------------- PyTorch


def read_items(x: Any, name: str, *, ordered: bool) -> tuple[NDArray[Any], list[Any] | None]:
    """Read a ``Dataset`` or ``DataLoader`` of PyTorch.

    Parameters
    ----------
    x : object
    name : str
        Of the argument, for messages.
    ordered : bool
        Whether samples have to come in the order of the data set.

    Returns
    -------
    samples : ndarray of shape (n, ...)
    labels : list or None
        The second entry of each item, if there is one.

    Raises
    ------
    TypeError
        If it has no end; or a loader is to be in order, and is in random order.
    ValueError
        If samples have different shapes, or there are none.
    """
    batched = False
    if is_from(x, _LOADER) and hasattr(x, "batch_size"):
        sampler, batched = _sampler(x)
        if ordered and sampler != _IN_ORDER:
            raise TypeError(
                f"{name} must be in a fixed order, that of its data set, got a DataLoader with a "
                f"{sampler}, which may be another one each time, and that of no labels: make it "
                "with shuffle=False, and without a sampler of its own"
            )
        entries: Iterator[Any] = iter(x)
    elif hasattr(x, "__len__") and hasattr(x, "__getitem__"):
        entries = (x[place] for place in range(len(x)))
    else:
        raise TypeError(
            f"{name} must have a length, got {type(x).__name__}, which is read in one go: give "
            "list(itertools.islice(...)) of it, or arrays"
        )
    samples: list[Any] = []
    labels: list[Any] = []
    for entry in entries:
        pair = isinstance(entry, list | tuple)
        parts: Sequence[Any] = cast("Any", entry) if pair else (entry,)
        samples.append(parts[0])
        if len(parts) > 1:
            labels.append(parts[1])
    if not samples:
        raise ValueError(f"{name} must hold samples, got an empty {type(x).__name__}")
    if batched:
        values = np.concatenate([np.asarray(to_host(batch)) for batch in samples])
        known = len(x.dataset) if hasattr(x, "dataset") and hasattr(x.dataset, "__len__") else None
        if ordered and known is not None and len(values) != known:
            raise ValueError(
                f"{name} must hold all {known:,} samples of its data set, got {len(values):,}: "
                "make the DataLoader with drop_last=False"
            )
        flat = [label for batch in labels for label in np.asarray(to_host(batch)).tolist()]
        return values, flat or None
    single = [np.asarray(to_host(label)).tolist() for label in labels]
    return stack_items(samples, name), single or None


def _sampler(loader: Any) -> tuple[str, bool]:
    """Return the class that decides the order of a loader, and whether it gives batches."""
    batches = getattr(loader, "batch_sampler", None)  # None: what `sampler` gives is one sample
    sampler = loader.sampler if batches is None else batches
    batched = batches is not None or loader.batch_size is not None
    while type(sampler).__name__ == _OF_BATCHES:
        sampler, batched = sampler.sampler, True
    return type(sampler).__name__, batched
