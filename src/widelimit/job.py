"""One kernel from files to a file: what ``widelimit kernel`` and ``widelimit explain`` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
from widelimit.backends.base import Dtype
from widelimit.files import atomic_file
from widelimit.gram import kernel
from widelimit.network import Network
from widelimit.program import Kind, compile_networks

__all__ = ["Job", "explain_networks", "read_array", "read_network", "read_shape"]

_PRESETS = {"cntk_gap": cntk_gap, "cntk_vanilla": cntk_vanilla, "ntk_dense": ntk_dense}


def read_network(text: str) -> Network:
    """Return the network that a word names.

    Parameters
    ----------
    text : str
        ``cntk_gap:11``, ``cntk_vanilla:11``, ``ntk_dense:3`` (a preset and its depth), or the path
        of a file that `Network.to_json` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is neither, or the file holds no network.
    """
    name, colon, depth = text.partition(":")
    if name in _PRESETS and colon:
        if not depth.isascii() or not depth.isdigit():
            raise ValueError(f"{name} needs a depth, as in {name}:11, got {text!r}")
        return _PRESETS[name](depth=int(depth))
    path = Path(text)
    if not path.exists():
        presets = ", ".join(f"{preset}:DEPTH" for preset in _PRESETS)
        raise ValueError(f"network must be {presets}, or a JSON file, got {text!r}")
    return Network.from_json(path.read_text("utf-8"))


def read_shape(text: str) -> tuple[int, ...]:
    """Return ``(32, 32, 3)`` for ``32x32x3``.

    Raises
    ------
    ValueError
        If it is not made of one number or three.
    """
    parts = text.split("x")
    if len(parts) not in (1, 3) or not all(p.isascii() and p.isdigit() for p in parts):
        raise ValueError(f"shape must be height x width x channels, as in 32x32x3, got {text!r}")
    return tuple(map(int, parts))


def explain_networks(
    networks: Sequence[Network], shape: tuple[int, ...], kinds: Sequence[str]
) -> str:
    """Describe the programs that networks compile to.

    Raises
    ------
    ValueError
        If a kind is unknown, or a network cannot take inputs of this shape.
    """
    for kind in kinds:
        _check("kind", kind, get_args(Kind))
    unique = cast("list[Kind]", list(dict.fromkeys(kinds)))
    programs = compile_networks(networks, shape, unique)
    return "\n\n".join(program.explain() for program, _ in programs)


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
    """
    with path.open("rb") as file:  # np.load leaves a broken archive open
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return cast("NDArray[Any]", loaded)
            names = list(loaded.files)
            chosen = names[0] if name is None and len(names) == 1 else name
            if chosen in names:
                return cast("NDArray[Any]", loaded[chosen])
        except (EOFError, ValueError, BadZipFile) as error:
            raise ValueError(
                f"{path} must be an .npy or .npz file of numbers: it is not"
            ) from error
    held = ", ".join(names)
    raise ValueError(f"{path} has the arrays {held}, got {name!r}: name one with --array")


def _check(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, eq=False)
class Job:
    """A kernel to be computed and written: everything that can be checked before has been.

    Parameters
    ----------
    network : Network
    x1 : ndarray
    x2 : ndarray or None
    out : Path
    kind, dtype, threads
        As for `kernel`.
    """

    network: Network
    x1: NDArray[Any]
    x2: NDArray[Any] | None
    out: Path
    kind: Kind
    dtype: Dtype
    threads: int | None

    @classmethod
    def prepare(
        cls,
        inputs: Path,
        out: Path,
        network: Network,
        columns: Path | None = None,
        array: str | None = None,
        kind: str = "ntk",
        dtype: str = "float32",
        threads: int | None = None,
    ) -> Job:
        """Check the options and read the inputs.

        Parameters
        ----------
        inputs, columns : Path, Path or None
            Files of `read_array` with the inputs of rows and columns.
        out : Path
            An ``.npy`` file; is replaced if it exists.
        network : Network
        array : str or None
            Name of the array in ``.npz`` files.
        kind, dtype, threads
            As for `kernel`.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If an option or a file is wrong, or there is no folder for the result.
        """
        _check("kind", kind, get_args(Kind))
        _check("dtype", dtype, get_args(Dtype))
        if out.suffix != ".npy" or not out.parent.is_dir():
            raise ValueError(f"the result must be an .npy file in a folder that exists, got {out}")
        x1 = read_array(inputs, array)
        x2 = None if columns is None else read_array(columns, array)
        return cls(network, x1, x2, out, cast("Kind", kind), cast("Dtype", dtype), threads)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the result."""
        return len(self.x1), len(self.x1 if self.x2 is None else self.x2)

    def run(self, *, progress: bool = False) -> None:
        """Compute the kernel and write it; the file appears when it is complete.

        Raises
        ------
        OSError
            If it cannot be written.
        ValueError
            If the network cannot take the inputs, or `kernel` refuses them.
        """
        try:
            values = kernel(
                self.network,
                self.x1,
                self.x2,
                self.kind,
                dtype=self.dtype,
                threads=self.threads,
                progress=progress,
            )
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from error
        with atomic_file(self.out) as file:
            np.save(file, values)
