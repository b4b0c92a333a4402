"""`build`: from a `Network` to a module of PyTorch. `from_torch`: the other way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, cast

from widelimit.finite.loaded import load_torch
from widelimit.finite.parameters import Seed, check_width
from widelimit.layers import Pair, Pointwise
from widelimit.matrices.inputs import Channels
from widelimit.network import (
    GELU,
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    LeakyReLU,
    LocalAvgPool,
    Network,
    ReLU,
)

if TYPE_CHECKING:
    from widelimit.finite.torch_network import TorchNetwork

__all__ = ["build", "from_torch", "read_layers"]


def build(
    network: Network,
    width: int,
    seed: Seed = 0,
    *,
    input_shape: Sequence[int] | None = None,
    outputs: int = 1,
    kappa: float = 1.0,
    zero_at_start: bool = False,
    channels: Channels = None,
    dtype: str = "float32",
    device: Any = "cpu",
) -> TorchNetwork:
    """Build a network of finite width as a `torch.nn.Module`, in the NTK parametrisation.

    Weights and biases are standard normal, and multiplied by ``w_std / sqrt(fan-in)`` and ``b_std``
    in the forward pass, so that for growing width the tangent kernel tends to
    ``kappa^2 widelimit.kernel(network, x)`` (Theorem 3.1).

    Parameters
    ----------
    network : Network
        Layers that are not trainable are frozen: ``requires_grad=False``.
    width : int
        Channels of every `Conv`, features of every `Dense` but the last; at least 1.
    seed : int, sequence of int, SeedSequence or Generator
        As for `FiniteNetwork.sample`: equal seeds give equal parameters, there and here, on any
        device.
    input_shape : sequence of int or None
        Of one sample as the module takes it: ``(h, w, c)``, ``(length, c)`` of a series, or
        ``(d,)``; with ``channels="first"`` ``(c, h, w)`` or ``(c, length)``. None: parameters are
        drawn when the first input is seen.
    outputs : int
        At least 1.
    kappa : float
        What the output is multiplied by, above 0 (paper: 0.05 in Section A).
    zero_at_start : bool
        Whether a frozen copy of the network is subtracted, so that all outputs are 0 at the start.
        The tangent kernel stays what it is.
    channels : {"first", "last"} or None
        Where the channels of images are. None: last, as for `widelimit.kernel`, and what looks
        as if they were first is refused.
    dtype : {"float32", "float64"}
    device : torch.device, str or int

    Returns
    -------
    torch.nn.Module
        Takes tensors of shape (n, *input_shape), returns (n, outputs).

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError, ValueError
        If an argument is outside its range, or the shape does not fit the network.

    Notes
    -----
    A hidden `Conv` has ``q^2 width^2`` parameters, drawn in float64 on the processor (9 MB and
    about 50 ms for q = 3 and width 512 in float32).
    """
    load_torch()
    from widelimit.finite.torch_network import TorchNetwork

    given: Any = network
    if not isinstance(given, Network):
        raise TypeError(f"network must be a Network, got {given!r}: from_torch makes one")
    check_width(width)
    if isinstance(outputs, bool) or not isinstance(outputs, Integral) or outputs < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"outputs must be an integer and at least 1, got {outputs!r}")
    if not isinstance(kappa, Real) or not 0 < kappa < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"kappa must be a number above 0, got {kappa!r}")
    if channels not in ("first", "last", None):
        raise ValueError(f'channels must be "first", "last" or None, got {channels!r}')
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    return TorchNetwork(
        network,
        width,
        seed,
        input_shape=input_shape,
        outputs=int(outputs),
        kappa=float(kappa),
        zero_at_start=zero_at_start,
        channels=channels,
        dtype=dtype,
        device=device,
    )


def from_torch(module: Any) -> Network:
    """Read a `torch.nn.Sequential` as the `Network` that it is a finite one of.

    The scales are those that the parameters have now: ``w_std`` is the root of fan-in times the
    mean square of the weights, ``b_std`` the root mean square of the biases; both are those of the
    initialisation as long as the module is not trained, but for the scatter of a finite draw.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of Conv2d (padding with zeros by half of an odd kernel, or none; no groups, no dilation),
        AvgPool2d (the same), AdaptiveAvgPool2d(1), these in one dimension, ReLU, LeakyReLU, GELU,
        Flatten, Linear, Identity, and Sequential of these. Or what `build` has returned. One object
        may stand in several places if it has no parameters.

    Returns
    -------
    Network
        With ``scaling="fan_in"``. A layer whose parameters have ``requires_grad=False`` is not
        trainable. The network of `build` is the one that was built.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError
        If module is no Sequential, or of a class derived from it, which may compute anything.
    ValueError
        If it has layers that have no counterpart, share parameters, or have hooks or a ``forward``
        of their own, all of which are named; or an order that no `Network` has.
    """
    return read_layers(module)[0]


def read_layers(module: Any) -> tuple[Network, dict[str, float]]:
    """Return the network of a module, and by the name of each parameter its standard deviation.

    In the NTK parametrisation a parameter is standard normal, and multiplied by the number that
    is returned here: its part of the tangent kernel is that of the module times the square.
    """
    torch = load_torch()
    from widelimit.finite.torch_network import TorchNetwork

    # Exactly these classes: what inherits from them may do other things.
    if type(module) not in (torch.nn.Sequential, TorchNetwork):
        derived = isinstance(module, torch.nn.Sequential)
        raise TypeError(
            "module must be a torch.nn.Sequential, or come from build, got "
            f"{type(module).__name__}: write the network as a Sequential of its layers"
            + (", which Sequential(*module) is if it has no forward of its own" if derived else "")
        )
    unknown = _altered(torch, module)
    if type(module) is TorchNetwork:
        _refuse(unknown)
        scales = {name: 1.0 for name, _ in module.named_parameters()}
        return cast("Any", module).network, scales
    layers: list[Layer] = []
    scales: dict[str, float] = {}
    owners: dict[int, str] = {}  # of parameters, by where their numbers lie
    grids: dict[str, str] = {}  # the first layer on a line, and in a plane
    pooled = False  # a global pool whose Flatten is still to come
    for name, part in _leaves(torch, module, ""):
        layer, refused = _read(torch, part)
        refused = refused or _shared(name, part, owners)
        if refused:
            unknown.append(f"{name}: {refused}")
            continue
        if type(part).__name__.endswith(("1d", "2d")):
            grids.setdefault(type(part).__name__[-2:], f"{name} = {part}")
        if isinstance(layer, Conv | Dense):
            scales |= _scales(name, part, layer)
        if isinstance(layer, Flatten) and pooled:  # (n, c, 1, 1) becomes (n, c)
            pooled = False
            continue
        passes = layer is None or isinstance(layer, Pointwise)  # the same before Flatten and after
        if pooled and not passes:
            raise ValueError(
                f"module cannot be read as a Network: {name} = {part} follows "
                "AdaptiveAvgPool2d(1), where Flatten() must come"
            )
        pooled = isinstance(layer, GlobalAvgPool) or (pooled and passes)
        if isinstance(layer, Flatten) and layers:  # and so is a pool that comes last
            layers[-1] = _local(layers[-1])
        if layer is not None:
            layers.append(layer)
    _refuse(unknown)
    if len(grids) > 1:
        raise ValueError(
            "module cannot be read as a Network, it must be for series or for images, got "
            f"{grids['1d']} and {grids['2d']}: take layers for the same number of axes"
        )
    try:
        return Network(layers), scales
    except (TypeError, ValueError) as error:
        raise ValueError(f"module cannot be read as a Network: {error}") from error


def _leaves(torch: Any, module: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    # named_children leaves out a module that has stood somewhere before.
    for name, part in module._modules.items():
        if type(part) is torch.nn.Sequential:
            yield from _leaves(torch, part, f"{prefix}{name}.")
        else:
            yield prefix + name, part


def _refuse(unknown: Sequence[str]) -> None:
    if unknown:
        raise ValueError(
            "module cannot be read as a Network, these layers have no counterpart yet: "
            + "; ".join(unknown)
        )


def _altered(torch: Any, module: Any) -> list[str]:
    """Name what may compute something else than its class says."""
    hooks = [f"_{way}{pre}_hooks" for way in ("forward", "backward") for pre in ("", "_pre")]
    lazy = torch.nn.modules.lazy.LazyModuleMixin  # hooks until the first call; refused by `_read`
    found: list[str] = []
    for name, part in module.named_modules():
        what = f"{name or 'module'}: {type(part).__name__} must have no"
        if "forward" in vars(part):
            found.append(f"{what} forward of its own")
        elif not isinstance(part, lazy) and any(getattr(part, hook) for hook in hooks):
            found.append(f"{what} hooks, which may change what it computes: remove them")
    return found


def _shared(name: str, part: Any, owners: dict[int, str]) -> str:
    """Say if a layer has parameters that one before it has; note those that it has first."""
    for parameter in part.parameters():
        owner = owners.setdefault(parameter.data_ptr(), name)
        if owner != name:
            return f"{part}: shares its parameters with {owner}, a Network has no tied weights"
    return ""


def _read(torch: Any, part: Any) -> tuple[Layer | None, str]:
    """Return the layer (None: nothing), or why there is none."""
    nn, refused = torch.nn, ""
    # Exactly these classes: what inherits from them may do other things.
    kind: Any = type(part)  # pyright: ignore[reportUnknownVariableType]
    if kind is nn.Identity:
        return None, ""
    if kind is nn.ReLU:
        return ReLU(), ""
    if kind is nn.LeakyReLU:
        return LeakyReLU(part.negative_slope), ""
    if kind is nn.GELU:
        return GELU(), "" if part.approximate == "none" else f"{part}: must have no approximation"
    if kind is nn.Flatten:
        whole = (part.start_dim, part.end_dim) == (1, -1)
        return Flatten(), "" if whole else f"{part}: flattens other axes than all but the first"
    if kind in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d):
        whole = _pair(part.output_size) == (1, 1)
        return GlobalAvgPool(), "" if whole else f"{part}: output_size must be 1"
    if kind in (nn.AvgPool1d, nn.AvgPool2d):
        size, stride, padding = _windows(part, kind is nn.AvgPool1d)
        if padding is None:
            refused = "padding of half an odd kernel, or none"
        elif not part.count_include_pad or getattr(part, "divisor_override", None):
            refused = "count_include_pad=True and no divisor_override"
        elif part.ceil_mode:
            refused = "no ceil_mode"
        if refused or padding is None:
            return None, f"{part}: must have {refused}"
        return AvgPool(size, stride, padding), ""
    if kind not in (nn.Conv1d, nn.Conv2d, nn.Linear):
        return None, str(part).partition("\n")[0]
    if isinstance(part.weight, nn.parameter.UninitializedParameter):
        return None, f"{part}: has no parameters yet, call the module once"
    trained = {p.requires_grad for p in (part.weight, part.bias) if p is not None}
    if len(trained) > 1:
        return None, f"{part}: trains weights or biases alone"
    scales = _weight_std(part) * math.sqrt(part.weight[0].numel()), _bias_std(part)
    if scales[0] == 0.0:
        return None, f"{part}: has weights that are all 0"
    if kind is nn.Linear:
        return Dense(*scales, trainable=True in trained), ""
    size, stride, padding = _windows(part, kind is nn.Conv1d)
    if any(d != 1 for d in part.dilation) or part.groups != 1:
        refused = "no dilation and no groups"
    elif padding is None or part.padding_mode != "zeros":
        refused = "zero padding of half an odd kernel, or none"
    if refused or padding is None:
        return None, f"{part}: must have {refused}"
    return Conv(size, *scales, trainable=True in trained, stride=stride, padding=padding), ""


def _windows(part: Any, series: bool) -> tuple[Pair, Pair, Literal["same", "valid"] | None]:
    """Return the size, stride and padding of a kernel, None if there is no such padding."""

    def pair(value: Any, one: int) -> tuple[int, int]:
        sizes = _pair(value)
        return (one, sizes[-1]) if series else sizes

    size, stride = pair(part.kernel_size, 1), pair(part.stride, 1)
    half = (size[0] // 2, size[1] // 2)
    words = {"same": half, "valid": (0, 0)}
    given = part.padding
    zeros = words[given] if isinstance(given, str) else pair(given, 0)
    if zeros == half and size[0] % 2 == size[1] % 2 == 1:
        return size, stride, "same"
    return size, stride, "valid" if zeros == (0, 0) else None


def _pair(value: Any) -> tuple[int, int]:
    """Return rows and columns: a layer keeps a number, or one or two of them, as it was given."""
    sizes = cast("Sequence[int]", value if isinstance(value, Sequence) else (value,))
    return sizes[0], sizes[-1]


def _local(layer: Layer) -> Layer:
    """Return the `LocalAvgPool` that a pool is if it comes last; other layers as they are."""
    if not isinstance(layer, AvgPool) or layer.padding != "same" or layer.stride != 1:
        return layer
    return LocalAvgPool(layer.size // 2) if isinstance(layer.size, int) else layer


def _weight_std(part: Any) -> float:
    return float(part.weight.detach().double().square().mean().sqrt())


def _bias_std(part: Any) -> float:
    return 0.0 if part.bias is None else float(part.bias.detach().double().square().mean().sqrt())


def _scales(name: str, part: Any, layer: Conv | Dense) -> dict[str, float]:
    return {f"{name}.weight": _weight_std(part), f"{name}.bias": layer.b_std}
