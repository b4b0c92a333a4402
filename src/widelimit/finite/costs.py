"""Where networks of finite width are computed, and about how long they take there."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from widelimit.finite.loaded import load_torch
from widelimit.finite.parameters import parameter_sizes
from widelimit.layers import walk
from widelimit.machine import default_threads
from widelimit.network import Network

__all__ = [
    "choose_device",
    "count_multiply_adds",
    "describe_device",
    "estimate_gradients",
    "on_threads",
    "rate",
]

_PASSES = 3  # forward, and backward by inputs and by weights
_OVERHEAD = 1.5e-4  # seconds for each layer and pass of one sample on a processor
_DRAWN = 1.2e-8  # seconds for each parameter
_PROBE = (64, 32)  # channels, and the side of the images, of what is measured


def choose_device(name: str = "auto") -> str:
    """Return where modules are computed: "auto" is a card if there is one.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    ValueError
        If it is no device, or one that is not there.
    """
    torch = load_torch()
    there = bool(torch.cuda.is_available())
    if name == "auto":
        return "cuda" if there else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not there:
        raise ValueError(
            "device cuda needs an NVIDIA card that PyTorch can use, found none: widelimit doctor "
            "says what there is; take cpu"
        )
    return name


def describe_device(device: str) -> dict[str, str]:
    """Return what bits depend on beside the number of threads: the device, PyTorch's version."""
    torch = load_torch()
    name = str(torch.cuda.get_device_name()) if device == "cuda" else device
    return {"device": name, "torch": str(torch.__version__)}


@contextmanager
def on_threads(threads: int | None) -> Generator[int]:
    """Let PyTorch have so many threads for a while; None: one for each processor."""
    torch = load_torch()
    before = torch.get_num_threads()
    wanted = threads or default_threads()
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)


def count_multiply_adds(
    network: Network, width: int, input_shape: Sequence[int], outputs: int = 1
) -> tuple[int, int, int]:
    """Return what one sample takes forward, and the numbers of parameters: trained, and all.

    Parameters
    ----------
    network, width, input_shape, outputs
        As for `build`; images are (h, w, c).
    """
    work = trained = parameters = 0
    for sizes in parameter_sizes(network, input_shape, width, outputs):
        if sizes is not None:
            own = math.prod(sizes.weight)
            work += own * sizes.places
            parameters += own
            trained += own * sizes.layer.trainable
    return work, trained, parameters


def rate(device: str) -> float:
    """Measure how many multiplications with an addition a convolution does in a second.

    On a processor in the time that this process has had of it, whatever else runs there.
    """
    torch = load_torch()
    channels, side = _PROBE
    x = torch.ones((8, channels, side, side), device=device)
    weight = torch.ones((channels, channels, 3, 3), device=device)
    best = math.inf
    with torch.no_grad():
        for _ in range(4):
            start, own = time.perf_counter(), time.process_time()
            found = torch.nn.functional.conv2d(x, weight, padding=1)
            float(found[0, 0, 0, 0])  # a card has done it now
            taken = time.perf_counter() - start
            if device == "cpu":
                taken = min(taken, (time.process_time() - own) / torch.get_num_threads())
            best = min(best, taken)
    return 8 * (side * channels * 3) ** 2 / best


def estimate_gradients(
    network: Network, width: int, input_shape: Sequence[int], n: int, speed: float, device: Any
) -> float:
    """Estimate the seconds of one `empirical_ntk` of n samples, and of drawing its network.

    Parameters
    ----------
    network, width, input_shape
        As for `count_multiply_adds`.
    n : int
    speed : float
        As `rate` measured it.
    device : str
    """
    work, trained, parameters = count_multiply_adds(network, width, input_shape)
    layers = sum(1 for _ in walk(network.layers))
    small = _OVERHEAD * _PASSES * layers * (n if device == "cpu" else 1)
    return _DRAWN * parameters + small + n * (_PASSES * work + n * trained / 2) / speed
