"""The record of a learning curve: everything but the images, as plain values, ready for JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from widelimit.experiments.environment import Environment

__all__ = ["ComputedKernel", "Curve", "Data", "HardImage", "Point", "Record", "Vote"]

FORMAT = "widelimit.learning_curve/1"


@dataclass(frozen=True, slots=True)
class Data:
    """The images that were used.

    Parameters
    ----------
    name, provenance : str
        As in `Dataset`.
    class_names : tuple of str
        As in `Dataset`.
    split : {"given", "drawn"}
        Whether the test images are fixed, or those of the pool that a draw leaves over.
    image_shape : tuple of int
        ``(h, w, c)`` as computed with.
    shrink : int
        Side of the blocks of pixels that images were averaged over; 1 is none.
    n_pool : int
        Images that training sets were drawn from.
    n_test : int
        Test images of each draw.
    n_available : int
        Images of the data set.
    """

    name: str
    provenance: str
    class_names: tuple[str, ...]
    split: Literal["given", "drawn"]
    image_shape: tuple[int, int, int]
    shrink: int
    n_pool: int
    n_test: int
    n_available: int


@dataclass(frozen=True, slots=True)
class ComputedKernel:
    """One kernel that was computed.

    Parameters
    ----------
    method : str
        Key of its `Curve`.
    network : str
        Canonical JSON of the network.
    dtype : str
        "float32" or "float64".
    pairs : int
        Pairs of images.
    element_layers : float
        Cost of all pairs; 0 for the dense network, which is a matrix product.
    seconds : float
        Wall-clock time.
    """

    method: str
    network: str
    dtype: str
    pairs: int
    element_layers: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Point:
    """Test accuracy of one method with training sets of one size.

    Parameters
    ----------
    size : int
        Images in a training set.
    accuracies : tuple of float
        Share of the test images that were classified correctly, one for each draw.
    mean : float
        Their mean.
    std : float or None
        Their standard deviation (divisor: draws - 1); None if all draws are the same one.
    settings : tuple of dict
        What was chosen on the training images alone, one for each draw: C and gamma, or the
        relative ridge.
    """

    size: int
    accuracies: tuple[float, ...]
    mean: float
    std: float | None
    settings: tuple[dict[str, float], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One method.

    Parameters
    ----------
    key : str
        Short name, for lookup.
    label : str
        Name, for readers.
    detail : str
        One sentence on what it is and how it was set.
    points : tuple of Point
        In the order of their sizes.
    """

    key: str
    label: str
    detail: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Vote:
    """A training image and its weight in one prediction."""

    image: int
    label: int
    weight: float


@dataclass(frozen=True, slots=True)
class HardImage:
    """A test image that CNTK-GAP found hard, and the training images that weigh most in it.

    The prediction for a test image x is a vote of the training images: with
    ``w(x) = (K + ridge trace(K)/n I)^-1 k(x)`` the output for a class is ``sum_i w_i(x) y_i``,
    y being the encoded labels, so that each image adds its weight to its own class.

    Parameters
    ----------
    image : int
        Number of the image: training images of the data set first, then test images.
    label : int
        Its class.
    predicted : int
        The predicted class.
    margin : float
        Output for its own class less the largest other output: negative for a mistake.
    draw : int
        Number of the draw.
    totals : tuple of float
        Sum of the weights of each class.
    votes : tuple of Vote
        The largest weights in magnitude, in descending order.
    """

    image: int
    label: int
    predicted: int
    margin: float
    draw: int
    totals: tuple[float, ...]
    votes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Everything about one run but the images.

    Parameters
    ----------
    data : Data
    environment : Environment
    seed, draws : int
        Seed of everything that was drawn, and draws of training sets.
    notes : tuple of str
        What a reader must know about the choice of images.
    kernels : tuple of ComputedKernel
    curves : tuple of Curve
    confusion : tuple of tuple of int
        Test images by class (row) and class predicted by CNTK-GAP (column) with the largest
        training sets, summed over draws.
    hardest : tuple of HardImage
        Test images with the smallest margins, over all draws, each once.
    seconds : dict
        Wall-clock time of each stage.
    errors : tuple of str
        What did not go as it should: sentences.
    """

    data: Data
    environment: Environment
    seed: int
    draws: int
    notes: tuple[str, ...]
    kernels: tuple[ComputedKernel, ...]
    curves: tuple[Curve, ...]
    confusion: tuple[tuple[int, ...], ...]
    hardest: tuple[HardImage, ...]
    seconds: dict[str, float]
    errors: tuple[str, ...]

    def curve(self, key: str) -> Curve:
        """Return the curve of a method."""
        return next(curve for curve in self.curves if curve.key == key)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the training sets."""
        return tuple(point.size for point in self.curves[0].points)

    def rows(self) -> Iterator[tuple[int, tuple[Point, ...]]]:
        """Size, and the points of all curves at this size: the rows of a table."""
        for i, size in enumerate(self.sizes):
            yield size, tuple(curve.points[i] for curve in self.curves)

    def to_json(self) -> str:
        """JSON with the names of the fields as keys; no NaN, no infinity."""
        content = {"format": FORMAT} | dataclasses.asdict(self)
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
