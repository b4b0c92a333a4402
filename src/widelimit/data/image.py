"""Reading single images with Pillow.

The size that a file announces is checked before it is decoded, and no format is tried that runs
another program, as PostScript does.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from widelimit.arrays import FloatArray
from widelimit.reading import open_regular

__all__ = ["MAX_PIXELS", "fit_image", "image_suffixes", "read_image", "safe_formats"]

MAX_PIXELS = 2**26
"""Most pixels of one image: 12 bytes each while it is decoded and resized, 0.75 GiB."""

_MAX_BYTES = 2**28  # of a file: some formats are read whole, in others much can be skipped
_RUN_PROGRAMS = ("EPS", "WMF")
_ONE_PICTURE = ("MPO", "PSD")  # formats whose further frames are previews or layers
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
    h, w, c = shape
    changes: list[str] = []
    most = np.iinfo(image.dtype).max
    if image.shape[:2] == (h, w):
        values = image / float(most)
    else:
        # One channel at a time, in float32: a large image takes little beside itself.
        values = np.stack([_resize(channel, most, (w, h)) for channel in np.moveaxis(image, 2, 0)])
        values = np.moveaxis(values, 0, 2)
        changes.append("resized")
    if c == 1 and values.shape[2] == 3:
        values = values @ _LUMA[:, None]
        changes.insert(0, "made grey")
    # The filter may overshoot.
    return np.broadcast_to(values.clip(0.0, 1.0), shape).copy(), changes


def _resize(channel: NDArray[Any], most: int, size: tuple[int, int]) -> FloatArray:
    values = channel.astype(np.float32)
    values /= most
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.LANCZOS), np.float64)


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
        If it is no such image, or several; is transparent, has more than `MAX_PIXELS` pixels, which
        is looked at before they are decoded, or has pixels of more than 16 bits.
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
        if np.asarray(image.getchannel("A")).min() < 255:
            raise ValueError(
                f"{folder}: images must be opaque, got transparent pixels in {name}: put it on a "
                "background before"
            )
    if image.mode in ("1", "L"):
        return np.asarray(_converted(image, "L"))[..., None]
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
    return np.asarray(_converted(image, "RGB"))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _decode(path: Path, formats: Sequence[str]) -> Image.Image:
    """Decode one image and turn it as its camera says."""
    with warnings.catch_warnings(), open_regular(path) as file:
        warnings.simplefilter("ignore")  # of odd metadata
        # Of an image within another one, as icons are; the size of this one is checked here.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise ValueError(f"its file has {size:,} bytes, at most {_MAX_BYTES:,}")
        image = Image.open(file, formats=list(formats))
        _check_header(image)
        image.load()
        _check_header(image)
        ImageOps.exif_transpose(image, in_place=True)
        return image


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,}")
    if getattr(image, "is_animated", False) and image.format not in _ONE_PICTURE:
        raise ValueError("it holds several images: save the one that is meant")
