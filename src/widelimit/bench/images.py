"""Images to measure with: those of a file, or random ones with the spectrum of photographs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widelimit.reading import open_arrays

__all__ = ["Images", "smooth_images"]

_Pixels = NDArray[np.float32]


def smooth_images(n: int, shape: tuple[int, int, int], seed: int) -> _Pixels:
    """Random images with the power spectrum of photographs, ``1/f^2``, and correlated channels.

    Parameters
    ----------
    n : int
    shape : tuple of int
        ``(h, w, c)``.
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, h, w, c)
        Between 0 and 1, each image of its own brightness and contrast.
    """
    h, w, c = shape
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :])
    frequency[0, 0] = np.inf  # no mean: the brightness is drawn apart
    shared = rng.standard_normal((n, h, w, 1))
    noise = 0.8 * shared + 0.6 * rng.standard_normal((n, h, w, c))
    spectrum = np.fft.rfft2(noise, axes=(1, 2)) / frequency[..., None]
    field = np.fft.irfft2(spectrum, s=(h, w), axes=(1, 2))
    spread = field.std(axis=(1, 2, 3), keepdims=True)
    field /= np.where(spread > 0, spread, 1.0)  # an image of one pixel has none
    brightness = rng.uniform(0.35, 0.65, (n, 1, 1, 1))
    contrast = rng.uniform(0.1, 0.25, (n, 1, 1, 1))
    return np.clip(brightness + contrast * field, 0.0, 1.0).astype(np.float32)


class Images:
    """Where images come from.

    Parameters
    ----------
    path : Path or None
        An ``.npz`` file with an array ``X_train`` (or one array) of shape ``(n, h, w, c)``, whose
        images are taken where shape and number fit. None: all images are random.
    seed : int

    Raises
    ------
    ValueError
        If the file has no array of images.
    """

    def __init__(self, path: Path | None = None, seed: int = 0) -> None:
        self.seed = seed
        self.source = "random, 1/f^2 spectrum"
        self._stored: _Pixels | None = None
        if path is not None:
            self._stored = _read(path)
            digest = hashlib.sha256(self._stored.tobytes()).hexdigest()[:16]
            self.source = f"{path.name}, {self._stored.shape}, sha256 {digest}"

    def take(self, n: int, shape: tuple[int, int, int]) -> _Pixels:
        """Return n different images of a shape: the first of the file, or random ones."""
        stored = self._stored
        if stored is not None and stored.shape[1:] == shape and n <= len(stored):
            return stored[:n]
        return smooth_images(n, shape, self.seed)


def _read(path: Path) -> _Pixels:
    with open_arrays(path) as arrays:
        found = [
            name
            for name, array in arrays.items()
            if len(array.shape) == 4 and array.dtype.kind in "buif"
        ]
        name = "X_train" if "X_train" in found else min(found, default=None)
        if name is None:
            shapes = {key: array.shape for key, array in arrays.items()}
            raise ValueError(f"{path} must hold an array of shape (n, h, w, c), got {shapes}")
        values = arrays[name].read()
    return (values / (255.0 if values.dtype == np.uint8 else 1.0)).astype(np.float32)
