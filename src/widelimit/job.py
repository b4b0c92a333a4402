"""Kernels from files to a file or store: what ``widelimit kernel`` and ``widelimit explain`` do."""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from widelimit.architectures import named_network
from widelimit.backends import BackendName, get_backend
from widelimit.backends.base import Dtype
from widelimit.costs import Forecast, cheaper, estimate, forecast, to_size
from widelimit.data.dataset import Dataset, described
from widelimit.display import duration
from widelimit.files import atomic_file, check_file, check_folder, write_atomically
from widelimit.keeping import keep
from widelimit.machine import parse_memory
from widelimit.matrices import gram, kernel
from widelimit.matrices.inputs import (
    Channels,
    check_channels,
    check_inputs,
    check_not_first,
    check_series,
    check_steps,
    read_series,
)
from widelimit.matrices.matrix import read_manifest
from widelimit.matrices.objects import METADATA, open_objects
from widelimit.matrices.store import TileStore
from widelimit.network import Network
from widelimit.program import Kind, compile_networks
from widelimit.reading import open_arrays, read_bytes
from widelimit.report.table import to_csv

__all__ = [
    "Job",
    "check_backend",
    "check_channels_word",
    "describe_store",
    "explain_networks",
    "read_array",
    "read_image_shape",
    "read_inputs",
    "read_network",
    "read_numbers",
    "read_rows",
    "read_shape",
    "read_size",
]

Rows: TypeAlias = list[tuple[str, str]]
"""File and class of each image."""

_MAX_NETWORK = 2**22  # bytes of a file; `Network.from_json` counts the characters


def read_network(text: str) -> Network:
    """Return the network that a word names.

    Parameters
    ----------
    text : str
        What `named_network` takes, as ``cntk-gap-11``; or the path of a file that
        `Network.to_json` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is neither, or the file holds no network.
    """
    path = Path(text)
    if path.suffix == ".json" and not path.exists():
        raise FileNotFoundError(f"there is no file {text} with the JSON of a network")
    if path.suffix == ".json" or path.is_file():
        content = read_bytes(path, _MAX_NETWORK)
        try:
            return Network.from_json(content.decode("utf-8", "replace"))
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
    return named_network(text)


def read_shape(text: str, *, series: bool = False) -> tuple[int, ...]:
    """Return ``(32, 32, 3)`` for ``32x32x3``; of networks for series ``1x50x12`` is one.

    Raises
    ------
    ValueError
        If it is not made of one to three numbers, or looks as if channels came first.
    """
    parts = text.split("x")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() for p in parts):
        raise ValueError(
            "shape must be height x width x channels, as in 32x32x3, length x channels of a "
            f"series, as in 128x1, or a number of features, got {text!r}"
        )
    shape = tuple(map(int, parts))
    if len(shape) == 3 and not (series and shape[0] == 1):
        c, h, w = shape
        check_not_first("--shape", shape, f"{h}x{w}x{c}")
    return shape


def read_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return ``(3, 4, 6)`` for ``3,4,6``, the value of an option.

    Raises
    ------
    ValueError
        If it is not made of numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f"{option} must be numbers, as in 3,4,6, got {text!r}")
    return tuple(map(int, parts))


def read_size(text: str | None) -> tuple[int, int] | None:
    """Return ``(32, 48)``, height and width, for ``32x48``; None for None.

    Raises
    ------
    ValueError
        If it is not made of two numbers above 0.
    """
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
        raise ValueError(f"--size must be height x width, as in 32x48, got {text!r}")
    return int(parts[0]), int(parts[1])


def read_image_shape(
    text: str | None, channels: Channels = None, *, series: bool = False
) -> tuple[int, int, int] | None:
    """Return ``(28, 28, 1)`` for ``28x28x1`` or ``28x28``; None for None.

    Raises
    ------
    ValueError
        If it is not made of two or three numbers above 0; if channels look as if they were first,
        and `channels` does not say where they are; or if two numbers are given for `series`.
    """
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(
        p.isascii() and p.isdigit() and int(p) > 0 for p in parts
    ):
        raise ValueError(
            f"--image-shape must be height x width x channels, as in 28x28x1, got {text!r}"
        )
    h, w, c = (int(part) for part in (*parts, "1")[:3])
    if len(parts) == 2 and series:
        raise ValueError(
            f"--image-shape {text} is read in two ways by a network for series: write 1x{text} for "
            f"series of {h} steps in {w} channels, or {text}x1 for grey images of {h} x {w} pixels"
        )
    if channels is None:
        last = "and --channels first; if the second is, --channels last"
        if series and h == 1:
            check_steps("--image-shape", (h, w, c), f"1x{c}x{w}, {last}")
        else:
            check_not_first("--image-shape", (h, w, c), f"{w}x{c}x{h}, {last}")
    return h, w, c


def explain_networks(
    networks: Sequence[Network],
    shape: tuple[int, ...],
    kinds: Sequence[str],
    names: Sequence[str] | None = None,
    inputs: int = 1000,
    backend: BackendName = "auto",
) -> str:
    """Describe the programs that networks compile to, and what some inputs cost on this machine.

    Of several networks, each program is headed by the names of those that it computes, that of the
    first one first; None: the networks themselves.

    Raises
    ------
    ValueError
        If a kind is unknown, or a network cannot take inputs of this shape.
    """
    for kind in kinds:
        _check("kind", kind, get_args(Kind))
    unique = cast("list[Kind]", list(dict.fromkeys(kinds)))
    for network in networks:
        network.output_shapes(shape)
    if len(shape) == 2:  # a series is an image one pixel high
        shape = (1, *shape)
    programs = compile_networks(networks, shape, unique)
    how: Any = {"kinds": unique, "backend": backend}
    cost = estimate(networks, shape, inputs, **how)
    matrices = f"{cost.matrices} matrices" if cost.matrices > 1 else "one matrix"
    lines = [
        f"{inputs:,} inputs, float32: {cost}",
        f"{matrices} of {inputs:,} x {inputs:,}: {to_size(cost.result)} in an .npy file, "
        f"{to_size(cost.stored)} in a store",
    ]
    others = [
        f"{words} {duration(s)}"
        for words, s in cheaper(
            cost, networks, shape, inputs, size="--shape {h}x{w}x{c}", net="{}", **how
        )
    ]
    if others:
        lines.append(f"cheaper: {', '.join(others)}")
    given = [str(net) for net in networks] if names is None else list(names)
    parts: list[str] = []
    for program, places in sorted(programs, key=lambda entry: min(entry[1])):
        titles = " and ".join(given[place] for place in sorted(places))
        once = ", in one pass" if len(places) > 1 else ""
        head = f"{titles}{once}:\n" if len(networks) > 1 else ""
        parts.append(f"{head}{program.explain()}")
    return "\n\n".join([*parts, "\n".join(lines)])


def read_array(path: Path, name: str | None = None) -> NDArray[Any]:
    """Read an array from an ``.npy`` file, or one of those of an ``.npz`` file.

    Parameters
    ----------
    path : Path
        A file from a stranger can do no harm: arrays of Python objects are refused.
    name : str or None
        Of an array of an ``.npz`` file; may be None if it has only one.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or the array is not in it.
    MemoryError
        If the array does not fit into memory.
    """
    with open_arrays(path) as arrays:
        alone = len(arrays) == 1 and (name is None or "" in arrays)  # an .npy file has no names
        chosen = next(iter(arrays)) if alone else name
        if chosen is not None and chosen in arrays:
            return arrays[chosen].read()
        held = ", ".join(arrays)
    raise ValueError(f"{path} has the arrays {held}, got {name!r}: name one with --array")


def _check(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")


def check_backend(name: str) -> BackendName:
    """Return the name of a backend that can be used here.

    Raises
    ------
    ValueError
        If there is no such backend, or no card.
    """
    _check("backend", name, get_args(BackendName))
    chosen = cast("BackendName", name)
    try:
        if chosen == "cuda":
            get_backend(chosen)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return chosen


def read_reading(
    channels: str | None,
    size: str | None,
    skip_bad: bool,
    label: str | None = None,
    image_shape: str | None = None,
    networks: Sequence[Network] = (),
) -> dict[str, Any]:
    """Return how options of the command line want data to be read, as `load_dataset` takes it.

    The networks, if they are known, decide what two numbers of an image's shape may be.

    Raises
    ------
    ValueError
        If one of them is none of its words.
    """
    where = check_channels_word(channels)
    return {
        "channels": where,
        "size": read_size(size),
        "skip_bad": skip_bad,
        "label": label,
        "image_shape": read_image_shape(image_shape, where, series=read_series(networks)),
    }


def check_channels_word(channels: str | None) -> Channels:
    """Return "first", "last" or None; ValueError if it is another word."""
    if channels is not None:
        _check("channels", channels, ("first", "last"))
    return cast("Channels", channels)


def read_rows(
    text: str,
    array: str | None = None,
    *,
    channels: Channels = None,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
    label: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
    series: bool = False,
    beside: str | None = None,
) -> tuple[NDArray[Any], Rows | None]:
    """Return the inputs that a word names, and where they come from a folder of images their order.

    Parameters
    ----------
    text : str
        A file of `read_array`, or what `load_dataset` takes, of which all images are meant but
        those of a test set of its own; ``:train`` or ``:test`` behind it, as in
        ``fashion-mnist:test``, means those of `load_dataset`.
    array : str or None
        Of an array of an ``.npz`` file.
    channels, size, skip_bad, label, image_shape, series
        As for `load_dataset`.
    beside : str or None
        What the other inputs are, of columns those of rows.

    Raises
    ------
    OSError
        If there is no such file or data set, or it cannot be read.
    ValueError
        If it is none of these; or if it is a part of a data set that has to be drawn, and `beside`
        is all of it.
    """
    if _is_array(text):
        if size is not None or skip_bad or label is not None or image_shape is not None:
            raise ValueError(
                "--size, --skip-bad, --label and --image-shape are for data sets and folders, got "
                f"{text}"
            )
        values = read_array(Path(text), array)
        if series and values.ndim in (2, 3):
            return _as_series(text, values, channels), None
        values = _with_channel(text, values)
        values = check_channels(Path(text).name, values, channels, series=series)
        if not series and _are_whole(values):
            warnings.warn(
                f"{text}: {_range(values)}, are taken as they are; those of data sets and folders "
                "are divided, by 255 if they have 8 bits",
                stacklevel=2,
            )
        return values, None
    if array is not None:
        raise ValueError(f"--array is for .npz files, got {text}")
    from widelimit.data.load import load_dataset, read_dataset

    reading: Any = {
        "channels": channels,
        "size": size,
        "skip_bad": skip_bad,
        "label": label,
        "image_shape": image_shape,
        "series": series,
    }
    name, colon, part = text.rpartition(":")
    if colon and part in ("train", "test"):
        data = load_dataset(name, **reading)
        if data.split == "drawn":
            _tell_drawn(name, data, text, beside)
        if part == "test":
            return data.x_test, _rows(data, data.files_test, data.y_test)
        return data.x_train, _rows(data, data.files_train, data.y_train)
    data = read_dataset(text, **reading)
    return data.x_train, _rows(data, data.files_train, data.y_train)


def _tell_drawn(name: str, data: Dataset, text: str, beside: str | None) -> None:
    """Say that the test set of a data set was drawn; refuse to set a part beside all images."""
    n_test, n = len(data.x_test), len(data.x_train) + len(data.x_test)
    has_none = f"{name} has no test set of its own"
    if beside is not None and os.path.realpath(beside) == os.path.realpath(name):
        raise ValueError(
            f"{has_none}, so that {beside} means all of its {n:,} {data.what}, those of {text} "
            f"among them: give {name}:train and {name}:test, {n - n_test:,} and {n_test:,} that "
            "are drawn"
        )
    warnings.warn(
        f"{has_none}: {n_test:,} of its {n:,} {data.what} were drawn for one, with seed 0",
        stacklevel=2,  # one place: rows and columns are told of once
    )


def _are_whole(x: NDArray[Any]) -> bool:
    """Return whether pixels are whole numbers, and not from 0 to 1: `to_pixels` divides them."""
    if x.ndim != 4 or x.size == 0 or x.dtype.kind not in "iuf":
        return False
    return x.dtype.kind != "f" or bool(x.max() > 1 and np.all(x == np.rint(x)))


def _range(x: NDArray[Any]) -> str:
    kind = "whole numbers" if _are_whole(x) else "values"
    return f"{kind} from {x.min():g} to {x.max():g}"


def _check_alike(inputs: str, x1: NDArray[Any], columns: str, x2: NDArray[Any]) -> None:
    """Refuse images of which some have pixels up to 255 and others up to 1."""
    if x1.ndim == x2.ndim == 4 and _are_whole(x1) != _are_whole(x2):
        raise ValueError(
            f"rows and columns must have pixels of one kind, got {_range(x1)}, in {inputs}, and "
            f"{_range(x2)}, in {columns}: divide whole numbers by the largest that a pixel can "
            "have, as x / 255, and save the result"
        )


def _is_array(text: str) -> bool:
    """Return whether a word names a file of `read_array`, which is taken as it is."""
    return Path(text).suffix in (".npy", ".npz")


def _as_series(text: str, values: NDArray[Any], channels: Channels) -> NDArray[Any]:
    """Return rows (n, length), or series (n, length, c), as images one pixel high, and say so."""
    made = check_series(
        Path(text).name, values[..., None] if values.ndim == 2 else values, channels
    )
    warnings.warn(
        f"{text}: taken for {len(made):,} {described(made.shape[1:], series=True)}", stacklevel=3
    )
    return made


def _with_channel(text: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return images (n, h, w) as (n, h, w, 1), and say so; refuse what may be series."""
    if values.ndim != 3:
        return values
    n, h, w = values.shape
    if w <= 4:
        raise ValueError(
            f"{text} must hold rows (n, d) or images (n, h, w, c), got {values.shape}: one image "
            f"is (1, {n}, {h}, {w}), series of {h} values in {w} channels are ({n}, {h}, 1, {w}), "
            f"and grey images of {h} x {w} pixels are ({n}, {h}, {w}, 1)"
        )
    warnings.warn(f"{text}: taken for {n:,} grey images of {h} x {w} pixels", stacklevel=3)
    return values[..., None]


def _rows(data: Dataset, files: tuple[str, ...] | None, labels: NDArray[Any]) -> Rows | None:
    if files is None:
        return None
    return [(file, data.class_names[k]) for file, k in zip(files, labels, strict=True)]


def read_inputs(text: str, array: str | None = None, **reading: Any) -> NDArray[Any]:
    """Return the inputs of `read_rows` alone."""
    return read_rows(text, array, **reading)[0]


def describe_store(store: str) -> str:
    """Say what a stored Gram matrix is, and how much of it is there.

    Raises
    ------
    OSError, ValueError
        If there is none.
    """
    tiles = TileStore.open(open_objects(store))
    manifest = read_manifest(tiles)
    done, total = len(tiles.finished()), len(tiles.grid)
    size = sum(size for _, size in tiles.objects.sizes("c"))
    if tiles.objects.in_use():
        state = "a process is writing to it"
    elif done == total:
        state = "finished"
    else:
        state = "not finished: run the command that began it again"
    symmetric = ", symmetric" if manifest.x2 is None else ""
    shape = " x ".join(f"{size:,}" for size in manifest.shape)
    lines = [
        f"{store}: {shape}, {manifest.dtype}{symmetric}",
        *(f"  kernel: {'/'.join(manifest.kinds)} of {network}" for network in manifest.networks),
        f"  inputs: {manifest.x1}" + (f", and {manifest.x2}" if manifest.x2 else ""),
        f"  made by: {'; '.join(map(str, manifest.makers))}",
        f"  tiles: {done:,} of {total:,} ({done / total:.1%}), {tiles.tile} x {tiles.tile}, "
        f"{size / 1e9:.2f} GB",
        f"  {state}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Job:
    """A kernel to be computed and written: everything that can be checked before has been.

    Parameters
    ----------
    networks : list of Network
    x1 : ndarray
    x2 : ndarray or None
    out : str
        An ``.npy`` file, or a store of `gram`: a path or URL that ends with ``.zarr``.
    rows : dict of list
        File and class of each input, by the path of a table that will say so.
    kind, dtype, backend, threads, memory, verify, allow_mixed
        As for `gram`; the last three are for stores.
    resizes : bool
        Whether the inputs can be read in another size.
    """

    networks: list[Network]
    x1: NDArray[Any]
    x2: NDArray[Any] | None
    out: str
    rows: dict[Path, Rows]
    kind: Kind = "ntk"
    dtype: Dtype = "float32"
    backend: BackendName = "auto"
    threads: int | None = None
    memory: str | None = None
    verify: bool = False
    allow_mixed: bool = False
    resizes: bool = True

    @classmethod
    def prepare(
        cls,
        inputs: str,
        out: str,
        networks: Sequence[Network],
        *,
        columns: str | None = None,
        array: str | None = None,
        kind: str = "ntk",
        dtype: str = "float32",
        backend: str = "auto",
        threads: int | None = None,
        channels: Channels = None,
        size: tuple[int, int] | None = None,
        skip_bad: bool = False,
        label: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        memory: str | None = None,
        verify: bool = False,
        allow_mixed: bool = False,
        overwrite: bool = False,
    ) -> Job:
        """Check the options and read the inputs.

        Parameters
        ----------
        inputs, columns : str, str or None
            Inputs of rows and columns, for `read_inputs`.
        out : str
            The file or store; a store is gone on with.
        networks : sequence of Network
        array : str or None
            Name of the array in ``.npz`` files.
        kind, dtype, backend, threads, channels, memory, verify, allow_mixed
            As for `gram`.
        size, skip_bad, label, image_shape
            As for `load_dataset`.
        overwrite : bool
            Whether a file that is there is replaced.

        Raises
        ------
        OSError
            If a file cannot be read, or the result will not be written: `check_file`.
        ValueError
            If an option or a file is wrong.
        """
        _check("kind", kind, get_args(Kind))
        _check("dtype", dtype, get_args(Dtype))
        chosen = check_backend(backend)
        stored = out.endswith(".zarr")
        if not (stored or (out.endswith(".npy") and "://" not in out)):
            raise ValueError(
                f"the result must be an .npy file, or a .zarr store (a path or URL), got {out}"
            )
        if not stored and (memory is not None or verify or allow_mixed):
            raise ValueError(
                "--memory, --verify and --allow-mixed are for a .zarr store, the result is to be "
                f"{out}"
            )
        if memory is not None:
            parse_memory(memory)
        if stored and overwrite:
            raise ValueError("--overwrite is for files, a store is gone on with: delete it instead")
        _check_out(out, overwrite)
        reading: Any = {
            "channels": channels,
            "size": size,
            "skip_bad": skip_bad,
            "label": label,
            "image_shape": image_shape,
            "series": read_series(networks),
        }
        x1, rows1 = read_rows(inputs, array, **reading, beside=columns)
        x2, rows2 = None, None
        if columns is not None:
            x2, rows2 = read_rows(columns, array, **reading, beside=inputs)
        if columns is not None and x2 is not None and not reading["series"]:
            _check_alike(inputs, x1, columns, x2)
        rows = {
            Path(out).with_suffix(end): order
            for end, order in ((".rows.csv", rows1), (".columns.csv", rows2))
            if order is not None and "://" not in out
        }
        for path, order in rows.items():
            _check_rows(path, order, stored=stored, overwrite=overwrite)
        job = cls(
            list(networks),
            x1,
            x2,
            out,
            rows,
            cast("Kind", kind),
            cast("Dtype", dtype),
            chosen,
            threads,
            memory,
            verify,
            allow_mixed,
            not any(map(_is_array, [inputs, columns or ""])),
        )
        if not stored:
            check_file(Path(out), job.size, replace=overwrite)
        return job

    @property
    def size(self) -> int:
        """Bytes of the matrices, one for each network."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result: of several networks, their number comes first."""
        matrix = (len(self.x1), len(self.x1 if self.x2 is None else self.x2))
        return matrix if len(self.networks) == 1 else (len(self.networks), *matrix)

    def forecast(self) -> Forecast:
        """Return what it costs on this machine."""
        first = None if self.x2 is None else self.x2[:1]
        try:
            check_inputs(self.networks, self.x1[:1], first, "last")
        except TypeError as error:
            raise ValueError(str(error)) from error
        n2 = None if self.x2 is None else len(self.x2)
        how: Any = {"dtype": self.dtype, "backend": self.backend, "threads": self.threads}
        if not self.resizes:
            how["size"] = None
        shape = self.x1.shape[1:]
        return forecast(self.networks, shape, len(self.x1), n2, kinds=(self.kind,), **how)

    def describe(
        self, place: str, names: Sequence[str], inputs: str, columns: str | None = None
    ) -> str:
        """Say what a result is: its shape, and of several networks, inputs and files each.

        Parameters
        ----------
        place : str
            Where it is.
        names : sequence of str
            Of the networks, as the user gave them.
        inputs, columns : str, str or None
            Where inputs of rows and columns come from.
        """
        lines = [f"{place}: {' x '.join(map(str, self.shape))}, {self.dtype}"]
        if len(self.networks) > 1:
            lines += [f"  [{k}]: {self.kind} of {name}" for k, name in enumerate(names)]
        if columns is not None:
            n1, n2 = self.shape[-2:]
            lines.append(f"  rows: {n1:,} of {inputs}; columns: {n2:,} of {columns}")
        for path in self.rows:
            which = "columns" if path.name.endswith(".columns.csv") else "rows"
            lines.append(f"  the image of each of its {which}: {path}")
        return "\n".join(lines)

    def run(self, *, progress: bool = False) -> str:
        """Compute the kernel and write it: a file when it is complete, a store tile by tile.

        Returns
        -------
        str
            Where it is: `out`, or another path that a user at a terminal has named.

        Raises
        ------
        OSError
            If it cannot be written. A matrix that is complete is kept elsewhere: `keep`.
        ValueError
            If the network cannot take the inputs, or `kernel` refuses them.
        """
        net = self.networks if len(self.networks) > 1 else self.networks[0]
        arguments = (net, self.x1, self.x2, self.kind)
        try:
            if self.out.endswith(".zarr"):
                gram(
                    *arguments,
                    store=self.out,
                    dtype=self.dtype,
                    backend=self.backend,
                    threads=self.threads,
                    channels="last",
                    memory=self.memory,
                    progress=progress,
                    verify=self.verify,
                    allow_mixed=self.allow_mixed,
                )
                self._write_rows()
                return self.out
            values = kernel(
                *arguments,
                dtype=self.dtype,
                backend=self.backend,
                threads=self.threads,
                channels="last",
                progress=progress,
            )
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from error

        def write(path: Path) -> None:
            with atomic_file(path, values.nbytes) as file:
                np.save(file, values)

        place = str(keep(Path(self.out), write, values.nbytes))
        self._write_rows()
        return place

    def _write_rows(self) -> None:
        """Say beside the matrix which image each of its rows, and columns, is."""
        for path, order in self.rows.items():
            table = _numbered(order)
            if not _holds(path, table):
                write_atomically(path, table)


def _numbered(order: Rows) -> bytes:
    """Return the table that says which image each row is."""
    numbered = [(number, *row) for number, row in enumerate(order)]
    return to_csv([("row", "image", "label"), *numbered]).encode("utf-8", "backslashreplace")


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a file with this content is there."""
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _check_rows(path: Path, order: Rows, *, stored: bool, overwrite: bool) -> None:
    """Refuse to replace the table of another matrix: k.npy and k.zarr have one of the same name.

    That of a store may be of the run that is gone on with, and then says the same.
    """
    if _holds(path, _numbered(order)):
        return
    if stored and path.is_file():
        reason = (
            "there is one already, which names other images, those of another matrix: give "
            "another --out, or delete it if that matrix is gone"
        )
        raise FileExistsError(errno.EEXIST, reason, str(path))
    check_file(path, replace=overwrite)


def _check_out(out: str, overwrite: bool) -> None:
    """Refuse a place in which no result can be written; whether there is room is asked later."""
    if out.endswith(".npy"):
        check_file(Path(out), replace=overwrite)
    elif "://" not in out:
        path = Path(out).expanduser()
        if not os.path.exists(path / METADATA):  # what is finished is read from any disk
            check_folder(path)
