"""Finite networks of any tree, with PyTorch: written as a user would, gradients by autograd.

Weights are standard normal numbers, multiplied where they are used (the NTK parametrisation).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as nn

Tensor = torch.Tensor


class Finite:
    """One random network; `parameters` are those that are trained."""

    def __init__(self, network: Any, width: int, seed: int) -> None:
        self.network, self.width = network, width
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: dict[Any, tuple[Tensor, Tensor]] = {}
        self.parameters: list[Tensor] = []

    def __call__(self, images: np.ndarray) -> Tensor:
        """Return the output for each image (n, h, w, c), or row (n, d)."""
        x = torch.as_tensor(images)
        x = x.movedim(-1, 1) if x.ndim == 4 else x
        self.fan_in = x.shape[1] if self.network.scaling == "fan_in" else 1
        return self._through(x, self.network.layers, (), self.fan_in)[0][:, 0]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def _own(self, place: Any, layer: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if place not in self.weights:
            made = self._normal(*shape), self._normal(shape[0])
            if layer.trainable:
                self.parameters += [tensor.requires_grad_() for tensor in made]
            self.weights[place] = made
        return self.weights[place]

    def _through(self, x: Tensor, layers: Any, place: Any, fan_in: int) -> tuple[Tensor, int]:
        for index, layer in enumerate(layers):
            here = (*place, index)
            last = not place and index == len(layers) - 1
            match type(layer).__name__:
                case "Conv":
                    q = layer.filter_size
                    q = q if isinstance(q, tuple) else (q, q)
                    weight, bias = self._own(here, layer, (self.width, x.shape[1], *q))
                    zeros = [(k - 1) // 2 if layer.padding == "same" else 0 for k in q]
                    u = nn.conv2d(x, weight, None, layer.stride, zeros)
                    scale = layer.w_std / (q[0] * q[1] * fan_in) ** 0.5
                    x, fan_in = scale * u + layer.b_std * bias[:, None, None], self.width
                case "Dense":
                    weight, bias = self._own(here, layer, (1 if last else self.width, x.shape[1]))
                    x = layer.w_std / fan_in**0.5 * x @ weight.T + layer.b_std * bias
                    fan_in = self.width
                case "AvgPool":
                    q = layer.size if isinstance(layer.size, tuple) else (layer.size,) * 2
                    zeros = tuple((k - 1) // 2 if layer.padding == "same" else 0 for k in q)
                    x = nn.avg_pool2d(x, q, layer.stride, zeros)
                case "Sum":
                    parts = [
                        self._through(x, branch, (*here, number), fan_in)
                        for number, branch in enumerate(layer.branches)
                    ]
                    x, fan_in = sum(part[0] for part in parts), parts[0][1]
                case "GlobalAvgPool":
                    x = x.mean((2, 3))
                case "Flatten":
                    fan_in *= x.shape[2] * x.shape[3] if self.network.scaling == "fan_in" else 1
                    x = x.flatten(1)
                case _:
                    x = activate(layer, x)
        return x, fan_in


def activate(layer: Any, u: Tensor) -> Tensor:
    match type(layer).__name__:
        case "ReLU":
            return u.clamp(min=0)
        case "ABReLU":
            return layer.a * u.clamp(max=0) + layer.b * u.clamp(min=0)
        case "Erf":
            return torch.erf(u)
        case "GELU":
            return nn.gelu(u)
        case "Sin":
            return torch.sin(u)
        case "Cos":
            return torch.cos(u)
        case "Gaussian":
            x = (u**2).mean(1, keepdim=True).sqrt()
            return x * torch.exp(layer.gamma**0.5 * u / x - layer.gamma)
        case "Polynomial":
            return sum(c * u**n for n, c in enumerate(layer.coefficients)) + 0 * u
        case "LayerNorm":
            variance = u.var(1, keepdim=True, correction=0)
            return (u - u.mean(1, keepdim=True)) / (variance + layer.eps).sqrt()
        case "Identity":
            return u
        case other:
            raise NotImplementedError(other)


def tangent_kernel(network: Any, x: np.ndarray, width: int, seed: int) -> tuple[Any, Any]:
    """Return outputs times each other, and inner products of gradients, of one random network."""
    finite = Finite(network, width, seed)
    outputs = finite(x)
    rows = []
    for output in outputs:
        found = torch.autograd.grad(output, finite.parameters, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in found if g is not None]))
    jacobian = torch.stack(rows)
    values = outputs.detach()
    return (values[:, None] * values).numpy(), (jacobian @ jacobian.T).numpy()
