"""Images as data URIs, to stand inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from widelimit.arrays import FloatArray

__all__ = ["to_data_uri"]


def to_data_uri(x: FloatArray) -> str:
    """Encode one image as PNG in a data URI.

    Parameters
    ----------
    x : ndarray of float64, shape (h, w, c)
        Pixels in [0, 1]. Three channels are shown as red, green and blue; of any other number
        the mean is shown in grey.

    Returns
    -------
    str
    """
    pixels = np.rint(255 * (x if x.shape[2] == 3 else x.mean(axis=2))).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
