"""Reading single images with Pillow.

The size that a file announces is checked before it is decoded, and no format is tried that runs
another program, as PostScript does.
"""

from __future__ import annotations

import importlib
import io
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from widelimit.arrays import FloatArray
from widelimit.reading import open_regular

__all__ = [
    "MAX_PIXELS",
    "Changes",
    "can_open",
    "fit_image",
    "image_suffixes",
    "read_image",
    "resize",
    "safe_formats",
]

MAX_PIXELS = 2**26
"""Most pixels of one image: 12 bytes each while it is decoded and resized, 0.75 GiB."""

_MAX_BYTES = 2**28  # of a file: some formats are read whole, in others much can be skipped
_TIMES, _SPARE = 4, 2**26  # how often a file may be read, and bytes beyond that
_MAX_EXIF = 3 * 2**15  # bytes; a JPEG file has 2^16. Tags may all be the whole: 0.75 GiB
_RUN_PROGRAMS = ("EPS", "WMF")
_NO_READERS = ("BUFR", "GRIB", "HDF5", "MPEG")  # which Pillow knows by name alone
_STARTS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM")
FIRST_FRAME = "animated or of several pages: the first one was taken"
ON_WHITE = "transparent: put on white"
_ONE_PICTURE = ("MPO", "PSD")  # formats whose further frames are previews or layers
_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue, as Pillow's


def safe_formats() -> list[str]:
    """Return all formats that Pillow reads, without those that it has another program read."""
    _register()
    return [name for name in Image.ID if name not in (*_RUN_PROGRAMS, *_NO_READERS)]


@lru_cache(maxsize=1)
def _register() -> None:
    """Have Pillow know all formats that it can read here."""
    Image.init()
    try:
        heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        return
    heif.register_heif_opener()


def can_open(path: Path) -> bool:
    """Return whether a regular file begins like an image of a usual format, whatever its name."""
    formats = [name for name in safe_formats() if name in _STARTS]
    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")
            Image.open(file, formats=formats)
    except Exception:  # damaged or foreign content may raise anything
        return False
    return True


class Changes:
    """Counts what was done to images that loses something, to say it in one line for each."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, change: str, name: str) -> None:
        """Count one; the name is shown if it is the first."""
        self._names.setdefault(change, []).append(name)

    def lines(self) -> list[str]:
        """Return what was done, one line for each change."""
        return [
            f"{len(names):,} {'image was' if len(names) == 1 else 'images were'} {change} "
            f"({'' if len(names) == 1 else 'the first is '}{names[0]})"
            for change, names in self._names.items()
        ]


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

    Notes
    -----
    Resized with Lanczos' filter, which averages what is made smaller (no aliasing). Width and
    height are scaled apart: nothing is cut off.
    """
    h, w, c = shape
    changes: list[str] = []
    most = np.iinfo(image.dtype).max
    if image.shape[:2] == (h, w):
        values = image / float(most)
    else:
        values = resize(image, most, (h, w))
        changes.append("resized")
    if c == 1 and values.shape[2] == 3:
        values = values @ _LUMA[:, None]
        changes.insert(0, "made grey")
    # The filter may overshoot.
    return np.broadcast_to(values.clip(0.0, 1.0), shape).copy(), changes


def resize(image: NDArray[Any], most: float, size: tuple[int, int]) -> FloatArray:
    """Divide an image (h, w, c) by a number, and resize it to (height, width); may overshoot."""

    def one(channel: NDArray[Any]) -> FloatArray:
        values = channel.astype(np.float32)
        values /= most
        made = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.LANCZOS)
        return np.asarray(made, np.float64)

    # One channel at a time, in float32: a large image takes little beside itself.
    return np.stack([one(channel) for channel in np.moveaxis(image, 2, 0)], axis=2)


def read_image(
    path: Path, folder: Path, formats: Sequence[str], changes: Changes | None = None
) -> NDArray[Any]:
    """Read one image as (h, w, 1) or (h, w, 3), uint8 or uint16.

    Of an animation, or of several pages, the first one; transparent pixels are put on white.

    Parameters
    ----------
    path : Path
    folder : Path
        That messages name the image in.
    formats : sequence of str
        That Pillow may try.
    changes : Changes or None
        Counts both.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no such image, has more than `MAX_PIXELS` pixels, which
        is looked at before they are decoded, or has pixels of more than 16 bits.
    """
    name, changes = path.relative_to(folder), Changes() if changes is None else changes
    try:
        image, several = _decode(path, formats)
    except (PermissionError, FileNotFoundError):
        raise
    except (
        Exception
    ) as error:  # a damaged image may raise anything, from SyntaxError to struct.error
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose words name an object of Python
            reason = "it begins like no image that Pillow reads"
        raise ValueError(
            f"{folder}: cannot read {name} ({reason}): mend the file or remove it"
        ) from error

    if several:
        changes.add(FIRST_FRAME, str(name))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = _on_white(image, str(name), changes)
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


def _on_white(image: Image.Image, name: str, changes: Changes) -> Image.Image:
    """Put an image whose pixels may be transparent on white."""
    colours = image.convert("RGBA")
    if np.asarray(colours.getchannel("A")).min() < 255:
        changes.add(ON_WHITE, name)
        colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return colours.convert("RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _decode(path: Path, formats: Sequence[str]) -> tuple[Image.Image, bool]:
    """Decode one image and turn it as its camera says; return whether it is one of several."""
    with warnings.catch_warnings(), open_regular(path) as file:
        warnings.simplefilter("ignore")  # of odd metadata
        # Of an image within another one, as icons are; the size of this one is checked here.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise ValueError(f"its file has {size:,} bytes, at most {_MAX_BYTES:,}")
        metered = io.BufferedReader(_Metered(file.fileno(), _TIMES * size + _SPARE))
        image = Image.open(metered, formats=list(formats))
        _check_header(image)
        animated = getattr(image, "is_animated", False)
        several = animated and image.format not in _ONE_PICTURE
        image.load()
        _check_header(image)
        ImageOps.exif_transpose(image, in_place=True)
        return image, several


class _Metered(io.FileIO):
    """A file that may be read so many bytes: entries of a directory may all be the whole of it."""

    def __init__(self, handle: int, left: int) -> None:
        super().__init__(handle, closefd=False)
        self._left = left

    def readinto(self, buffer: Any) -> int:
        got = super().readinto(buffer)
        self._left -= got
        if self._left < 0:
            raise ValueError("it refers to the same bytes again and again")
        return got


def _check_header(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,}")
    if (size := len(image.info.get("exif", b""))) > _MAX_EXIF:
        raise ValueError(f"its EXIF data have {size:,} bytes, at most {_MAX_EXIF:,}")
