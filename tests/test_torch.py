"""Modules of PyTorch: the same networks as in NumPy, kernels within memory, and what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_finite import TINY, normal
from trees import samples, tree

import widelimit as wl
from widelimit.finite import Estimate, FiniteNetwork, building, tangent
from widelimit.layers import walk
from widelimit.network import (
    GELU,
    ABReLU,
    Abs,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    LeakyReLU,
    LocalAvgPool,
    Network,
    Polynomial,
    ReLU,
    Sin,
    Sum,
)

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

SHAPE = (4, 5, 2)
tiny = pytest.mark.parametrize("network", TINY.values(), ids=TINY)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(network: Network, width: int = 6, seed: int = 3, **options: Any) -> Any:
    return wl.finite.build(network, width, seed, **{"dtype": "float64"} | options)


def outputs(module: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    some = next(module.parameters())
    with torch.no_grad():
        return module(torch.from_numpy(np.array(x)).to(some.dtype)).numpy()


# ------------------------------------------------------------- the network that NumPy has, too


@tiny
def test_the_same_network_as_in_numpy(network: Network) -> None:
    x, z = normal(3, *SHAPE), normal(2, *SHAPE, seed=1)
    finite, module = FiniteNetwork.sample(network, SHAPE, 6, 3), build(network)
    np.testing.assert_allclose(outputs(module, x)[:, 0], finite.forward(x), rtol=1e-10)
    for sides in ((x,), (x, z)):
        for name in ("empirical_ntk", "empirical_nngp"):
            found, expected = (
                getattr(wl.finite, name)(module, *sides),
                getattr(finite, name)(*sides),
            )
            np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=name)
            if len(sides) == 1:
                np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("series", [False, True])
def test_random_trees_are_the_same_as_in_numpy(series: bool) -> None:
    for seed in range(4 if series else 10):
        network, shape = tree(seed, series=series)
        check_tree(network, shape, seed)


def check_tree(network: Network, shape: tuple[int, ...], seed: int) -> None:
    x = samples(shape, 3, seed)
    finite = FiniteNetwork.sample(network, shape, 4, seed)
    module = build(network, 4, seed)
    pairs = [(outputs(module, x)[:, 0], finite.forward(x))]
    pairs.append((wl.finite.empirical_nngp(module, x), finite.empirical_nngp(x)))
    if any(p.requires_grad for p in module.parameters()):
        pairs.append((products_of_gradients(module, x), finite.empirical_ntk(x)))
    for found, expected in pairs:
        size = np.abs(expected).max()
        np.testing.assert_allclose(
            found, expected, rtol=1e-10, atol=1e-10 * size, err_msg=str(network)
        )


def products_of_gradients(module: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    trained = [p for p in module.parameters() if p.requires_grad]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(output, trained, retain_graph=True)])
        for output in module(torch.from_numpy(x))[:, 0]
    ]
    return (torch.stack(rows) @ torch.stack(rows).T).numpy()


@tiny
def test_layers_add_up_and_frozen_ones_add_nothing(network: Network) -> None:
    x = normal(3, *SHAPE)
    module = build(network)
    parts = wl.finite.empirical_ntk(module, x, per_layer=True)
    trained = [
        f"scaled.{i}"
        for i, layer in enumerate(walk(network.layers))
        if isinstance(layer, Conv | Dense) and layer.trainable
    ]
    assert list(parts) == trained
    np.testing.assert_allclose(
        sum(parts.values()), wl.finite.empirical_ntk(module, x), rtol=1e-12, atol=0
    )
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (name.rpartition(".")[0] in trained)


def test_a_series_is_an_image_of_one_row() -> None:
    network, x = wl.cnn_1d(2, 3, Erf()), normal(3, 7, 2)
    finite = FiniteNetwork.sample(network, (7, 2), 6, 3)
    of_images = FiniteNetwork.sample(network, (1, 7, 2), 6, 3)
    np.testing.assert_array_equal(finite.empirical_ntk(x), of_images.empirical_ntk(x[:, None]))
    first = build(network, channels="first", input_shape=(2, 7))
    for module, series in (
        (build(network), x),
        (build(network), x[:, None]),
        (first, x.transpose(0, 2, 1)),
    ):
        np.testing.assert_allclose(outputs(module, series)[:, 0], finite.forward(x), rtol=1e-10)
        found = wl.finite.empirical_ntk(module, series)
        np.testing.assert_allclose(found, finite.empirical_ntk(x), rtol=1e-10)
    found = wl.finite.compare(first, x.transpose(0, 2, 1), draws=2)
    np.testing.assert_allclose(found.exact, wl.kernel(network, x, dtype="float64"), rtol=1e-12)


@pytest.mark.parametrize("layer", [LayerNorm(0.0), LayerNorm(), Gaussian()], ids=repr)
def test_black_pixels_are_no_division_by_zero(layer: Any) -> None:
    network = Network([Conv(3), layer, Conv(3), ReLU(), Flatten(), Dense()])
    x = normal(3, *SHAPE)
    x[0] = 0.0
    x[1, :3] = 0.0
    finite, module = FiniteNetwork.sample(network, SHAPE, 6, 3), build(network)
    np.testing.assert_allclose(outputs(module, x)[:, 0], finite.forward(x), rtol=1e-10)
    found, expected = wl.finite.empirical_ntk(module, x), finite.empirical_ntk(x)
    assert not expected[0].any()
    assert expected[1, 1] > 0
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("channels", ["first", "last"])
def test_channels(channels: str) -> None:
    x = normal(3, *SHAPE)
    given = x.transpose(0, 3, 1, 2) if channels == "first" else x
    for name in ("vanilla", "lap", "flat first"):
        module = build(TINY[name], channels=channels, input_shape=given.shape[1:])
        expected = FiniteNetwork.sample(TINY[name], SHAPE, 6, 3).forward(x)
        np.testing.assert_allclose(outputs(module, given)[:, 0], expected, rtol=1e-10)
    module = build(wl.cntk_gap(3))
    with pytest.raises(ValueError, match=r'two ways.*write build\(..., channels="first"\)'):
        outputs(module, normal(1, 3, 8, 8))
    outputs(build(wl.cntk_gap(3), channels="first"), normal(1, 3, 8, 8))


def test_parameters_are_standard_normal_and_drawn_once() -> None:
    early = build(wl.cntk_vanilla(4), 40, input_shape=SHAPE)
    late = build(wl.cntk_vanilla(4), 40)
    assert late.input_shape is None
    optimiser = torch.optim.SGD(late.parameters(), 0.1)  # holds what will be drawn
    x = normal(2, *SHAPE)
    np.testing.assert_array_equal(outputs(late, x), outputs(early, x))
    for a, b in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(a, b)
        assert abs(float(a.detach().double().std()) - 1) < 5 / np.sqrt(2 * a.numel())
        assert any(b is p for p in optimiser.param_groups[0]["params"])
    assert late.input_shape == SHAPE
    assert not np.array_equal(outputs(build(wl.cntk_vanilla(4), 40, seed=4), x), outputs(early, x))
    single = build(wl.cntk_vanilla(4), 40, dtype="float32")
    np.testing.assert_allclose(outputs(single, x), outputs(early, x), rtol=1e-4)
    assert next(single.parameters()).dtype == torch.float32


def test_kappa_scales_outputs_and_the_copy_is_subtracted() -> None:
    network, x = TINY["lap"], normal(3, *SHAPE)
    plain, scaled = build(network), build(network, kappa=0.05)
    np.testing.assert_allclose(outputs(scaled, x), 0.05 * outputs(plain, x), rtol=1e-12)
    zero = build(network, kappa=0.05, zero_at_start=True)
    assert not outputs(zero, x).any()
    k, nngp = wl.finite.empirical_ntk(plain, x), wl.finite.empirical_nngp(plain, x)
    for module in (scaled, zero):
        np.testing.assert_allclose(wl.finite.empirical_ntk(module, x), 0.05**2 * k, rtol=1e-10)
        np.testing.assert_allclose(wl.finite.empirical_nngp(module, x), 0.05**2 * nngp, rtol=1e-10)
    # After a step the output is what the step has changed; the copy, a buffer, has not moved.
    before = outputs(plain, x)
    with torch.no_grad():
        for module in (plain, zero):
            for parameter in module.parameters():
                parameter += 0.1 * parameter.requires_grad
    np.testing.assert_allclose(outputs(zero, x), 0.05 * (outputs(plain, x) - before), rtol=1e-9)
    again = build(network, kappa=0.05, zero_at_start=True, input_shape=SHAPE, seed=9)
    again.load_state_dict(zero.state_dict())
    np.testing.assert_array_equal(outputs(again, x), outputs(zero, x))


def test_several_outputs_have_the_mean_of_their_kernels() -> None:
    x = normal(3, *SHAPE)
    module = build(TINY["gap"], outputs=3, input_shape=SHAPE)
    assert outputs(module, x).shape == (3, 3)
    kernels = []
    for o in range(3):
        one = nn.Sequential(module, Take(o))
        kernels.append(wl.finite.empirical_ntk(one, x))
    np.testing.assert_allclose(
        wl.finite.empirical_ntk(module, x), np.mean(kernels, axis=0), rtol=1e-10
    )


class Take(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Any) -> Any:
        return x[:, self.place]


# --------------------------------------------------------------------- the limit is the exact one

UNBIASED = Network([Conv(3, 1.2, 0.4), ReLU(), LocalAvgPool(1), Dense(0.9, 0.6, trainable=False)])


def test_mean_over_networks_is_the_exact_kernel() -> None:
    # One hidden layer: the mean over draws is the limit at any width, so that no bias is left.
    x = normal(3, *SHAPE)
    exact = wl.kernel(UNBIASED, x, kind=("nngp", "ntk"), dtype="float64")
    modules = [build(UNBIASED, 16, seed, input_shape=SHAPE, kappa=2.0) for seed in range(150)]
    for name, k in zip(("empirical_nngp", "empirical_ntk"), exact, strict=True):
        values = np.array([getattr(wl.finite, name)(module, x) for module in modules]) / 4
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        assert np.abs((values.mean(axis=0) - k) / error).max() < 3.0
        assert np.abs((values.mean(axis=0) - 1.25 * k) / error).max() > 5.0


# Each with one that lacks a layer or a branch, which has to be noticed.
TREES: dict[str, tuple[tuple[int, ...], list[Layer], list[Layer]]] = {
    "a pool": (
        SHAPE,
        [Conv(3), ReLU(), AvgPool(2), Conv(3), ReLU(), GlobalAvgPool(), Dense()],
        [Conv(3), ReLU(), Conv(3), ReLU(), GlobalAvgPool(), Dense()],
    ),
    "a skip": (
        SHAPE,
        [Conv(3, 1.0), Sum((), [ReLU(), Conv(3, b_std=0.2)]), GELU(), Flatten(), Dense()],
        [Conv(3, 1.0), ReLU(), Conv(3, b_std=0.2), GELU(), Flatten(), Dense()],
    ),
    "a skip across a pool": (
        SHAPE,
        [
            Conv(3),
            Sum([AvgPool(3, 2, "same")], [Abs(), Conv(3, 0.8, stride=2)]),
            LayerNorm(),
            Conv((1, 2), 1.0, padding="valid"),
            Gaussian(),
            Flatten(),
            Dense(),
        ],
        [
            Conv(3),
            AvgPool(3, 2, "same"),
            LayerNorm(),
            Conv((1, 2), 1.0, padding="valid"),
            Gaussian(),
            Flatten(),
            Dense(),
        ],
    ),
    "a frozen filter of one column": (
        SHAPE,
        [Conv((3, 1), 1.0, trainable=False), Polynomial((0.1, 0.5, 0.2)), Flatten(), Dense()],
        [Conv((3, 1), 1.0), Polynomial((0.1, 0.5, 0.2)), Flatten(), Dense()],
    ),
    "a head": (
        SHAPE,
        [Conv(3), AvgPool(3, 1, "same"), LeakyReLU(0.3), GlobalAvgPool(), Dense(), Erf(), Dense()],
        [Conv(3), LeakyReLU(0.3), GlobalAvgPool(), Dense(), Erf(), Dense()],
    ),
    "a series": (
        (9, 2),
        [
            Conv((1, 3)),
            Sin(),
            AvgPool((1, 2)),
            Conv((1, 3), stride=(1, 2)),
            Sum((), [Cos(), Conv((1, 3))]),
            ABReLU(-0.3, 1.2),
            GlobalAvgPool(),
            Dense(),
        ],
        [
            Conv((1, 3)),
            Sin(),
            AvgPool((1, 2)),
            Conv((1, 3), stride=(1, 2)),
            ABReLU(-0.3, 1.2),
            GlobalAvgPool(),
            Dense(),
        ],
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_mean_over_trees_is_the_exact_kernel(name: str) -> None:
    shape, layers, lacking = TREES[name]
    x, widths, kinds = normal(3, *shape), (32, 96), ("nngp", "ntk")
    values = np.empty((2, 2, 40, 3, 3))
    for i, width in enumerate(widths):
        for draw in range(40):
            module = build(Network(layers), width, [width, draw], input_shape=shape)
            values[0, i, draw] = wl.finite.empirical_nngp(module, x)
            values[1, i, draw] = products_of_gradients(module, x)
    np.testing.assert_allclose(wl.finite.empirical_ntk(module, x), values[1, 1, 39], rtol=1e-10)
    right, wrong = (
        wl.kernel(Network(made), x, kind=kinds, backend="reference") for made in (layers, lacking)
    )
    away = []
    for k, other, found in zip(right, wrong, values, strict=True):
        limit, error = Estimate(k, widths, found).limit
        assert np.abs((limit - k) / error).max() < 3.0
        away.append(np.abs((limit - other) / error).max())
    assert max(away) > 5.0


# ----------------------------------------------------------------------------- within the memory


@pytest.mark.parametrize("name", ["vanilla", "dense"])
def test_blocks_and_single_layers_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build(TINY[name], 8, input_shape=SHAPE)
    x, z = normal(7, *SHAPE), normal(5, *SHAPE, seed=1)
    expected = [wl.finite.empirical_ntk(module, *sides) for sides in ((x,), (x, z))]
    plans: list[Any] = []
    real = tangent._plan

    def spied(*arguments: Any) -> Any:
        plans.append(real(*arguments))
        return plans[-1]

    monkeypatch.setattr(tangent, "_plan", spied)
    failures = 0
    for budget in tangent._LIBRARIES + np.geomspace(1e6, 1e3, 40):
        monkeypatch.setattr(tangent, "remaining", lambda _, budget=budget: int(budget))
        for sides, k in zip(((x,), (x, z)), expected, strict=True):
            try:
                found = wl.finite.empirical_ntk(module, *sides)
            except MemoryError:
                failures += 1
                continue
            assert not failures  # less is not enough where more was not
            np.testing.assert_allclose(found, k, rtol=1e-10)
            if len(sides) == 1:
                np.testing.assert_array_equal(found, found.T)
    seen = {(len(plan.groups), plan.block) for plan in plans}
    assert failures > 0
    message = r"two samples by the parameters of scaled.\d take .* GB are left: give more memory"
    with pytest.raises(MemoryError, match=message):
        wl.finite.empirical_ntk(module, x)
    layers = len(module.scaled)
    assert {(1, 7), (layers, 7), (layers, 1)} <= seen
    assert any(1 < block < 5 for _, block in seen)


PEAK = """
import json, sys
import numpy as np, torch
import widelimit as wl
from widelimit.machine import held_memory, peak_memory
torch.set_num_threads(1)
module = wl.finite.build(wl.ntk_dense(2), 1000, input_shape=(64,))
x = np.random.default_rng(0).standard_normal((24, 64))
wl.finite.empirical_ntk(module, x[:1])  # what libraries take when they are first used
before = held_memory()
budget = before + int(sys.argv[1])
wl.finite.empirical_ntk(module, x, memory=budget)
print(json.dumps([before, budget, peak_memory()]))
"""


def test_memory_is_a_promise() -> None:
    # All gradients have 24 * 1.1 million entries: 102 MB, and the work takes as much.
    room = 80_000_000
    command = [sys.executable, "-c", PEAK, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    before, budget, peak = json.loads(done.stdout)
    assert peak <= budget
    assert peak > before + room / 4  # and it is made use of


# ---------------------------------------------------------------------------------- from modules


def convolutional(width: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(width, width, 5, padding="same", bias=False), nn.ReLU()),
        nn.Identity(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def strided(width: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, width, (3, 1), stride=(2, 1), padding=(1, 0)),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2, 1),
        nn.Conv2d(width, width, (1, 2)),
        nn.GELU(),
        nn.AvgPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def of_series(width: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, width, 3, padding="same"),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(width, width, 2, stride=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def test_layers_between_a_global_pool_and_its_flatten() -> None:
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.ReLU()]
    module = nn.Sequential(*parts, nn.Flatten(), nn.Linear(8, 1))
    assert str(wl.finite.from_torch(module)) == "Conv(3) GlobalAvgPool ReLU Dense"


def test_filters_of_one_step_are_compared_on_series() -> None:
    layers = [nn.Conv1d(3, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(64, 1))
    x = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(0))
    found = wl.finite.compare(module, x, draws=2)
    expected = wl.kernel(found.network, np.moveaxis(x.numpy(), 1, -1)[:, None], dtype="float64")
    np.testing.assert_allclose(found.exact, expected)


def test_strides_and_pools_become_layers() -> None:
    assert wl.finite.from_torch(strided()).layers[1:-1] == (
        LeakyReLU(0.2),
        AvgPool(2, 1),
        Conv((1, 2), *scales_of(strided()[3]), padding="valid"),
        GELU(),
        AvgPool(3, 2, "same"),
        Flatten(),
    )
    assert str(wl.finite.from_torch(strided())).startswith("Conv((3, 1), stride=(2, 1)) ABReLU")
    text = "Conv((1, 3)) ReLU AvgPool((1, 2)) Conv((1, 2), stride=(1, 2), valid) ReLU GlobalAvgPool"
    assert str(wl.finite.from_torch(of_series())) == f"{text} Dense"
    # beside the readout a mean around each pixel is a LocalAvgPool, before it no readout is left
    inside = [nn.Conv2d(2, 3, 1), nn.AvgPool2d(3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 1)]
    text = "Conv(1) AvgPool(3, stride=1, padding='same') ReLU Flatten Dense"
    assert str(wl.finite.from_torch(nn.Sequential(*inside))) == text


def scales_of(part: Any) -> tuple[float, float]:
    weight, bias = (p.detach().double() for p in (part.weight, part.bias))
    return (
        float((weight.square().mean() * weight[0].numel()).sqrt()),
        float(bias.square().mean().sqrt()),
    )


def test_a_sequential_becomes_a_network() -> None:
    module = convolutional(40)
    network = wl.finite.from_torch(module)
    assert str(network) == "Conv(3) ReLU Conv(5) ReLU GlobalAvgPool Dense"
    assert network.scaling == "fan_in"
    for layer in (network.layers[0], network.layers[2], network.layers[-1]):
        assert isinstance(layer, Conv | Dense)
        # PyTorch draws from U(-1, 1) / sqrt(fan-in): variance 1/3.
        assert layer.w_std == pytest.approx(3**-0.5, rel=0.05)
        assert layer.trainable
    assert [getattr(x, "b_std", 0) > 0 for x in network.layers] == [True, *[False] * 4, True]
    module[0].requires_grad_(False)
    assert wl.finite.from_torch(module).layers[0].trainable is False

    pooled = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Flatten(), nn.Linear(60, 4),
        nn.ReLU(), nn.Linear(4, 1),
    )  # fmt: skip
    expected = "Conv(1) ReLU LocalAvgPool(1) Flatten Dense ReLU Dense"
    assert str(wl.finite.from_torch(pooled)) == expected
    rows = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    assert str(wl.finite.from_torch(rows)) == "Dense ReLU Dense"
    built = build(TINY["lap"], input_shape=SHAPE)
    assert wl.finite.from_torch(built) == TINY["lap"]


@pytest.mark.parametrize(
    ("module", "shape"),
    [(convolutional(), (2, 4, 5)), (strided(), (2, 4, 3)), (of_series(), (2, 9))],
    ids=["convolutional", "strided", "series"],
)
def test_the_network_computes_what_the_module_computes(module: Any, shape: tuple[int, ...]) -> None:
    # Parameters of the module over their scales, put into a network that is built.
    module = copy.deepcopy(module).double()
    network, scales = building.read_layers(module)
    twin = build(network, 8, outputs=3, channels="first", input_shape=shape)
    own = {name: p.detach() / scales[name] for name, p in module.named_parameters()}
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in own))
    names = dict(zip(owners, (f"scaled.{key}" for key in twin.scaled), strict=True))
    renamed = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": p for n, p in own.items()}
    sizes = {name: p.shape for name, p in twin.state_dict().items()}
    twin.load_state_dict({name: p.reshape(sizes[name]) for name, p in renamed.items()})
    x = normal(3, *shape)
    np.testing.assert_allclose(outputs(twin, x), outputs(module, x), rtol=1e-10)
    np.testing.assert_allclose(
        wl.finite.empirical_nngp(module, x), wl.finite.empirical_nngp(twin, x), rtol=1e-10
    )
    # and so its tangent kernel in the NTK parametrisation is that of the module with scales
    parts = tangent.tangent_by_layer(module, x, scales=scales)
    of_twin = wl.finite.empirical_ntk(twin, x, per_layer=True)
    for name, k in parts.items():
        np.testing.assert_allclose(k, of_twin[names[name]], rtol=1e-9)


REFUSED = {
    "padding": (nn.Conv2d(2, 4, 3, padding=2), r"0: Conv2d\(.*half an odd kernel, or none"),
    "one side": (nn.Conv2d(2, 4, 3, padding=(1, 0)), "zero padding of half an odd kernel"),
    "reflect": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), "must have zero padding"),
    "even": (nn.Conv2d(2, 4, 2, padding="same"), "half an odd kernel"),
    "dilation": (nn.Conv1d(2, 4, 3, padding="same", dilation=2), "no dilation and no groups"),
    "groups": (nn.Conv2d(2, 4, 3, padding=1, groups=2), "no dilation and no groups"),
    "lazy": (nn.LazyConv2d(4, 3), "LazyConv2d"),
    "batch": (nn.BatchNorm2d(2), r"0: BatchNorm2d\(2"),
    "pool": (nn.AvgPool2d(2, padding=1), "half an odd kernel, or none"),
    "ceil": (nn.AvgPool1d(2, ceil_mode=True), "no ceil_mode"),
    "border": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "count_include_pad=True"),
    "max": (nn.MaxPool2d(2), "0: MaxPool2d"),
    "gelu": (nn.GELU(approximate="tanh"), "0: GELU.*no approximation"),
    "tanh": (nn.Tanh(), "0: Tanh"),
    "adaptive": (nn.AdaptiveAvgPool2d(2), "output_size must be 1"),
    "flatten": (nn.Flatten(2), "other axes"),
    "order": (nn.ReLU(), r"layers\[0\] is ReLU\(\) at the beginning"),
    "no flatten": (nn.AdaptiveAvgPool2d(1), r"1 = Linear.* follows AdaptiveAvgPool2d\(1\)"),
}


@pytest.mark.parametrize(("part", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_counterpart_is_named(part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be read as a Network.*{message}"):
        wl.finite.from_torch(nn.Sequential(part, nn.Linear(4, 1)))


def test_all_layers_without_a_counterpart_are_named_at_once() -> None:
    module = nn.Sequential(nn.Sequential(nn.SiLU(), nn.MaxPool2d(2)), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"0\.0: SiLU.*; 0\.1: MaxPool2d.*; 1: Tanh\(\)$"):
        wl.finite.from_torch(module)
    half = nn.Linear(4, 1)
    half.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="trains weights or biases alone"):
        wl.finite.from_torch(nn.Sequential(half))
    zero = nn.Linear(4, 1)
    nn.init.zeros_(zero.weight)
    with pytest.raises(ValueError, match="weights that are all 0"):
        wl.finite.from_torch(nn.Sequential(zero))
    with pytest.raises(TypeError, match=r"must be a torch.nn.Sequential.*got Linear"):
        wl.finite.from_torch(half)


def test_one_object_may_stand_in_several_places() -> None:
    relu = nn.ReLU()
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), relu, nn.Conv2d(4, 4, 3, padding=1), relu, nn.Flatten(),
        nn.Linear(80, 4), relu, nn.Linear(4, 1),
    )  # fmt: skip
    text = "Conv(3) ReLU Conv(3) ReLU Flatten Dense ReLU Dense"
    assert str(wl.finite.from_torch(module)) == text
    block = nn.Sequential(relu)
    module = nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 4), block, nn.Linear(4, 1))
    assert str(wl.finite.from_torch(module)) == "Dense ReLU Dense ReLU Dense"


def test_weights_that_are_shared_are_refused() -> None:
    linear, twin, other = (nn.Linear(4, 4) for _ in range(3))
    twin.weight = linear.weight
    transposed = nn.Linear(4, 4, bias=False)
    transposed.weight = nn.Parameter(linear.weight.detach().T)
    other.bias = linear.bias
    for tied in (linear, twin, transposed, other):
        module = nn.Sequential(linear, nn.ReLU(), tied, nn.ReLU(), nn.Linear(4, 1))
        with pytest.raises(ValueError, match=r"counterpart yet: 2: Linear.* shares its .* with 0,"):
            wl.finite.from_torch(module)


class Tripled(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return 3 * super().forward(x)


def test_what_computes_something_else_than_its_class_is_refused() -> None:
    def made() -> Any:
        return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 1))

    with pytest.raises(TypeError, match=r"got Tripled: write .* which Sequential\(\*module\) is"):
        wl.finite.from_torch(Tripled(*made()))
    with pytest.raises(ValueError, match="counterpart yet: 0: Tripled"):
        wl.finite.from_torch(nn.Sequential(Tripled(nn.Linear(4, 4)), nn.Linear(4, 1)))
    own = build(wl.ntk_dense(1), input_shape=(4,))
    own.__class__ = type("Subtracted", (type(own),), {"forward": lambda _, x: x - 1})
    with pytest.raises(TypeError, match=r"got Subtracted: write .* of its layers$"):
        wl.finite.from_torch(own)
    modules = made(), build(wl.ntk_dense(1), input_shape=(4,))
    for module in modules:
        for name, part in module.named_modules():
            hooks = part.register_forward_hook, part.register_forward_pre_hook
            for hook in (*hooks, part.register_full_backward_hook):
                handle = hook(lambda *_: None)
                with pytest.raises(ValueError, match=f"yet: {name or 'module'}: .* no hooks"):
                    wl.finite.from_torch(module)
                handle.remove()
        wl.finite.from_torch(module)
        module.forward = lambda x: x
        with pytest.raises(ValueError, match=r"module: .* must have no forward of its own"):
            wl.finite.compare(module, normal(2, 4))


def test_layers_of_series_and_of_images_do_not_mix() -> None:
    # of (n, c, length) the mean would be taken over channels, too
    module = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1)
    )
    with pytest.raises(ValueError, match=r"or for images, got 0 = Conv1d.* and 2 = Adaptive"):
        wl.finite.from_torch(module)


def test_sizes_may_be_lists() -> None:
    expected = from_pool(nn.AvgPool2d((2, 2)), nn.AdaptiveAvgPool2d((1, 1)))
    for size in (2, [2, 2], [2], (2,)):
        pool = nn.AvgPool2d(size, size, [0, 0])
        assert from_pool(pool, nn.AdaptiveAvgPool2d([1, 1])) == expected
    assert from_pool(nn.AvgPool2d([3, 1], [1, 1], [1, 0]), nn.AdaptiveAvgPool2d(1))[1] == AvgPool(
        (3, 1), 1, "same"
    )


def from_pool(pool: Any, last: Any) -> Any:
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(2, 4, 3), nn.Linear(4, 1)
    module = nn.Sequential(convolution, pool, last, nn.Flatten(), linear)
    return wl.finite.from_torch(module).layers


# ------------------------------------------------------------------------------- how far it is


def test_compare_with_the_limit() -> None:
    x = normal(4, 12)
    distances: dict[int, float] = {}
    for width in (32, 512):
        torch.manual_seed(1)
        module = nn.Sequential(
            nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        found = wl.finite.compare(module, x, draws=40)
        assert found.network == wl.finite.from_torch(module)
        assert found.width == width
        np.testing.assert_allclose(
            found.exact, wl.kernel(found.network, x, dtype="float64"), rtol=1e-12
        )
        distances[width] = found.expected
        assert found.distance < 3 * found.expected  # one of the kind that fresh ones are
        assert found.width_for(found.expected) == width
        assert found.width_for(0.01) == pytest.approx(100 * found.width_for(0.1), abs=100)
    # sixteen times as wide: a quarter of the distance
    assert distances[32] / distances[512] == pytest.approx(4, rel=0.35)
    text = str(found)
    assert "Dense ReLU Dense ReLU Dense, width 512" in text
    assert f"for 1 %: {found.width_for(0.01):,}" in text


def test_compare_takes_what_was_built() -> None:
    x = normal(3, *SHAPE)
    module = build(wl.cntk_gap(3), 256, kappa=0.05, zero_at_start=True)
    found = wl.finite.compare(module, x, draws=4)
    np.testing.assert_allclose(found.exact, 0.05**2 * wl.kernel(wl.cntk_gap(3), x), rtol=1e-4)
    np.testing.assert_allclose(found.empirical, wl.finite.empirical_ntk(module, x), rtol=1e-10)
    assert found.width == 256
    assert found.distance < 0.5
    before = [p.detach().clone() for p in module.parameters()]
    wl.finite.compare(module, x, draws=2)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"width": 2.0}, TypeError, "width must be an integer"),
        ({"network": "cntk-gap-3"}, TypeError, "network must be a Network, got 'cntk-gap-3'"),
        ({"outputs": 0}, ValueError, "outputs must be an integer and at least 1, got 0"),
        ({"kappa": 0.0}, ValueError, "kappa must be a number above 0, got 0.0"),
        ({"kappa": float("nan")}, ValueError, "kappa must be a number above 0"),
        ({"channels": "middle"}, ValueError, "channels must be"),
        ({"dtype": "float16"}, ValueError, 'dtype must be "float32" or "float64"'),
        ({"input_shape": (4,)}, ValueError, "input_shape of .* must be"),
    ],
)
def test_arguments_of_build(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        wl.finite.build(**{"network": wl.cntk_gap(3), "width": 4} | options)


def test_inputs_are_checked() -> None:
    module = build(wl.cntk_gap(3), input_shape=SHAPE)
    ntk, x = wl.finite.empirical_ntk, normal(2, *SHAPE)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 4, 5, 2\), got \(2, 4, 5, 3\)"):
        ntk(module, normal(2, 4, 5, 3))
    with pytest.raises(ValueError, match="inputs of one shape"):
        ntk(module, x, normal(2, 4, 6, 2))
    with pytest.raises(ValueError, match="x2 must be finite"):
        ntk(module, x, np.nan * x)
    with pytest.raises(TypeError, match="x1 must hold real numbers, got complex128"):
        ntk(module, 1j * x)
    with pytest.raises(ValueError, match="x1 must hold samples"):
        ntk(module, x[:0])
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got Network: build"):
        ntk(wl.cntk_gap(3), x)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters that require gradients, got none"):
        ntk(module, x)
    with pytest.raises(ValueError, match=r"map \(n, ...\) to \(n, k\)"):
        ntk(nn.Sequential(nn.Conv2d(2, 3, 1)), normal(2, 2, 3, 3))
    mixing = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"training mode, where 1 = BatchNorm1d.*module.eval\(\)"):
        ntk(mixing, normal(3, 3))
    ntk(mixing.eval(), normal(3, 3))  # any module will do
    slopes = nn.Sequential(nn.Linear(3, 4), nn.RReLU(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"training mode, where 1 = RReLU.*module.eval\(\)"):
        ntk(slopes, normal(3, 3))
    with pytest.raises(ValueError, match="draws must be at least 2, got 1"):
        wl.finite.compare(build(wl.ntk_dense(1)), normal(2, 3), draws=1)
    with pytest.raises(ValueError, match="must have a hidden layer"):
        wl.finite.compare(nn.Sequential(nn.Linear(3, 1)), normal(2, 3))


class Mixing(nn.Module):
    """A module that takes something of all samples together from each."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.first, self.last, self.mix = nn.Linear(3, 4), nn.Linear(4, 2), mix

    def forward(self, x: Any) -> Any:
        return self.last(self.mix(self.first(x))).softmax(-1)


def test_what_mixes_samples_is_refused() -> None:
    x = normal(5, 2, 3, 3)
    for kind in (nn.BatchNorm2d, nn.SyncBatchNorm):
        norm = kind(2, track_running_stats=False)
        module = nn.Sequential(norm, nn.Flatten(), nn.Linear(18, 1)).eval()
        for given in (x, x[:1]):
            with pytest.raises(ValueError, match=r"0 = .*BatchNorm.* in eval mode, too: .*=True"):
                wl.finite.empirical_ntk(module, given)
    rows = normal(4, 3)
    mixes = (
        lambda h: h - h.mean(0),
        lambda h: functional.batch_norm(h, None, None, training=True),
        lambda h: h.cumsum(0).flip(0),
    )
    for mix in mixes:
        for sides in ((rows,), (rows[:1], rows)):
            with pytest.raises(ValueError, match=r"one by one, got .* changes with those beside"):
                wl.finite.empirical_ntk(Mixing(mix), *sides)
    # what stays within a sample may write over its input, and return nothing that depends on it
    for alone in (lambda h: h - h.mean(1, keepdim=True), lambda h: h.relu_(), torch.zeros_like):
        wl.finite.empirical_ntk(Mixing(alone), rows)
    inplace = nn.Sequential(nn.ReLU(inplace=True), nn.InstanceNorm2d(2), nn.Flatten())
    wl.finite.empirical_ntk(nn.Sequential(inplace, nn.Linear(18, 2)), x)


def test_tensors_of_any_kind_are_taken() -> None:
    module = build(wl.ntk_dense(1), input_shape=(3,))
    x = normal(2, 3)
    expected = wl.finite.empirical_ntk(module, x)
    for like in (torch.from_numpy(x), torch.from_numpy(x).requires_grad_(True), x.tolist()):
        np.testing.assert_array_equal(wl.finite.empirical_ntk(module, like), expected)


def test_flat_layers_of_an_image_read_as_everywhere() -> None:
    network = Network([Flatten(), Dense(), ReLU(), Dense()])
    x = normal(2, *SHAPE)
    found = outputs(build(network), x)
    np.testing.assert_allclose(found, outputs(build(network), x.reshape(2, -1)), rtol=1e-12)


def test_global_pool_of_the_input() -> None:
    network = Network([GlobalAvgPool(), Dense(), ReLU(), Dense()])
    x = normal(2, *SHAPE)
    expected = FiniteNetwork.sample(network, SHAPE, 6, 3).forward(x)
    np.testing.assert_allclose(outputs(build(network), x)[:, 0], expected, rtol=1e-10)
