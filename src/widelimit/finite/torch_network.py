"""The class of modules that `build` returns. Importing this module imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from widelimit.finite.loaded import load_torch
from widelimit.finite.parameters import Parameters, Seed, check_width, draw_parameters
from widelimit.layers import Pointwise, walk
from widelimit.matrices.inputs import Channels, check_not_first
from widelimit.network import (
    GELU,
    ABReLU,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Identity,
    Layer,
    LayerNorm,
    LocalAvgPool,
    Network,
    Polynomial,
    ReLU,
    Sin,
    Sum,
)

__all__ = ["ScaledLayer", "TorchNetwork"]

torch = load_torch()
functional = torch.nn.functional
_Module: Any = torch.nn.Module
_Parameter: Any = torch.nn.parameter.Parameter
_UninitializedParameter: Any = torch.nn.parameter.UninitializedParameter


class ScaledLayer(_Module):  # pyright: ignore[reportUntypedBaseClass]
    """Parameters of one `Conv` or `Dense`, standard normal, and what they are multiplied with.

    Parameters
    ----------
    layer : Conv or Dense
    copied : bool
        Whether a copy of the parameters at the start is kept, as buffers.
    dtype, device
        Of torch.
    """

    def __init__(self, layer: Conv | Dense, copied: bool, dtype: Any, device: Any) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.layer, self.copied = layer, copied
        self.weight_scale = math.nan  # until the shape of the input is known
        self._options = {"dtype": dtype, "device": device}
        # Biases without a scale would be parameters that nothing depends on.
        for name in ("weight", "bias") if layer.b_std else ("weight",):
            setattr(self, name, _UninitializedParameter(layer.trainable, **self._options))
        if not layer.b_std:
            self.register_parameter("bias", None)
        if copied and layer.trainable:
            for name in ("weight", "bias"):
                self.register_buffer(f"{name}_at_start", None)

    def set_drawn(self, own: Parameters) -> None:
        """Take drawn parameters."""
        self.weight_scale = own.weight_scale
        weight = own.weight.T  # (outputs, c)
        if isinstance(self.layer, Conv):
            weight = own.weight.transpose(3, 2, 0, 1)  # (outputs, c, rows, columns)
        for name, value in (("weight", weight), ("bias", own.bias)):
            parameter = getattr(self, name)
            if parameter is None:
                continue
            parameter.materialize(value.shape)
            parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(value)))
            if self.copied and self.layer.trainable:
                setattr(self, f"{name}_at_start", parameter.detach().clone())

    def forward(self, x: Any, at_start: bool = False) -> Any:
        """Return ``scale W x + b_std bias``, with the parameters of now or of the start."""
        suffix = "_at_start" if at_start and self.layer.trainable else ""
        weight, bias = getattr(self, f"weight{suffix}"), getattr(self, f"bias{suffix}")
        bias = None if bias is None else self.layer.b_std * bias
        if isinstance(self.layer, Conv):
            _, strides, zeros = _geometry(self.layer)
            return functional.conv2d(self.weight_scale * x, weight, bias, strides, zeros)
        return functional.linear(self.weight_scale * x, weight, bias)

    def extra_repr(self) -> str:
        """Return the layer, as in source code."""
        return repr(self.layer)


class TorchNetwork(_Module):  # pyright: ignore[reportUntypedBaseClass]
    """A `Network` of finite width as a module of PyTorch; see `widelimit.finite.build`."""

    def __init__(
        self,
        network: Network,
        width: int,
        seed: Seed,
        *,
        input_shape: Sequence[int] | None,
        outputs: int,
        kappa: float,
        zero_at_start: bool,
        channels: Channels,
        dtype: str,
        device: Any,
    ) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.network, self.width, self.outputs = network, check_width(width), outputs
        self.kappa, self.zero_at_start, self.channels = kappa, zero_at_start, channels
        self.input_shape: tuple[int, ...] | None = None
        """Shape of one sample, as the module takes it; None until it is known."""
        self._seed = seed
        kind = getattr(torch, dtype)
        self.scaled = torch.nn.ModuleDict(
            {
                str(i): ScaledLayer(layer, zero_at_start, kind, device)
                for i, layer in enumerate(walk(network.layers))
                if isinstance(layer, Conv | Dense)
            }
        )
        if input_shape is not None:
            self._draw(tuple(input_shape))

    def forward(self, x: Any) -> Any:
        """Outputs of shape (n, outputs).

        Parameters
        ----------
        x : tensor of shape (n, h, w, c), (n, length, c), or (n, d) for dense networks
            With ``channels="first"``: (n, c, h, w), (n, c, length). Of dtype and device of the
            parameters.

        Raises
        ------
        ValueError
            If x has another shape than inputs before, or the network cannot take it.
        """
        shape = tuple(x.shape)
        if len(shape) < 2 or (self.input_shape is not None and shape[1:] != self.input_shape):
            expected = (
                "h, w, c" if self.input_shape is None else ", ".join(map(str, self.input_shape))
            )
            raise ValueError(
                f"x must have shape (n, {expected}), got {shape}: build a module for this shape, "
                "or reshape x"
            )
        if self.input_shape is None:
            self._draw(shape[1:])
        if self.channels == "first" and len(shape) > 2:
            x = x.movedim(1, -1)
        if self.network.is_dense:  # an image is a vector from the start
            x = x.flatten(1)
        else:  # a series is an image of one row
            x = (x[:, None] if len(shape) == 3 else x).movedim(-1, 1)
        out = self._layers(x, at_start=False)
        if self.zero_at_start:
            out = out - self._layers(x, at_start=True)
        return self.kappa * out

    def _draw(self, shape: tuple[int, ...]) -> None:
        """Draw the parameters for samples of this shape."""
        plain = shape
        if self.channels == "first":
            plain = (*shape[1:], shape[0])
        elif self.channels is None and len(shape) == 3:
            remedy = 'build(..., channels="first"); if the second is, channels="last"'
            check_not_first("a sample", shape, remedy)
        drawn = draw_parameters(self.network, plain, self.width, self._seed, self.outputs)
        for i, own in enumerate(drawn):
            if own is not None:
                self.scaled[str(i)].set_drawn(own)
        self.input_shape = tuple(int(size) for size in shape)

    def _layers(self, x: Any, at_start: bool) -> Any:
        return self._through(x, self.network.layers, count(), at_start)

    def _through(self, x: Any, layers: Sequence[Layer], numbers: Iterator[int], start: bool) -> Any:
        """Go through some layers, which take their numbers, with the parameters of now or then."""
        for layer in layers:
            number = next(numbers)
            match layer:
                case Conv() | Dense():
                    x = self.scaled[str(number)](x, start)
                case Sum(branches):
                    ends = [self._through(x, branch, numbers, start) for branch in branches]
                    x = sum(ends[1:], start=ends[0])
                case Flatten():
                    x = _flat(x)
                case GlobalAvgPool():
                    x = x.mean((2, 3))
                case AvgPool() | LocalAvgPool():
                    # Zeros count: the divisor is that of a whole window at the border, too.
                    x = functional.avg_pool2d(x, *_geometry(layer))
                case Identity():
                    pass
                case _:
                    x = _activate(layer, x)
        return x

    def extra_repr(self) -> str:
        """Return the network in one line, and what the module is beside it."""
        about = f"{self.network}, width={self.width}, kappa={self.kappa}"
        return about + (", zero_at_start=True" if self.zero_at_start else "")


def _flat(x: Any) -> Any:
    """Return vectors, in the order of rows, columns, channels that the library has everywhere."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)


def _geometry(layer: Conv | AvgPool | LocalAvgPool) -> tuple[tuple[int, int], ...]:
    """Return sizes, strides and zeros on either side, of rows and columns."""
    rows, columns = layer.windows
    return (rows.size, columns.size), (rows.stride, columns.stride), (rows.low, columns.low)


def _activate(layer: Pointwise, u: Any) -> Any:
    """Return ``f(u)``; channels are axis 1."""
    match layer:
        case ReLU():
            return torch.relu(u)
        case ABReLU(a, b):
            return torch.where(u > 0, b * u, a * u)
        case Erf():
            return torch.erf(u)
        case GELU():
            return functional.gelu(u)
        case Sin():
            return torch.sin(u)
        case Cos():
            return torch.cos(u)
        case Polynomial(coefficients):
            value = coefficients[-1] + 0 * u
            for coefficient in coefficients[-2::-1]:
                value = value * u + coefficient
            return value
        case Gaussian(gamma):
            size, there = _root(u.square().mean(1, keepdim=True))
            return torch.where(there, size * torch.exp(math.sqrt(gamma) * u / size - gamma), 0)
        case LayerNorm(eps):
            centred = u - u.mean(1, keepdim=True)
            size, there = _root(centred.square().mean(1, keepdim=True) + eps)
            return torch.where(there, centred / size, 0)


def _root(square: Any) -> tuple[Any, Any]:
    """Return the root, with 1 in place of 0, where its slope is infinite; and where it is not 0."""
    there = square > 0
    return torch.where(there, square, 1).sqrt(), there
