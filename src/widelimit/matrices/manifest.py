"""What a stored Gram matrix is the kernel of: written with it, and compared before a resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from widelimit._version import __version__
from widelimit.arrays import Rows
from widelimit.backends.base import Backend, Dtype
from widelimit.matrices.inputs import chunks
from widelimit.matrices.store import StoreError
from widelimit.network import Network
from widelimit.program import Kind
from widelimit.reading import refusing

__all__ = ["Inputs", "Maker", "Manifest"]

_FORMAT = "widelimit.gram/1"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Shape of the samples of one side, and the SHA-256 of their values as float64."""

    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, values: Rows) -> Inputs:
        """Describe samples; equal values have one digest, whatever their dtype and order."""
        digest = hashlib.sha256(repr(values.shape).encode())
        for _, part in chunks(values):
            digest.update(part.data)
        return cls(values.shape, digest.hexdigest())

    def __str__(self) -> str:
        return f"{self.shape} with SHA-256 {self.sha256[:12]}…"


@dataclass(frozen=True, slots=True)
class Maker:
    """What computes tiles: the bits of a tile depend on it, beyond its network and inputs.

    Those of dense networks, and of activations behind a readout, depend on NumPy and its BLAS, too,
    which are not described: they choose instructions by the processor.
    """

    backend: str
    instruction_set: str | None
    version: str

    @classmethod
    def of(cls, backend: Backend) -> Maker:
        """Describe a backend of this process."""
        return cls(backend.name, getattr(backend, "isa", None), __version__)

    def __str__(self) -> str:
        isa = f" with {self.instruction_set}" if self.instruction_set else ""
        return f"backend {self.backend}{isa}, widelimit {self.version}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a store of tiles holds.

    Parameters
    ----------
    networks : tuple of Network
    listed : bool
        Whether they were given as a sequence: then they are an axis of the array.
    kinds : tuple of {"ntk", "nngp"}
    kinds_listed : bool
        The same of kinds.
    dtype : {"float32", "float64"}
    x1 : Inputs
    x2 : Inputs or None
        None: the symmetric matrix of x1.
    makers : tuple of Maker
        All that have computed tiles. More than one only if that was allowed.
    """

    networks: tuple[Network, ...]
    listed: bool
    kinds: tuple[Kind, ...]
    kinds_listed: bool
    dtype: Dtype
    x1: Inputs
    x2: Inputs | None
    makers: tuple[Maker, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array: ``([n_networks,] [n_kinds,] n1, n2)``."""
        networks = (len(self.networks),) if self.listed else ()
        kinds = (len(self.kinds),) if self.kinds_listed else ()
        return (*networks, *kinds, self.x1.shape[0], (self.x2 or self.x1).shape[0])

    @property
    def _in_lists(self) -> str:
        names = {"networks": self.listed, "kinds": self.kinds_listed}
        return " and ".join(name for name, listed in names.items() if listed) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format": _FORMAT,
            "networks": [json.loads(network.to_json()) for network in self.networks],
            "fingerprints": [network.fingerprint for network in self.networks],
            "listed": self.listed,
            "kinds": list(self.kinds),
            "kinds_listed": self.kinds_listed,
            "dtype": self.dtype,
            "x1": _plain(self.x1),
            "x2": None if self.x2 is None else _plain(self.x2),
            "makers": [asdict(maker) for maker in self.makers],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> Manifest:
        """Read what `to_json` gave; values from a stranger can do no harm.

        Raises
        ------
        StoreError
            If it is no manifest of a Gram matrix.
        """
        expected = f"{where} must hold a Gram matrix of widelimit, it does not"
        with refusing(expected, "give another path", StoreError):
            if content["format"] != _FORMAT:
                raise ValueError(f"format is {content['format']!r}")
            networks = tuple(Network.from_json(json.dumps(text)) for text in content["networks"])
            if [network.fingerprint for network in networks] != content["fingerprints"]:
                raise ValueError("a network does not have its fingerprint")
            kinds = tuple(content["kinds"])
            if not networks or not kinds or not set(kinds) <= set(get_args(Kind)):
                raise ValueError(f"kinds are {kinds}")
            if content["dtype"] not in get_args(Dtype):
                raise ValueError(f"dtype is {content['dtype']!r}")
            makers = tuple(_maker(maker) for maker in content["makers"])
            if not makers:
                raise ValueError("there is no maker")
            listed, kinds_listed = bool(content["listed"]), bool(content["kinds_listed"])
            if (len(networks) > 1 and not listed) or (len(kinds) > 1 and not kinds_listed):
                raise ValueError("several networks or kinds are not listed")
            return cls(
                networks,
                listed,
                cast("tuple[Kind, ...]", kinds),
                kinds_listed,
                content["dtype"],
                _inputs(content["x1"]),
                None if content["x2"] is None else _inputs(content["x2"]),
                makers,
            )

    def check_same(self, asked: Manifest, where: str, remedy: str) -> None:
        """Refuse to go on with a store that holds something else than what is asked for.

        Parameters
        ----------
        asked : Manifest
        where : str
            Name of the store.
        remedy : str
            What to do, for the message.

        Raises
        ------
        ValueError
            With what differs.
        """
        differences = [
            f"{name} is {stored} there, {wanted} now"
            for name, stored, wanted in (
                ("the network", _names(self.networks), _names(asked.networks)),
                ("kind", "/".join(self.kinds), "/".join(asked.kinds)),
                ("dtype", self.dtype, asked.dtype),
                ("x1", str(self.x1), str(asked.x1)),
                ("x2", str(self.x2), str(asked.x2)),
                ("what is in a list", self._in_lists, asked._in_lists),
                ("the shape of the result", str(self.shape), str(asked.shape)),
            )
            if stored != wanted
        ]
        if not differences and self.networks != asked.networks:
            differences = _network_differences(self.networks, asked.networks)
        if differences:
            raise ValueError(f"{where} holds another kernel: {'; '.join(differences)}. {remedy}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is above, in hexadecimal."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(inputs: Inputs) -> dict[str, Any]:
    return {"shape": list(inputs.shape), "sha256": inputs.sha256}


def _maker(content: dict[str, Any]) -> Maker:
    isa = content["instruction_set"]
    if isa is not None and not isinstance(isa, str):
        raise ValueError(f"the instruction set of a maker is {isa!r}")
    return Maker(str(content["backend"]), isa, str(content["version"]))


def _inputs(content: dict[str, Any]) -> Inputs:
    shape = tuple(content["shape"])
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"the shape of inputs is {list(shape)}")
    return Inputs(shape, str(content["sha256"]))


def _names(networks: Sequence[Network]) -> str:
    return ", ".join(map(str, networks))


def _network_differences(stored: Sequence[Network], asked: Sequence[Network]) -> list[str]:
    """Say in which scales networks differ that have the same layers by name."""
    differences: list[str] = []
    for a, b in zip(stored, asked, strict=True):
        if a.scaling != b.scaling:
            differences.append(f"scaling is {a.scaling!r} there, {b.scaling!r} now")
        differences += [
            f"layer {index} is {one!r} there, {other!r} now"
            for index, (one, other) in enumerate(zip(a.layers, b.layers, strict=True))
            if one != other
        ]
    return differences
