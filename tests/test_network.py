"""Network: every refusal, value semantics, JSON and fingerprint, shapes."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widelimit import network as module
from widelimit.network import (
    GELU,
    MAX_LAYERS,
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
    Identity,
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

# ---------------------------------------------------------------- valid networks, by hypothesis

W_STDS = st.floats(1e-100, 1e100)
B_STDS = st.floats(0.0, 1e100)
CONVS = st.builds(
    Conv, st.integers(0, 4999).map(lambda r: 2 * r + 1), W_STDS, B_STDS, st.booleans()
)
DENSES = st.builds(Dense, W_STDS, B_STDS, st.booleans())
READOUTS = st.one_of(
    st.just([Flatten()]),
    st.just([GlobalAvgPool()]),
    st.integers(0, 9999).map(lambda c: [LocalAvgPool(c)]),
    st.integers(0, 9999).map(lambda c: [LocalAvgPool(c), Flatten()]),
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    layers: list[Layer] = []
    for conv in draw(st.lists(CONVS, max_size=4)):
        layers += [conv, ReLU()] if draw(st.booleans()) else [conv]
    if layers or draw(st.booleans()):
        layers += draw(READOUTS)
    layers.append(draw(DENSES))
    for dense in draw(st.lists(DENSES, max_size=3)):
        layers += [ReLU(), dense] if draw(st.booleans()) else [dense]
    return Network(layers, draw(st.sampled_from(["fan_in", "paper"])))


# ---------------------------------------------------------------- the order of layers

LETTERS: dict[str, Layer] = {
    "c": Conv(3),
    "r": ReLU(),
    "f": Flatten(),
    "g": GlobalAvgPool(),
    "l": LocalAvgPool(1),
    "d": Dense(),
}
GRAMMAR = re.compile(r"(cr?)*(f|g|lf?)d(r?d)*|(cr?)*cgrd(r?d)*|d(r?d)*")


def spell(word: str) -> list[Layer]:
    return [LETTERS[letter] for letter in word]


def accepted(word: str) -> bool:
    try:
        Network(spell(word))
    except ValueError:
        return False
    return True


def test_exactly_the_grammar_is_accepted() -> None:
    words = ["".join(w) for n in range(7) for w in itertools.product(LETTERS, repeat=n)]
    expected = {word for word in words if GRAMMAR.fullmatch(word)}
    assert {word for word in words if accepted(word)} == expected
    assert 100 < len(expected) < len(words) / 100


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", r"layers must end with Dense\(\), got no layers: append Dense\(\)$"),
        ("rd", r"layers\[0\] is ReLU\(\) at the beginning.* must directly follow a Conv or Dense"),
        ("crrgd", r"layers\[2\] is ReLU\(\) after ReLU.*go on with Conv or Flatten or Global"),
        ("drrd", r"layers\[2\] is ReLU\(\) after ReLU, where the network can go on with Dense or"),
        ("crgrd", r"layers\[3\] is ReLU\(\) after GlobalAvgPool.* must be Gaussian"),
        ("grd", r"layers\[1\] is ReLU\(\) after GlobalAvgPool.* must be Gaussian"),
        ("cfrd", r"layers\[2\] is ReLU\(\) after Flatten.*go on with Dense or"),
        ("clrd", r"layers\[2\] is ReLU\(\) after LocalAvgPool.*go on with Flatten or Dense:"),
        ("cfgd", r"layers\[2\] is GlobalAvgPool\(\) after Flatten.* there must be one readout"),
        ("cggd", r"layers\[2\] is GlobalAvgPool\(\) after GlobalAvgPool.* one readout"),
        ("clgd", r"layers\[2\] is GlobalAvgPool\(\) after LocalAvgPool.* one readout"),
        ("clld", r"layers\[2\] is LocalAvgPool\(1\) after LocalAvgPool.* one readout"),
        ("clffd", r"layers\[3\] is Flatten\(\) after Flatten.* one readout"),
        ("df", r"layers\[1\] is Flatten\(\) after Dense.* before every Dense"),
        ("cfcd", r"layers\[2\] is Conv\(3\) after Flatten.* must come before the readout"),
        ("cgcd", r"layers\[2\] is Conv\(3\) after GlobalAvgPool.* must come before the readout"),
        ("clcd", r"layers\[2\] is Conv\(3\) after LocalAvgPool.* must come before the readout"),
        ("dcgd", r"layers\[1\] is Conv\(3\) after Dense.* must come before .*every Dense"),
        ("cd", r"layers\[1\] is Dense\(\) after Conv.* a readout must come between"),
        ("crd", r"layers\[2\] is Dense\(\) after ReLU.*Flatten or GlobalAvgPool or Local.*between"),
        ("cg", r"end with Dense\(\), got layers\[1\] = GlobalAvgPool\(\): append Dense\(\)$"),
        ("cl", r"end with Dense\(\), got layers\[1\] = LocalAvgPool\(1\): append Dense\(\)$"),
        ("cr", r"end with Dense\(\), got layers\[1\] = ReLU\(\): append a readout, then Dense"),
        ("c", r"end with Dense\(\), got layers\[0\] = Conv\(3\): append a readout, then Dense"),
        ("dr", r"end with Dense\(\), got layers\[1\] = ReLU\(\): append Dense\(\)$"),
    ],
)
def test_wrong_order_is_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(spell(word))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ReLU, r"layers\[1\] must be a layer, got <class .*ReLU'>: write ReLU\(\)$"),
        (Conv, r"layers\[1\] must be a layer, got <class .*Conv'>: write Conv\(filter_size\)$"),
        (LocalAvgPool, r"write LocalAvgPool\(half_width\)$"),
        (
            "ReLU",
            r"got 'ReLU': use Conv, ReLU, Flatten, GlobalAvgPool, LocalAvgPool, Dense, AvgPool",
        ),
        (None, r"layers\[1\] must be a layer, got None"),
        (int, r"got <class 'int'>: use Conv, ReLU"),
        ([ReLU()], r"layers\[1\] must be a layer, got \[ReLU\(\)\]"),
        (Network([Dense()]), r"layers\[1\] must be a layer, got Network\(\[Dense\(\)\]\)"),
    ],
)
def test_entry_that_is_no_layer_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Network([Conv(3), entry, GlobalAvgPool(), Dense()])


def test_subclass_of_a_layer_is_refused() -> None:
    # JSON could not tell it from its base.
    impostor: Any = type("Dense", (Dense,), {})()
    with pytest.raises(TypeError, match=r"layers\[0\] must be a layer"):
        Network([impostor])


@pytest.mark.parametrize("layers", [Dense(), "Dense", None, 3, {Dense()}, iter([Dense()])])
def test_layers_that_are_no_sequence_are_refused(layers: Any) -> None:
    with pytest.raises(TypeError, match="layers must be a list or tuple of layers, got "):
        Network(layers)


@pytest.mark.parametrize("scaling", ["ntk", "Paper", "", None, 1, ["paper"]])
def test_unknown_scaling_is_refused(scaling: Any) -> None:
    with pytest.raises(ValueError, match=r'scaling must be "fan_in" or "paper", got '):
        Network([Dense()], scaling)


# ---------------------------------------------------------------- trees

PATCHES = Conv(2, stride=2, padding="valid")
BLOCK: list[Layer] = [ReLU(), Conv(3), Erf(), Conv(3)]


@pytest.mark.parametrize(
    "layers",
    [
        [Conv(3), Sum((), BLOCK), GELU(), GlobalAvgPool(), Dense()],
        [Conv(3), AvgPool(2), ReLU(), AvgPool(3, 2, "same"), Flatten(), Dense()],
        [AvgPool(2), Conv(3), LayerNorm(), Gaussian(), LocalAvgPool(1), Dense()],
        [Sum([Conv(3)], [Conv(5)], [Conv(1)]), Sin(), GlobalAvgPool(), Dense()],
        [Conv(3), ABReLU(0.0, 2.0), Sum((), [Conv(3)]), GlobalAvgPool(), Dense()],  # not Gaussian
        [Conv(3), Sum([AvgPool(2)], [ReLU(), PATCHES]), Flatten(), Dense(), Abs(), Dense()],
        [Dense(), Sum((), [Cos(), Dense()]), LayerNorm(0.1), Polynomial([0, 1, 1]), Dense()],
        [Identity(), Conv(3, stride=2), Identity(), ReLU(), Flatten(), Dense()],
        [Conv(3), Sum((), [Sum((), BLOCK), ReLU(), Conv(1)]), ReLU(), Flatten(), Dense()],
    ],
    ids=str,
)
def test_trees_are_values(layers: list[Layer]) -> None:
    network = Network(layers)
    text = network.to_json()
    assert text.startswith('{"format":"widelimit.network/2"')
    again = Network.from_json(text)
    assert again == network
    assert hash(again) == hash(network)
    assert again.to_json() == text
    assert eval(repr(network), dict(vars(module))) == network
    assert pickle.loads(pickle.dumps(network)) == network
    assert network.output_shapes((12, 12, 3) if not network.is_dense else (7,))[-1] == (1,)
    assert network._repr_html_()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Sum((), ())], r"layers\[1\]: the branches of Sum must be uncorrelated.*\(\) and \(\)"),
        ([Sum((), [ReLU()])], r"uncorrelated.* got \(\) and ReLU: end all but one with a Conv"),
        ([Sum([Conv(3), ReLU()], [Conv(3), Abs()])], r"uncorrelated"),
        ([Sum((), [Sum((), BLOCK)])], r"uncorrelated.* got \(\) and Sum"),
        ([Sum((), BLOCK), Sum((), ())], r"layers\[2\]: the branches of Sum must be uncorrelated"),
        ([ReLU(), ReLU()], r"layers\[2\] is ReLU\(\) after ReLU.* must be Gaussian"),
        ([ReLU(), LayerNorm()], r"a LayerNorm must directly follow .* must be Gaussian"),
        ([ReLU(), Sum((), [Conv(3)]), Erf()], r"an Erf must directly follow .* must be Gaussian"),
        ([Sum((), [ReLU(), ReLU(), Conv(3)])], r"layers\[1\]\.branches\[1\]\[1\] is ReLU\(\)"),
        ([Sum((), [Conv(3, stride=2)])], r"outputs of one shape, got .* rows of"),
        ([Sum((), [Conv(3, padding="valid")])], r"outputs of one shape, got (\d+) and \d+ rows"),
        ([Sum([AvgPool((1, 2))], [Conv(1, stride=2)])], r"outputs of one shape, got .* rows"),
        ([Sum([Conv(1, stride=3)], [Conv(5, padding="valid")])], r"shape, got 3 and 3 rows of 7"),
        ([Sum((), [GlobalAvgPool(), Dense()])], r"in a branch of Sum, where pixels are not read"),
        ([Flatten(), AvgPool(2)], r"an AvgPool must come before the readout"),
        ([LocalAvgPool(1), Sum((), BLOCK)], r"a Sum must not follow LocalAvgPool"),
        ([Sum((), [Dense])], r"layers\[1\]\.branches\[1\]\[0\] must be a layer.*write Dense\(\)"),
        ([LeakyReLU], r"must be a layer.*write LeakyReLU\(slope\)"),
        ([np.ones(3)], r"layers\[1\] must be a layer, got array"),
    ],
)
def test_impossible_trees_are_refused(layers: list[Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Network([Conv(3), *layers, GlobalAvgPool(), Dense()])


def test_a_skip_of_what_was_flattened_has_another_width() -> None:
    # of a finite network H W width features, and width of them
    for head in ([Sum((), [Dense()])], [Identity(), Sum([Dense()], [Dense()], [Identity()])]):
        for tail in ([Dense()], [ReLU(), Dense()]):
            got = r"with infinitely many features of every pixel"
            with pytest.raises(ValueError, match=rf"of Sum must .* one shape, got .*{got}"):
                Network([Conv(3), ReLU(), Flatten(), *head, *tail])
    # behind a mean over pixels, or weights, it has the same
    for readout in ([GlobalAvgPool()], [Flatten(), Dense()]):
        Network([Conv(3), ReLU(), *readout, Sum((), [Dense()]), Dense()])
    Network([Conv(3), ReLU(), Flatten(), Sum([Dense()], [Dense(), ReLU(), Dense()]), Dense()])


def test_a_skip_of_the_input_has_another_width() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(\) with the input channels, Conv\(3\)"):
        Network([Sum((), [Conv(3)]), GlobalAvgPool(), Dense()])
    with pytest.raises(ValueError, match=r"same'\) with the input channels, Conv\(3\) with inf"):
        Network([Sum([AvgPool(3, 1, "same")], [Conv(3)]), GlobalAvgPool(), Dense()])


@pytest.mark.parametrize("layer", [ReLU(), Abs(), Gaussian(), Erf(), GELU(), Sin(), LayerNorm()])
def test_what_is_homogeneous(layer: Layer) -> None:
    body: list[Layer] = [Conv(3), Sum((), [layer, Conv(3)]), GlobalAvgPool(), Dense()]
    assert Network(body).is_homogeneous == (layer in (ReLU(), Abs(), Gaussian()))
    assert not Network([*body, ReLU(), Dense(b_std=0.1)]).is_homogeneous


def test_sums_are_not_nested_for_ever() -> None:
    layer: Layer = Conv(3)
    for _ in range(16):
        layer = Sum([layer], [Conv(3)])
    text = Network([layer, GlobalAvgPool(), Dense()]).to_json()
    assert Network.from_json(text).to_json() == text
    with pytest.raises(ValueError, match=r"at most 16 Sums"):
        Network([Sum([layer], [Conv(3)]), GlobalAvgPool(), Dense()])
    deep = text.replace('"layers":[', '"layers":[{"type":"Sum","branches":[[', 1)
    deep = deep.replace(',{"type":"GlobalAvgPool"}', ']]},{"type":"GlobalAvgPool"}', 1)
    with pytest.raises(ValueError, match=r"^network JSON: .*16"):
        Network.from_json(deep)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sum(()), r"Sum must have two branches or more, got 1"),
        (lambda: Sum((), ReLU()), r"a branch of Sum must be a list or tuple of layers, got ReLU"),
        (lambda: AvgPool(0), r"size must be from 1"),
        (lambda: AvgPool(2, padding="same"), r'size must be odd, got 2 .*or padding="valid"'),
        (lambda: Conv(3, padding="circular"), r'padding must be "same" or "valid"'),
        (lambda: Conv(3, stride=0), r"stride must be from 1"),
        (lambda: ABReLU(0, 0), r"a and b must not both be 0"),
        (lambda: ABReLU(1e-170, 1e-170), r"a and b must not both be 0, or so small"),
        (lambda: Gaussian(0.0), r"gamma must be from 0.001"),
        (lambda: LayerNorm(-1.0), r"eps must be from 0"),
        (lambda: Polynomial([0.0, 0.0]), r"coefficients must be 1 to 33 numbers, not all"),
        (lambda: Polynomial([1.0] * 34), r"coefficients must be 1 to 33 numbers"),
        (lambda: Polynomial("12"), r"coefficients must be a list or tuple"),
        (lambda: Polynomial([1, None]), r"coefficients must be a number"),
    ],
)
def test_bad_fields_of_new_layers(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_equal_layers_have_one_form() -> None:
    assert Conv((3, 3)) == Conv(3)
    assert Conv([1, 3]) == Conv((1, 3))
    assert AvgPool(2) == AvgPool((2, 2), 2)
    assert LeakyReLU(0.5) == ABReLU(0.5, 1.0)
    assert Polynomial([1, 2, 0]) == Polynomial((1.0, 2.0))
    assert Network([Conv(3), Sum([], BLOCK), Flatten(), Dense()]) == Network(
        (Conv(3), Sum((), tuple(BLOCK)), Flatten(), Dense())
    )


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        (
            [Conv(3), AvgPool(4)],
            (3, 9, 1),
            r"layers\[1\] is AvgPool\(4\), which leaves nothing of 3",
        ),
        ([AvgPool(2), Conv(3, padding="valid")], (4, 8, 1), r"nothing of 2 x 4 .* needs 3 x 3"),
        (
            [Conv(3), Sum([AvgPool(2)], [Conv(3, stride=2)])],
            (5, 4, 1),
            r"got 2 x 2, 3 x 2 of 5 x 4",
        ),
    ],
)
def test_pixels_must_be_left(layers: list[Layer], shape: Any, message: str) -> None:
    network = Network([*layers, GlobalAvgPool(), Dense()])
    with pytest.raises(ValueError, match=message):
        network.output_shapes(shape)


def test_shapes_of_strides_and_pools() -> None:
    layers = [
        Conv(3, stride=2),
        AvgPool(3, 2, "same"),
        AvgPool(2, 1),
        Conv((1, 2), padding="valid"),
    ]
    shapes = Network([*layers, GlobalAvgPool(), Dense()]).output_shapes((16, 15, 3))
    grids = [(8, 8, None), (4, 4, None), (3, 3, None), (3, 2, None)]
    assert shapes == (*grids, (None,), (1,))


def test_series() -> None:
    network = Network([Conv((1, 5)), ReLU(), AvgPool((1, 2)), Flatten(), Dense()])
    assert network.input_ranks == (2, 3)
    shapes = network.output_shapes((9, 2))
    assert shapes == ((9, None), (9, None), (4, None), (None,), (1,))
    said = r"filters are one pixel high, and one is wider, as in Conv\("
    for other in (Conv(5), AvgPool(2)):
        with pytest.raises(ValueError, match=said):
            Network([other, GlobalAvgPool(), Dense()]).output_shapes((9, 2))


# ---------------------------------------------------------------- the fields of layers


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (4, ValueError, r"filter_size must be odd, got 4 \(int\): use 3 or 5"),
        (0, ValueError, r"filter_size must be from 1 to 9999, got 0"),
        (-3, ValueError, r"filter_size must be from 1 to 9999, got -3"),
        (10_001, ValueError, r"filter_size must be from 1 to 9999, got 10001"),
        (3.0, TypeError, r"filter_size must be an integer, got 3.0 \(float\)"),
        ("3", TypeError, r"filter_size must be an integer, got '3' \(str\)"),
        (True, TypeError, r"filter_size must be an integer, got True \(bool\)"),
        (None, TypeError, r"filter_size must be an integer, got None"),
        ((3, 4), ValueError, r"filter_size must be odd, got 4 \(int\): use 3 or 5"),
        (
            (3,),
            ValueError,
            r"filter_size must be an integer, or a pair \(rows, columns\), got",
        ),
        ((3, 1.0), TypeError, r"filter_size must be an integer, got 1.0 \(float\)"),
        ((3, (3, 5)), ValueError, r"filter_size must be an integer, or a pair"),
    ],
)
def test_bad_filter_size_is_refused(size: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Conv(size)


@pytest.mark.parametrize(
    ("half_width", "error", "message"),
    [
        (-1, ValueError, r"half_width must be from 0 to 9999, got -1"),
        (10_000, ValueError, r"half_width must be from 0 to 9999, got 10000"),
        (1.5, TypeError, r"half_width must be an integer, got 1.5 \(float\)"),
        (1.0, TypeError, r"half_width must be an integer, got 1.0 \(float\)"),
        (False, TypeError, r"half_width must be an integer, got False \(bool\)"),
        ("1", TypeError, r"half_width must be an integer, got '1' \(str\)"),
    ],
)
def test_bad_half_width_is_refused(half_width: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LocalAvgPool(half_width)


def conv3(**fields: Any) -> Conv:
    return Conv(3, **fields)


@pytest.mark.parametrize("layer", [conv3, Dense])
class TestFieldsOfWeightLayers:
    @pytest.mark.parametrize(
        "value", [0, 0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-101, 1e101, 10**400]
    )
    def test_w_std_out_of_range(self, layer: Any, value: Any) -> None:
        with pytest.raises(ValueError, match=r"w_std must be from 1e-100 to 1e\+100, got "):
            layer(w_std=value)

    @pytest.mark.parametrize("value", [-1, -1e-300, float("nan"), float("inf"), 1e101, 10**400])
    def test_b_std_out_of_range(self, layer: Any, value: Any) -> None:
        with pytest.raises(ValueError, match=r"b_std must be from 0.0 to 1e\+100, got "):
            layer(b_std=value)

    @pytest.mark.parametrize("name", ["w_std", "b_std"])
    @pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, [1.0], np.ones(1)])
    def test_std_that_is_no_number(self, layer: Any, name: str, value: Any) -> None:
        with pytest.raises(TypeError, match=rf"{name} must be a number, got .* \(\w+\)$"):
            layer(**{name: value})

    @pytest.mark.parametrize("value", [0, 1, None, "False", 1.0, np.True_])
    def test_trainable_that_is_no_bool(self, layer: Any, value: Any) -> None:
        with pytest.raises(TypeError, match=r"trainable must be True or False, got "):
            layer(trainable=value)

    @pytest.mark.parametrize("value", [2, np.float32(2), np.float16(2), np.int8(2), Fraction(2)])
    def test_numbers_of_any_type_are_stored_as_float(self, layer: Any, value: Any) -> None:
        made = layer(w_std=value, b_std=value)
        assert type(made.w_std) is float
        assert type(made.b_std) is float
        assert made == layer(w_std=2.0, b_std=2.0)

    def test_negative_zero_is_stored_as_zero(self, layer: Any) -> None:
        assert repr(layer(b_std=-0.0).b_std) == "0.0"


def test_sizes_are_stored_as_int() -> None:
    wide: Any = np.int64(3)
    narrow: Any = np.uint8(3)
    assert type(Conv(wide).filter_size) is int
    assert type(LocalAvgPool(narrow).half_width) is int


def test_defaults() -> None:
    assert Conv(3) == Conv(3, 2**0.5, 0.0, True)
    assert Dense() == Dense(1.0, 0.0, True)
    assert Network([Dense()]) == Network((Dense(),), "fan_in")


# ---------------------------------------------------------------- value semantics


def test_local_average_pooling_implies_flatten() -> None:
    short = Network([Conv(3), ReLU(), LocalAvgPool(2), Dense()])
    full = Network([Conv(3), ReLU(), LocalAvgPool(2), Flatten(), Dense()])
    assert short == full
    assert short.layers == full.layers
    assert short.fingerprint == full.fingerprint
    assert short != Network([Conv(3), ReLU(), LocalAvgPool(3), Flatten(), Dense()])
    assert Flatten() not in Network([Conv(3), GlobalAvgPool(), Dense()]).layers


def test_layers_are_a_tuple_independent_of_the_list_given() -> None:
    layers: list[Layer] = [Dense(), ReLU(), Dense()]
    network = Network(layers)
    layers.append(Dense())
    assert network.layers == (Dense(), ReLU(), Dense())
    assert type(network.layers) is tuple


def test_nothing_can_be_assigned() -> None:
    network: Any = Network([Conv(3), Flatten(), Dense()])
    for target, name in [
        (network, "layers"),
        (network, "scaling"),
        (network.layers[0], "filter_size"),
        (network.layers[0], "w_std"),
        (network.layers[2], "trainable"),
        (LocalAvgPool(1), "half_width"),
    ]:
        with pytest.raises(FrozenInstanceError):
            setattr(target, name, None)
        with pytest.raises(FrozenInstanceError):
            delattr(target, name)
    for target in (network, *network.layers):
        # Python before 3.14 raises a TypeError for an unknown name in a frozen class with slots.
        with pytest.raises((AttributeError, TypeError)):
            target.unknown = 1
        assert not hasattr(target, "__dict__")


def test_equal_by_value_and_hashable() -> None:
    network = Network([Conv(3), ReLU(), Flatten(), Dense()])
    same = Network((Conv(3, w_std=2**0.5), ReLU(), Flatten(), Dense(1)))
    assert network == same
    assert hash(network) == hash(same)
    assert {network: "found"}[same] == "found"
    # No two layer types are equal, though these four hold the same fields: none.
    assert len({ReLU(), Flatten(), GlobalAvgPool()}) == 3
    assert network != replace(network, scaling="paper")


CHANGES: list[list[Layer]] = [
    [Conv(5), Flatten(), Dense()],
    [Conv(3, w_std=1.0), Flatten(), Dense()],
    [Conv(3, b_std=0.1), Flatten(), Dense()],
    [Conv(3, trainable=False), Flatten(), Dense()],
    [Conv(3), ReLU(), Flatten(), Dense()],
    [Conv(3), GlobalAvgPool(), Dense()],
    [Conv(3), LocalAvgPool(0), Dense()],
    [Conv(3), LocalAvgPool(1), Dense()],
    [Conv(3), Flatten(), Dense(2.0)],
    [Conv(3), Flatten(), Dense(trainable=False)],
    [Conv(3), Flatten(), Dense(), Dense()],
]


def test_every_change_changes_value_and_fingerprint() -> None:
    base = Network([Conv(3), Flatten(), Dense()])
    all_networks = [base, replace(base, scaling="paper"), *map(Network, CHANGES)]
    assert len(set(all_networks)) == len(all_networks)
    assert len({network.fingerprint for network in all_networks}) == len(all_networks)


@given(networks())
def test_pickle_and_copy(network: Network) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(network, protocol)) == network
    assert copy.deepcopy(network) == network
    assert replace(network) == network


@given(networks())
def test_repr_is_evaluable(network: Network) -> None:
    assert eval(repr(network), dict(vars(module))) == network


def test_repr_and_str() -> None:
    network = Network([Conv(3), ReLU(), Conv(5, w_std=2), ReLU(), GlobalAvgPool(), Dense()])
    assert repr(network) == (
        "Network([Conv(3), ReLU(), Conv(5, w_std=2.0), ReLU(), GlobalAvgPool(), Dense()])"
    )
    assert str(network) == "Conv(3) ReLU Conv(5) ReLU GlobalAvgPool Dense"
    paper = Network([Conv(1, b_std=1, trainable=False), LocalAvgPool(2), Dense(2.0)], "paper")
    assert repr(paper) == (
        "Network([Conv(1, b_std=1.0, trainable=False), LocalAvgPool(2), Flatten(), "
        "Dense(w_std=2.0)], scaling='paper')"
    )
    assert str(paper) == "Conv(1) LocalAvgPool(2) Flatten Dense"


# ---------------------------------------------------------------- JSON and fingerprint

PINNED = Network([Conv(3, trainable=False), ReLU(), LocalAvgPool(2), Dense(0.5, 1e-3)], "paper")
PINNED_JSON = (
    '{"format":"widelimit.network/1","layers":['
    '{"b_std":0.0,"filter_size":3,"trainable":false,"type":"Conv","w_std":1.4142135623730951},'
    '{"type":"ReLU"},{"half_width":2,"type":"LocalAvgPool"},{"type":"Flatten"},'
    '{"b_std":0.001,"trainable":true,"type":"Dense","w_std":0.5}],"scaling":"paper"}'
)


def test_fingerprint_is_stable() -> None:
    # Stores name kernels by this: a change here orphans every stored Gram matrix.
    assert PINNED.to_json() == PINNED_JSON
    assert PINNED.fingerprint == "729080bc9348b47b3812db54cad4e914647f3a8571c5082a4785c3e9d7d473ec"


@given(networks())
def test_json_round_trip(network: Network) -> None:
    text = network.to_json()
    again = Network.from_json(text)
    assert again == network
    assert again.to_json() == text
    assert again.fingerprint == network.fingerprint == hashlib.sha256(text.encode()).hexdigest()


@given(networks(), networks())
def test_fingerprints_are_equal_exactly_for_equal_networks(a: Network, b: Network) -> None:
    assert (a == b) == (a.to_json() == b.to_json()) == (a.fingerprint == b.fingerprint)


@given(networks(), st.randoms(use_true_random=False))
def test_json_may_be_spaced_and_in_any_key_order(network: Network, random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, list):
            return [shuffled(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, dict):
            keys: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return value

    text = json.dumps(shuffled(json.loads(network.to_json())), indent=1)
    assert Network.from_json(text) == network


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"scaling":"paper"', '"scaling":"nt"', r"scaling must be .* got 'nt'"),
        ('"scaling":"paper"', '"scaling":{}', r"scaling must be .* got \{\}"),
        (',"scaling":"paper"', "", r"exactly the keys \['format', 'layers', 'scaling'\]"),
        ('"scaling":', '"author":"me","scaling":', r"exactly the keys"),
        ('"scaling":', '"scaling":"fan_in","scaling":', r"a key occurs twice in .*'scaling'"),
        ('{"type":"ReLU"}', '{"type":"ReLU","type":"ReLU"}', r"a key occurs twice"),
        ("network/1", "network/3", r"expected format 'widelimit.network/1'"),
        ('"widelimit.network/1"', "1", r"expected format 'widelimit.network/1'"),
        ('{"type":"ReLU"}', '{"type":"Tanh"}', r"expected a layer of type Conv, .*'Tanh'"),
        ('{"type":"ReLU"}', '{"type":"Network"}', r"expected a layer of type"),
        ('{"type":"ReLU"}', '{"type":[]}', r"expected a layer of type"),
        ('{"type":"ReLU"}', "{}", r"expected a layer of type"),
        ('{"type":"ReLU"}', '"ReLU"', r"expected a layer of type .* got 'ReLU'"),
        ('{"type":"ReLU"}', '{"type":"ReLU","slope":0.1}', r"exactly the keys \['type'\]"),
        (',"w_std":0.5', "", r"exactly the keys \['type', 'w_std', 'b_std', 'trainable'\]"),
        ('"w_std":0.5', '"w_std":NaN', r"NaN is no finite number"),
        ('"w_std":0.5', '"w_std":1e999', r"1e999 is no finite number"),
        ('"w_std":0.5', f'"w_std":1{"0" * 400}', r"w_std must be from"),
        ('"w_std":0.5', f'"w_std":1{"0" * 9000}', r"Exceeds the limit"),
        ('"w_std":0.5', '"w_std":"0.5"', r"w_std must be a number"),
        ('"trainable":true', '"trainable":1', r"trainable must be True or False"),
        ('"filter_size":3', '"filter_size":3.0', r"filter_size must be an integer"),
        ('"filter_size":3', '"filter_size":4', r"filter_size must be odd"),
        ('"filter_size":3', '"filter_size":[3,5]', r"Conv.* cannot be in the first format"),
        ('"half_width":2', '"half_width":-1', r"half_width must be from"),
        ('{"type":"ReLU"}', '{"type":"Flatten"}', r"layers\[2\] is LocalAvgPool"),
        ("}", "", r"network JSON: "),
    ],
)
def test_json_that_is_not_a_network_is_refused(old: str, new: str, message: str) -> None:
    assert old in PINNED_JSON
    with pytest.raises(
        ValueError, match=f"^network JSON: .*{message.removeprefix('network JSON: ')}"
    ):
        Network.from_json(PINNED_JSON.replace(old, new, 1))


@pytest.mark.parametrize(
    "text", ["", "null", "3", "[]", '"x"', "{}", "[" * 10**6, "__import__('os')"]
)
def test_text_that_is_not_a_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^network JSON: "):
        Network.from_json(text)


@pytest.mark.parametrize("layers", ["{}", "3", "null", '"Dense"'])
def test_json_layers_must_be_a_list(layers: str) -> None:
    text = f'{{"format":"widelimit.network/1","layers":{layers},"scaling":"paper"}}'
    with pytest.raises(ValueError, match=r"expected format .* and a list"):
        Network.from_json(text)


def test_json_size_is_bounded() -> None:
    text = Network([Dense()]).to_json()
    assert Network.from_json(text.ljust(2**22)) == Network([Dense()])
    with pytest.raises(ValueError, match=r"^network JSON: at most 4194304 characters, got 4194305"):
        Network.from_json(text.ljust(2**22 + 1))


def test_what_is_allowed_can_be_read_again() -> None:
    """The most layers, each with the longest numbers."""
    long = Conv(9_999, w_std=1.2345678901234567e-100, b_std=1.2345678901234567e-100)
    network = Network([*[long] * (MAX_LAYERS - 2), Flatten(), Dense()])
    assert Network.from_json(network.to_json()) == network


def test_the_number_of_layers_is_bounded() -> None:
    Network([Dense()] * MAX_LAYERS)
    message = r"^layers must be at most 32,768, got 32,769: use fewer$"
    with pytest.raises(ValueError, match=message):
        Network([Dense()] * (MAX_LAYERS + 1))
    with pytest.raises(ValueError, match=message):  # Flatten() joins them
        Network([LocalAvgPool(1), *[Dense()] * (MAX_LAYERS - 1)])
    with pytest.raises(ValueError, match=r"^layers must be at most 32,768, got 10,000,000,000"):
        Network(range(10**10))  # type: ignore[arg-type] - told before it is looked at


def test_json_error_does_not_echo_a_long_text() -> None:
    with pytest.raises(ValueError, match=r"^network JSON: ") as caught:
        Network.from_json(json.dumps("x" * 10**6))
    assert len(str(caught.value)) < 600


@given(st.text(max_size=60))
def test_any_text_is_refused_by_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^network JSON: "):
        Network.from_json(text)


# ---------------------------------------------------------------- properties and shapes


@pytest.mark.parametrize(
    ("word", "is_dense", "n_conv"),
    [
        ("d", True, 0),
        ("drd", True, 0),
        ("fdrd", True, 0),
        ("gd", False, 0),
        ("ld", False, 0),
        ("cfd", False, 1),
        ("crcrcgdrd", False, 3),
    ],
)
def test_is_dense_and_n_conv(word: str, is_dense: bool, n_conv: int) -> None:
    network = Network(spell(word))
    assert network.is_dense is is_dense
    assert network.n_conv == n_conv


IMAGE = (5, 4, 3)
MAP = (5, 4, None)


@pytest.mark.parametrize(
    ("word", "input_shape", "expected"),
    [
        ("crgd", IMAGE, (MAP, MAP, (None,), (1,))),
        ("crfdrd", IMAGE, (MAP, MAP, (None,), (None,), (None,), (1,))),
        ("ccld", IMAGE, (MAP, MAP, MAP, (None,), (1,))),
        ("gd", IMAGE, ((3,), (1,))),
        ("ld", IMAGE, (IMAGE, (60,), (1,))),
        ("fdrd", IMAGE, ((60,), (None,), (None,), (1,))),
        ("fd", (7,), ((7,), (1,))),
        ("d", (7,), ((1,),)),
        ("drd", (7,), ((None,), (None,), (1,))),
        ("drd", IMAGE, ((None,), (None,), (1,))),
        ("d", (200_000,), ((1,),)),
        ("cfd", (1, 1, 1), ((1, 1, None), (None,), (1,))),
    ],
)
def test_output_shapes(word: str, input_shape: tuple[int, ...], expected: Any) -> None:
    assert Network(spell(word)).output_shapes(input_shape) == expected
    assert Network(spell(word)).output_shapes(list(input_shape)) == expected


@given(networks(), st.tuples(*[st.integers(1, 99)] * 3))
def test_there_is_one_shape_per_layer(network: Network, shape: tuple[int, int, int]) -> None:
    shapes = network.output_shapes(shape)
    assert len(shapes) == len(network.layers)
    assert shapes[-1] == (1,)
    for layer, before, after in zip(network.layers[1:], shapes, shapes[1:], strict=False):
        if isinstance(layer, ReLU | LocalAvgPool):
            assert after == before


@pytest.mark.parametrize(
    ("word", "shape", "error", "message"),
    [
        ("cgd", (7,), ValueError, r"Conv\(3\) GlobalAvgPool Dense must be \(h, w, c\), got \(7,\)"),
        ("gd", (7,), ValueError, r"must be \(h, w, c\), got \(7,\)"),
        ("cgd", (28, 28), ValueError, r"got \(28, 28\): .* a grey image is \(h, w, 1\)"),
        ("cgd", (9, 5, 4, 3), ValueError, r"got \(9, 5, 4, 3\): the number of images is left out"),
        ("d", (28, 28), ValueError, r"Dense must be \(h, w, c\) or \(d,\), got \(28, 28\)"),
        ("d", (), ValueError, r"must be \(h, w, c\) or \(d,\), got \(\)"),
        ("cgd", (0, 4, 3), ValueError, r"input_shape must be from 1 to 2147483647, got 0"),
        ("cgd", (5, -4, 3), ValueError, r"input_shape must be from 1 .* got -4"),
        ("d", (0,), ValueError, r"input_shape must be from 1 .* got 0"),
        ("cgd", (5.0, 4, 3), TypeError, r"input_shape must be an integer, got 5.0"),
        ("cgd", (True, 4, 3), TypeError, r"input_shape must be an integer, got True"),
        ("cgd", (None, 4, 3), TypeError, r"input_shape must be an integer, got None"),
    ],
)
def test_bad_input_shape_is_refused(
    word: str, shape: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Network(spell(word)).output_shapes(shape)
