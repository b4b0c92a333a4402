"""Kernels that a module of PyTorch has: tangent kernel, and covariance of outputs.

The Jacobian is computed by `torch.func` for blocks of samples, and contracted at once: never are
more gradients held than `memory` has room for. Where not even the gradients of two samples by all
parameters fit, layers are done one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, overload

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.finite.building import read_layers
from widelimit.finite.loaded import load_torch
from widelimit.machine import parse_memory, remaining
from widelimit.network import Dense

__all__ = ["empirical_nngp", "empirical_ntk", "tangent_by_layer"]

_SHARE = 0.6  # of the free memory of a card, where no budget is given
_SPARE = 1.2  # what the allocator and the library of convolutions take beside what is counted
_COPIES = 3  # of gradients and activations, while gradients are computed
_LIBRARIES = 2**23  # bytes: of threads, and for what is small
_COLUMNS = 2**17  # of gradients that are summed in their own dtype
_BESIDE = 3  # samples that must not change outputs of one another
_CHUNK = 64  # samples that pass through a network together


@overload
def empirical_ntk(
    module: Any,
    x1: Any,
    x2: Any = None,
    *,
    memory: int | str | None = None,
    per_layer: Literal[False] = False,
) -> FloatArray: ...
@overload
def empirical_ntk(
    module: Any,
    x1: Any,
    x2: Any = None,
    *,
    memory: int | str | None = None,
    per_layer: Literal[True],
) -> dict[str, FloatArray]: ...
def empirical_ntk(
    module: Any,
    x1: Any,
    x2: Any = None,
    *,
    memory: int | str | None = None,
    per_layer: bool = False,
) -> FloatArray | dict[str, FloatArray]:
    """Tangent kernel of a module with the parameters that it has now.

    ``Theta_hat(x, z) = 1/k sum_o <df_o(x)/dtheta, df_o(z)/dtheta>``: inner products of gradients
    over parameters that require them, mean over the k outputs. For `build` it tends to
    ``kappa^2 Theta`` for growing width (Theorem 3.1).

    Parameters
    ----------
    module : torch.nn.Module
        Any that maps samples one by one, (n, ...) to (n, k) or (n,). On a CPU or a CUDA device.
    x1, x2 : tensor or array_like of shape (n1, ...) and (n2, ...)
        As the module takes them; moved to its device, and to the dtype of its parameters.
        ``x2=None``: x2 is x1, and the result is exactly symmetric.
    memory : int, str or None
        Budget in bytes, or as ``"6GB"``, of this process; for a module on a card, of what is taken
        there. None: 60 % of what is free.
    per_layer : bool
        Whether to return what each layer adds, a dict by the names of the submodules that own the
        parameters.

    Returns
    -------
    ndarray of float64, shape (n1, n2), or dict of them
        With the accuracy of the dtype of the parameters. The derivative of a ReLU at 0 is 0.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError, ValueError
        If an argument is outside its range, no parameter requires a gradient, or the module draws
        numbers (dropout) or mixes samples: batch normalisation in training mode, or without running
        statistics, or whatever makes an output depend on the samples beside it.
    MemoryError
        If `memory` has no room for the gradients of two samples by the largest layer; with what
        is needed.

    Notes
    -----
    One backward pass for each sample and output, more where blocks are small, and
    ``n1 n2 k`` times the number of parameters multiplications.
    """
    parts = tangent_by_layer(module, x1, x2, memory=memory)
    return parts if per_layer else np.sum(list(parts.values()), axis=0)


def empirical_nngp(module: Any, x1: Any, x2: Any = None) -> FloatArray:
    """Covariance of outputs over draws of the last layer, the others as they are.

    ``K_hat(x, z) = kappa^2 (w^2/c phi(x).phi(z) + b^2)``, phi being the c features that enter the
    last layer: regression with it is what a network does of which the last layer alone is trained.
    Tends to ``widelimit.kernel(network, x, kind="nngp")``.

    Parameters
    ----------
    module : torch.nn.Module
        From `build`, or one that `from_torch` reads. A copy that `build` subtracts plays no role.
    x1, x2 : tensor or array_like of shape (n1, ...) and (n2, ...)
        As for `empirical_ntk`.

    Returns
    -------
    ndarray of float64, shape (n1, n2)

    Raises
    ------
    ImportError, TypeError, ValueError
        As `from_torch`, and if an input is not real or is empty.
    """
    torch = load_torch()
    network, scales = read_layers(module)
    sides = [_tensor(torch, module, "x1", x1)]
    if x2 is not None:
        sides.append(_tensor(torch, module, "x2", x2))
    _settle(torch, module, sides[0])
    last = network.layers[-1]
    assert isinstance(last, Dense)  # a Network ends with it
    owners = [(n, p) for n, p in module.named_modules() if getattr(p, "weight", None) is not None]
    name, part = owners[-1]
    kappa = getattr(module, "kappa", 1.0)
    weight_scale = getattr(part, "weight_scale", None) or scales[f"{name}.weight"]
    found = [_features(torch, module, part, side) for side in sides]
    products = weight_scale**2 * (found[0] @ found[-1].T) + last.b_std**2
    return kappa**2 * (products if x2 is not None else _symmetric(products))


def tangent_by_layer(
    module: Any,
    x1: Any,
    x2: Any = None,
    *,
    memory: int | str | None = None,
    scales: Mapping[str, float] | None = None,
) -> dict[str, FloatArray]:
    """Tangent kernel of each layer, as `empirical_ntk` says.

    Parameters
    ----------
    module, x1, x2, memory
        As for `empirical_ntk`.
    scales : mapping or None
        By the name of a parameter, what it is multiplied by in the NTK parametrisation: so are its
        gradients. None: 1.
    """
    torch = load_torch()
    _check_module(torch, module)
    left = _tensor(torch, module, "x1", x1)
    right = left if x2 is None else _tensor(torch, module, "x2", x2)
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(
            "x1 and x2 must hold inputs of one shape, got "
            f"{tuple(left.shape[1:])} and {tuple(right.shape[1:])}"
        )
    _settle(torch, module, left)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            "module must have parameters that require gradients, got none: its tangent kernel is 0"
        )
    layers: dict[str, list[str]] = {}
    for name in trained:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    _check_apart(torch, module, left if len(left) > 1 else right)
    outputs, saved = _look(torch, module, left[:1], trained)
    gradients = _Gradients(torch, module, trained, layers, dict(scales or {}))
    plan = _plan(gradients, left, None if x2 is None else right, saved, memory)

    found = {layer: np.zeros((len(left), len(right))) for layer in layers}
    with _exact_products(torch, left.device):
        for output in range(outputs):
            for group in plan.groups:
                for rows in _blocks(len(left), plan.block):
                    mine = gradients.of(left[rows], output, group)
                    for columns in _blocks(len(right), plan.block):
                        if x2 is None and columns.start > rows.start:
                            break
                        same = x2 is None and columns == rows
                        theirs = mine if same else gradients.of(right[columns], output, group)
                        for layer in group:
                            found[layer][rows, columns] += _contract(mine[layer], theirs[layer])
                        del theirs  # before the next ones take their room
                    del mine
    return {
        layer: (_symmetric(value) if x2 is None else value) / outputs
        for layer, value in found.items()
    }


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which layers are done together, and for how many samples."""

    groups: list[list[str]]
    block: int


class _Gradients:
    """Gradients of one output by the parameters of some layers, a row for each sample."""

    def __init__(
        self,
        torch: Any,
        module: Any,
        trained: dict[str, Any],
        layers: dict[str, list[str]],
        scales: dict[str, float],
    ) -> None:
        self._torch, self._module, self._scales = torch, module, scales
        self._trained = {name: p.detach() for name, p in trained.items()}
        self.layers = layers
        some = next(iter(trained.values()))
        # A batch of convolutions with a weight each is slow on a processor: eight times as slow as
        # one sample after the other.
        one = some.device.type == "cpu" and any(p.ndim > 2 for p in trained.values())
        self.chunk = 1 if one else _CHUNK

    def bytes_of(self, group: list[str]) -> int:
        """Bytes of the gradients of one sample."""
        return sum(self._bytes(self._trained[n]) for layer in group for n in self.layers[layer])

    @staticmethod
    def _bytes(tensor: Any) -> int:
        return tensor.numel() * tensor.element_size()

    def of(self, x: Any, output: int, group: list[str]) -> dict[str, Any]:
        """Return a matrix (samples, parameters) for each layer of a group."""
        torch, names = self._torch, [n for layer in group for n in self.layers[layer]]
        others = {n: p for n, p in self._trained.items() if n not in names}

        def f(parameters: dict[str, Any], sample: Any) -> Any:
            out = torch.func.functional_call(self._module, parameters | others, (sample[None],))
            return out.reshape(-1)[output]

        gradient = torch.func.vmap(torch.func.grad(f), (None, 0))
        mine = {n: self._trained[n] for n in names}
        out = {
            layer: x.new_empty((len(x), sum(mine[n].numel() for n in self.layers[layer])))
            for layer in group
        }
        for part in _blocks(len(x), self.chunk):
            computed = gradient(mine, x[part])
            for layer in group:
                start = 0
                for n in self.layers[layer]:
                    end = start + mine[n].numel()
                    out[layer][part, start:end] = computed.pop(n).flatten(1)
                    if n in self._scales:
                        out[layer][part, start:end] *= self._scales[n]
                    start = end
        return out


def _contract(left: Any, right: Any) -> FloatArray:
    """Return ``left @ right.T``, sums of many columns in float64."""
    total = left.new_zeros((len(left), len(right))).double()
    for part in _blocks(left.shape[1], _COLUMNS):
        total += left[:, part] @ right[:, part].T
    return total.cpu().numpy()


def _plan(
    gradients: _Gradients, left: Any, right: Any | None, saved: int, memory: int | str | None
) -> _Plan:
    """Fit blocks of samples, and if need be single layers, into the memory."""
    budget = _budget(left.device, memory)
    most = max(len(left), 0 if right is None else len(right))
    layers = list(gradients.layers)

    def largest(group: list[str]) -> int:
        each = gradients.bytes_of(group)
        chunk = min(gradients.chunk, most)
        work = _COPIES * chunk * (each + saved)
        room = (budget - _LIBRARIES) / _SPARE - work
        if right is None and room >= most * each:  # one block, both sides
            return most
        return min(most, max(0, int(room / (2 * each))))

    if largest(layers) >= most:
        return _Plan([layers], most)
    groups = [[layer] for layer in layers]
    if gradients.chunk > 1 and min(map(largest, groups)) < 1:
        gradients.chunk = 1
    block = min(map(largest, groups))
    if block < 1:
        worst = max(groups, key=gradients.bytes_of)
        each = gradients.bytes_of(worst)
        needed = ceil(_SPARE * (2 * each + _COPIES * (each + saved))) + _LIBRARIES
        raise MemoryError(
            f"the gradients of two samples by the parameters of {worst[0] or 'the module'} take "
            f"{needed / 1e9:.2f} GB, and {max(budget, 0) / 1e9:.2f} GB are left: give more memory, "
            "or take a narrower network"
        )
    return _Plan(groups, block)


def _budget(device: Any, memory: int | str | None) -> int:
    if device.type != "cuda":
        return remaining(memory)
    if memory is not None:
        return parse_memory(memory)
    return int(_SHARE * load_torch().cuda.mem_get_info(device)[0])


def _look(torch: Any, module: Any, x: Any, trained: dict[str, Any]) -> tuple[int, int]:
    """Return the number of outputs, and the bytes that a pass of one sample keeps."""
    known = {p.untyped_storage().data_ptr() for p in trained.values()}
    kept: list[int] = []

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    def unpack(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), torch.enable_grad():
        out = module(x)
    if out.ndim not in (1, 2) or len(out) != 1:
        raise ValueError(
            "module must map (n, ...) to (n, k) or (n,), got shape "
            f"{tuple(out.shape)} for one sample"
        )
    return out.numel(), sum(kept)


def _check_module(torch: Any, module: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module, got {type(module).__name__}: build makes one of a "
            "Network"
        )
    modules = torch.nn.modules
    normalises, drops = modules.batchnorm._BatchNorm, modules.dropout._DropoutNd
    for name, part in module.named_modules():
        if isinstance(part, normalises) and part.running_mean is None:
            raise ValueError(
                f"module must map samples one by one, but {name or 'it'} = {part} has no running "
                "statistics, so it mixes samples in eval mode, too: make it with "
                "track_running_stats=True"
            )
        if part.training and isinstance(part, (normalises, drops, torch.nn.RReLU)):
            raise ValueError(
                f"module is in training mode, where {name or 'it'} = {part} mixes samples or draws "
                "numbers: call module.eval() first"
            )


def _check_apart(torch: Any, module: Any, x: Any) -> None:
    """Refuse a module whose output for one sample depends on others; gradients by them tell."""
    with torch.enable_grad():
        given = x[:_BESIDE].clone().requires_grad_()
        out = module(given.clone())  # a copy, which may be written to
        if out.shape[:1] != given.shape[:1] or not out.requires_grad:
            return
        # Weights that differ: of a softmax, say, the plain sum is constant.
        first = out[0].reshape(-1)
        total = first @ torch.arange(1, len(first) + 1).to(first)
        (gradient,) = torch.autograd.grad(total, given, allow_unused=True)
    if gradient is not None and bool((gradient[1:].abs() > 0).any()):
        raise ValueError(
            "module must map samples one by one, got an output for the first that changes with "
            "those beside it: leave out what takes means over samples, and let axis 0 be theirs "
            "everywhere"
        )


def _tensor(torch: Any, module: Any, name: str, x: Any) -> Any:
    """Return inputs as a tensor that the module can take."""
    if isinstance(x, torch.Tensor):
        tensor = x.detach()
        kind = "c" if tensor.is_complex() else "f"
    else:
        values = np.asarray(x)
        kind = values.dtype.kind
        tensor = torch.from_numpy(np.array(values, order="C")) if kind in "buif" else None
    if kind not in "buif" or tensor is None:
        got = x.dtype if isinstance(x, torch.Tensor) else np.asarray(x).dtype
        raise TypeError(f"{name} must hold real numbers, got {got}")
    if tensor.ndim < 2 or 0 in tensor.shape:
        raise ValueError(
            f"{name} must hold samples, (n, ...), not empty, got {tuple(tensor.shape)}"
        )
    some = next(iter(module.parameters()), None)
    if some is None:
        raise ValueError("module must have parameters, got none")
    tensor = tensor.to(device=some.device, dtype=some.dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite as {some.dtype}, got NaN or infinity")
    return tensor


def _settle(torch: Any, module: Any, x: Any) -> None:
    """Let a module whose parameters wait for the shape of its input have them."""
    if any(torch.nn.parameter.is_lazy(p) for p in module.parameters()):
        with torch.no_grad():
            module(x[:1])


def _features(torch: Any, module: Any, last: Any, x: Any) -> FloatArray:
    entered: list[Any] = []

    def keep(_: Any, given: tuple[Any, ...]) -> None:
        entered.append(given[0])

    handle = last.register_forward_pre_hook(keep)
    try:
        with torch.no_grad(), _exact_products(torch, x.device):
            for part in _blocks(len(x), _CHUNK):
                module(x[part])
                del entered[(part.start // _CHUNK) + 1 :]  # a pass of a subtracted copy
    finally:
        handle.remove()
    return torch.cat(entered).double().cpu().numpy()


def _exact_products(torch: Any, device: Any) -> Any:
    """Keep convolutions of a card from rounding their factors to ten bits (TF32)."""
    if device.type != "cuda":
        from contextlib import nullcontext

        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _symmetric(matrix: FloatArray) -> FloatArray:
    """Both halves from the lower one: the upper blocks are not computed."""
    return np.tril(matrix) + np.tril(matrix, -1).T
