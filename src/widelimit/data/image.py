"""Reading single images with Pillow.

The size that a file announces is checked before it is decoded, and no format is tried that runs
another program, as PostScript does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from widelimit.arrays import FloatArray
from widelimit.data.dataset import MAX_VALUES
from widelimit.reading import open_regular

__all__ = ["fit_image", "image_suffixes", "read_image", "safe_formats"]

_RUN_PROGRAMS = ("EPS", "WMF")
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue, as Pillow's


def safe_formats() -> list[str]:
    """Return all formats that Pillow reads, without those that it has another program read."""
    Image.init()
    return [name for name in Image.ID if name not in _RUN_PROGRAMS]


def image_suffixes() -> set[str]:
    """Return the endings of names of files in `safe_formats`, as ``.png``."""
    formats = set(safe_formats())
    return {end for end, name in Image.registered_extensions().items() if name in formats}


def fit_image(image: NDArray[Any], shape: tuple[int, int, int]) -> tuple[FloatArray, list[str]]:
    """Scale an image to [0, 1], and to the size and colours that a model reads.

    Parameters
    ----------
    image : ndarray of shape (h, w, 1) or (h, w, 3), uint8 or uint16
    shape : (h, w, c)
        c is 1 or 3.

    Returns
    -------
    FloatArray of shape (h, w, c)
    changes : list of str
        What was changed that loses something: "resized", "made grey".
    """
    values = image / float(np.iinfo(image.dtype).max)
    changes: list[str] = []
    if shape[2] == 1 and values.shape[2] == 3:
        values = values @ _LUMA[:, None]
        changes.append("made grey")
    if values.shape[:2] != shape[:2]:
        h, w = shape[:2]
        channels = [
            Image.fromarray(channel.astype(np.float32)).resize((w, h), Image.Resampling.LANCZOS)
            for channel in np.moveaxis(values, 2, 0)
        ]
        # The filter may overshoot.
        values = np.stack([np.asarray(channel, np.float64) for channel in channels], axis=2)
        values = values.clip(0.0, 1.0)
        changes.append("resized")
    return np.broadcast_to(values, shape).copy(), changes


def read_image(path: Path, folder: Path, formats: Sequence[str]) -> NDArray[Any]:
    """Read one image as (h, w, 1) or (h, w, 3), uint8 or uint16.

    Parameters
    ----------
    path : Path
    folder : Path
        That messages name the image in.
    formats : sequence of str
        That Pillow may try.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no such image, is transparent, too large, or has pixels of more than 16 bits.
    """
    name = path.relative_to(folder)
    try:
        image = _decode(path, formats)
    except (PermissionError, FileNotFoundError):
        raise
    except (
        Exception
    ) as error:  # a damaged image may raise anything, from SyntaxError to struct.error
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{folder}: cannot read {name} ({reason}): mend the file or remove it"
        ) from error

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise ValueError(
                f"{folder}: images must be opaque, got transparent pixels in {name}: put it on a "
                "background before"
            )
        image = image.convert("RGB")
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode.startswith("I"):  # 16 bits; "I" in Pillow before 11.3
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"{folder}: pixels must have 8 or 16 bits, got {pixels.min()} to {pixels.max()} in "
                f"{name}: save it as PNG"
            )
        return pixels.astype(np.uint16)[..., None]
    if image.mode == "F":
        raise ValueError(
            f"{folder}: pixels must have 8 or 16 bits, got floats in {name}: save it as PNG"
        )
    return np.asarray(image.convert("RGB"))


def _decode(path: Path, formats: Sequence[str]) -> Image.Image:
    """Decode one image and turn it as its camera says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, and of the size, which is checked here
        with open_regular(path) as file, Image.open(file, formats=list(formats)) as opened:
            if 3 * opened.height * opened.width > MAX_VALUES:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels, at most {MAX_VALUES // 3:,}"
                )
            return ImageOps.exif_transpose(opened)
