"""What a run on Myrtle networks is asked for: kernels in groups, their order and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from widelimit.architectures import myrtle
from widelimit.experiments.planning import fewer
from widelimit.experiments.protocol import Part, Preprocessing, Protocol
from widelimit.layers import Activation, Gaussian, ReLU
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["ACTIVATIONS", "NETWORKS", "OF_THEMSELVES", "PREPROCESSING", "SPOKEN", "Asked", "Group"]
__all__ += ["images_name", "kernel_name", "networks_of", "parts_of", "pass_name"]

NETWORKS = {"myrtle-5": 5, "myrtle-7": 7, "myrtle-10": 10}
"""Depths of `myrtle`, by name."""
ACTIVATIONS: dict[str, tuple[Activation, tuple[Kind, ...]]] = {
    "relu": (ReLU(), ("ntk", "nngp")),
    "gaussian": (Gaussian(), ("nngp",)),
}
"""With the kinds of kernels that are computed."""
PREPROCESSING: tuple[Preprocessing, ...] = ("standardise", "zca")
# What is most useful comes first, and flips after all that is without them.
_ORDER = (
    ("relu", "standardise"),
    ("relu", "zca"),
    ("gaussian", "zca"),
    ("gaussian", "standardise"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Kernels that are solved with together: those of one pass, or an average over passes.

    Parameters
    ----------
    networks, activations, preprocessing : tuple of str
        Of `NETWORKS`, `ACTIVATIONS` and `PREPROCESSING`. One activation and one preprocessing: each
        kernel, and averages over networks and kinds. Several: the average of all.
    flips : bool
        Whether kernels are averaged over horizontal flips.
    """

    networks: tuple[str, ...]
    activations: tuple[str, ...]
    preprocessing: tuple[str, ...]
    flips: bool

    @property
    def name(self) -> str:
        """Name of its file."""
        words = [*self.networks, *self.activations, *self.preprocessing, *["flips"] * self.flips]
        return "-".join(["scores", *words])

    @property
    def passes(self) -> list[tuple[str, str]]:
        """Activation and preprocessing of each, in the order of the work."""
        return [
            one for one in _ORDER if one[0] in self.activations and one[1] in self.preprocessing
        ]

    @property
    def solutions(self) -> int:
        """How many kernels are solved with."""
        if len(self.passes) > 1:
            return 1
        nets, kinds = len(self.networks), len(ACTIVATIONS[self.activations[0]][1])
        return 2 * nets * kinds + (kinds if nets > 1 else 0) + (kinds > 1)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for.

    Parameters
    ----------
    networks, activations, preprocessing : tuple of str
        Of `NETWORKS`, `ACTIVATIONS` and `PREPROCESSING`. The folder of a run may be gone on with
        by one that asks for others: what they have in common is computed once. Networks are those
        of a pass together: with other networks nothing is in common.
    flips : bool
        Whether to average kernels over horizontal flips, too.
    n_train, n_test : int
        The first training and test images.
    budget : float or None
        Seconds that all of it may take here: both numbers of images are made smaller, by the same
        share, until it fits.

    Raises
    ------
    ValueError
        If a name is unknown or given twice.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    activations: tuple[str, ...] = tuple(ACTIVATIONS)
    preprocessing: tuple[str, ...] = PREPROCESSING
    flips: bool = False
    n_train: int = 2000
    n_test: int = 1000
    budget: float | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("networks", tuple(NETWORKS)),
            ("activations", tuple(ACTIVATIONS)),
            ("preprocessing", PREPROCESSING),
        ):
            given: tuple[str, ...] = getattr(self, name)
            if unknown := [one for one in given if one not in known]:
                raise ValueError(f"{name} must be of {', '.join(known)}, got {unknown[0]!r}")
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must be different ones, at least one, got {given}")
            object.__setattr__(self, name, tuple(one for one in known if one in given))

    def protocol(self, n_train: int) -> Protocol:
        """Return which images are used where there are so many training images."""
        images = fewer(self.n_train, self.n_test, n_train)
        return Protocol(*images, flips="average" if self.flips else "none")

    def groups(self) -> list[Group]:
        """Return all of it in the order of the work, averages once their kernels are there."""
        found: list[Group] = []
        every = self.networks, self.activations
        wide = [*((one,) for one in self.preprocessing), self.preprocessing]
        for flips in (False, True) if self.flips else (False,):
            done: set[tuple[str, str]] = set()
            for one in Group(*every, self.preprocessing, flips).passes:
                done.add(one)
                found.append(Group(self.networks, (one[0],), (one[1],), flips))
                for preprocessing in wide:
                    group = Group(*every, preprocessing, flips)
                    if group not in found and done.issuperset(group.passes):
                        found.append(group)
        return found


# ---------------------------------------------------------------- names

SPOKEN = {"relu": "ReLU", "gaussian": "Gaussian", "standardise": "standardised", "zca": "ZCA"}


def kernel_name(
    group: Group, networks: Sequence[str], kinds: Sequence[str], *, normalised: bool
) -> str:
    """Return "Myrtle-5 NTK, ReLU, normalised"; of averages "mean of NTK, ReLU", "mean of all"."""
    activation, *others = group.activations
    if others:
        return "mean of all"
    spoken = SPOKEN[activation]
    if len(kinds) > 1 or len(group.passes) > 1:
        return f"mean of {spoken}"
    kind = kinds[0]
    name = f"{kind.upper()}, {spoken}"
    if len(networks) > 1:
        return f"mean of {name if len(ACTIVATIONS[activation][1]) > 1 else spoken}"
    return f"Myrtle-{NETWORKS[networks[0]]} {name}" + (", normalised" if normalised else "")


def images_name(preprocessing: Sequence[str], flips: bool) -> str:
    """Return "standardised and ZCA, flips"."""
    return " and ".join(SPOKEN[one] for one in preprocessing) + (", flips" if flips else "")


OF_THEMSELVES = ("own", "own-flipped")
"""Names of test images with themselves, and with their mirror images."""


def networks_of(names: Sequence[str], activation: str) -> list[Network]:
    """Return the networks of one pass."""
    return [myrtle(NETWORKS[name], ACTIVATIONS[activation][0]) for name in names]


def parts_of(protocol: Protocol, flips: bool) -> list[Part]:
    """Return the matrices that are joined, with or without those of mirror images."""
    return [part for part in protocol.parts() if flips or not part.is_flipped]


def pass_name(networks: Sequence[str], activation: str, preprocessing: str, part: str) -> str:
    """Return the name of the matrices of one pass, without the end of a file."""
    return "-".join([*networks, activation, preprocessing, part])
