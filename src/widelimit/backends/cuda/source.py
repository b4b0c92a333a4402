"""The source of the kernels for one program: constants, layers and entry points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import groupby

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.backends.base import Dtype
from widelimit.backends.lowered import Lowered, LoweredStep, lower
from widelimit.program import Program, Tap

__all__ = ["DRIFT", "FLAGS", "Field", "Layout"]
__all__ += ["fields_source", "finish_source", "number", "rows_source", "scalar_text", "shared_text"]

FLAGS = {
    "relu": 1,
    "signed": 2,
    "own": 4,
    "train": 8,
    "k": 16,
    "theta": 32,
    "bias": 64,
    "merge": 128,
}
DRIFT = 32.0  # (9/8)^29: of up to 29 layers with filters of 3 all inner ones are alike
_MOST_TAPS = 64  # after one layer: they are bits of a number


@dataclass(frozen=True, slots=True)
class Field:
    """A sum that is wanted: of K (0) or Theta (1), at a tap, after some layers."""

    tap: int
    index: int
    layer: int


@dataclass(frozen=True)
class Layout:
    """What the kernels of one program and dtype have in common.

    Parameters
    ----------
    program : Program
    dtype : {"float32", "float64"}
    """

    program: Program
    dtype: Dtype

    @property
    def lowered(self) -> Lowered:
        """Return the program in the units of the engines."""
        return lower(self.program, DRIFT)

    @property
    def cell(self) -> int:
        """Rows of a column that are loaded at a time: 16 bytes."""
        return 16 // np.dtype(self.dtype).itemsize

    @property
    def cells(self) -> int:
        """Cells of a column."""
        return -(-self.program.shape[0] // self.cell)

    @property
    def field(self) -> int:
        """Numbers of a channel, or of a profile."""
        return self.cells * self.program.shape[1] * self.cell

    @property
    def sample(self) -> int:
        """Numbers of one sample: channels, profiles, biases."""
        n_steps = len(self.lowered.steps)
        return (self.program.shape[2] + n_steps) * self.field + -(-n_steps // self.cell) * self.cell

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Taps by the layer after which they are read."""
        taps = self.program.taps
        return tuple(sorted(range(len(taps)), key=lambda index: taps[index].node))

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """What is summed, in the order in which the kernels do."""
        found: list[Field] = []
        for index in self.order:
            tap = self.program.taps[index]
            wanted = (tap.want_sigma, tap.want_theta)
            found += [Field(index, which, tap.node) for which in (0, 1) if wanted[which]]
        return tuple(found)

    def weights(self) -> tuple[FloatArray, FloatArray]:
        """Return the weights of all taps along rows, by ``|di|``, and along columns, by dj."""
        h, w, _ = self.program.shape
        taps = [self.program.taps[index] for index in self.order]
        rows = np.array([tap.weights(h)[h - 1 :] for tap in taps])
        columns = np.array([tap.weights(w) for tap in taps])
        return rows.astype(self.dtype), columns.astype(self.dtype)

    def arrange(self, images: FloatArray, profiles: FloatArray, biases: FloatArray) -> FloatArray:
        """Return samples as the kernels read them.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c)
        profiles : ndarray of shape (n, n_steps, h, w)
        biases : ndarray of shape (n, n_steps)

        Returns
        -------
        ndarray of shape (n, sample)
            Fields as ``[cell][column][row of the cell]``, then biases.
        """
        n, h, w, c = images.shape
        n_steps = profiles.shape[1]
        rows = self.cells * self.cell
        out = np.zeros((n, self.sample), self.dtype)
        part = out[:, : (c + n_steps) * rows * w]
        fields = part.reshape(n, c + n_steps, self.cells, w, self.cell)
        for first, source in ((0, images.transpose(0, 3, 1, 2)), (c, profiles)):
            if rows != h:
                source = np.pad(source, ((0, 0), (0, 0), (0, rows - h), (0, 0)))
            cells = source.reshape(n, -1, self.cells, self.cell, w)
            fields[:, first : first + source.shape[1]] = cells.transpose(0, 1, 2, 4, 3)
        out[:, part.shape[1] : part.shape[1] + n_steps] = biases
        return out


# ---------------------------------------------------------------- text


@dataclass(frozen=True)
class _Kind:
    """A layer as the kernels know it; layers of one kind are one piece of code."""

    step: LoweredStep | None  # None: the input
    scale: float
    merge: bool  # the next layer sums Theta + K

    @property
    def flags(self) -> int:
        """Return bits of slices.cuh."""
        if self.step is None:
            return FLAGS["k"]
        step = self.step
        on = {"relu": step.relu, "signed": step.signed, "own": step.theta_in}
        on |= {"train": step.trainable and step.theta_out, "k": step.k_out}
        on |= {"theta": step.theta_out, "bias": step.biased, "merge": self.merge}
        return sum(FLAGS[name] for name, is_on in on.items() if is_on)

    def text(self, name: str, dtype: Dtype) -> str:
        """Return the struct that stands for the kind."""
        filter_size = 1 if self.step is None else self.step.filter_size
        return (
            f"struct {name} {{\n"
            f"  static constexpr bool input = {str(self.step is None).lower()};\n"
            f"  static constexpr int filter = {filter_size}, flags = {self.flags};\n"
            f"  WL_FN static constexpr Scalar scale() {{ return {number(self.scale, dtype)}; }}\n"
            "};\n"
        )


@dataclass(frozen=True)
class _Taps:
    """What is read out after a layer: for each readout whether rows weigh 1, K, Theta wanted."""

    taps: tuple[tuple[bool, bool, bool], ...]

    def text(self, name: str) -> str:
        """Return the struct that stands for them."""
        bits = [sum(1 << t for t, tap in enumerate(self.taps) if tap[b]) for b in range(3)]
        n_fields = sum(k + theta for _, k, theta in self.taps)
        unit, want_k, want_theta = (f"{value}ull" for value in bits)
        return (
            f"struct {name} {{\n"
            f"  static constexpr int taps = {len(self.taps)}, fields = {n_fields};\n"
            f"  static constexpr unsigned long long unit = {unit}, want_k = {want_k}, "
            f"want_theta = {want_theta};\n"
            "};\n"
        )


@dataclass(frozen=True)
class _Layer:
    kind: _Kind
    taps: _Taps
    first_tap: int
    first_field: int


def number(value: float, dtype: Dtype) -> str:
    """Return a constant as text, to the last bit."""
    return value.hex() + ("f" if dtype == "float32" else "")


def _layers(layout: Layout) -> Iterator[_Layer]:
    lowered = layout.lowered
    steps: Sequence[LoweredStep | None] = [None, *lowered.steps, None]
    taps = [layout.program.taps[index] for index in layout.order]
    scales = [lowered.in_scale, *(step.scale for step in lowered.steps)]
    for layer in range(len(lowered.steps) + 1):
        step, following = steps[layer], steps[layer + 1]
        merge = step is not None and step.theta_out and step.k_out and following is not None
        merge = merge and following is not None and following.theta_in and following.trainable
        here = [index for index, tap in enumerate(taps) if tap.node == layer]
        if len(here) > _MOST_TAPS:
            raise ValueError(
                f"at most {_MOST_TAPS} readouts after one layer can be computed on a GPU, got "
                f"{len(here)}: pass fewer networks at a time"
            )
        first_field = sum(field.layer < layer for field in layout.fields)
        wanted = tuple(
            (_all_rows_weigh_one(layout, taps[t]), taps[t].want_sigma, taps[t].want_theta)
            for t in here
        )
        kind = _Kind(step, scales[layer], merge)
        yield _Layer(kind, _Taps(wanted), here[0] if here else 0, first_field if here else 0)


def _all_rows_weigh_one(layout: Layout, tap: Tap) -> bool:
    program = layout.program
    h = program.shape[0]
    weights = tap.weights(h)
    heights = np.unique(program.stages[0].slices[:, 0]).tolist()
    return all((weights[di + h - 1, : h - di] == 1).all() for di in heights)


@lru_cache(maxsize=4)
def shared_text(*names: str) -> str:
    """Return files that sources begin with, the coefficients of dual activations before them."""
    texts = [files("widelimit._core").joinpath("dual_coefficients.hpp").read_text()]
    here = files("widelimit.backends.cuda")
    texts += [here.joinpath(name).read_text() for name in names]
    lines = "\n".join(texts).splitlines()
    return "\n".join(line for line in lines if line != "#pragma once")


def _chain_text() -> str:
    return shared_text("lanes.cuh", "duals.cuh", "slices.cuh")


def scalar_text(dtype: Dtype) -> str:
    """Return what depends on the dtype: the type, polynomials of duals.cuh, the least norm."""
    name, bits, tiny = ("float", 32, "1e-36f") if dtype == "float32" else ("double", 64, "1e-290")
    lines = [
        f"typedef {name} Scalar;",
        f"#define WL_SINGLE {int(dtype == 'float32')}",
        f"#define WL_A widelimit::kA{bits}",
        f"#define WL_C widelimit::kC{bits}",
        f"constexpr Scalar kTiny = {tiny};",
    ]
    return "\n".join(lines) + "\n"


def _constants(layout: Layout, **numbers: int) -> str:
    h, w, c = layout.program.shape
    most = max((step.filter_size // 2 for step in layout.lowered.steps), default=0)
    values = {"kH": h, "kW": w, "kC": c, "kLayers": len(layout.lowered.steps), "kReach": most}
    values |= {"kFields": len(layout.fields)}
    values |= {f"k{name}": value for name, value in numbers.items() if name[0].isupper()}
    text = scalar_text(layout.dtype)
    text += "".join(f"#define WL_{n.upper()} {v}\n" for n, v in numbers.items() if n[0].islower())
    return text + "".join(f"constexpr int {name} = {value};\n" for name, value in values.items())


class _Text:
    """Layers as text: structs, a table of layers, and statements that go through them.

    Where kinds come back after others, layers are one loop with a branch for each kind; else each
    kind has a loop of its own. The cache of a processor for code is small, and a layer is long.
    """

    def __init__(self, layout: Layout) -> None:
        self._layers = list(_layers(layout))
        self._kinds = list(dict.fromkeys(layer.kind for layer in self._layers))
        self._taps = list(dict.fromkeys(layer.taps for layer in self._layers))
        self._leaves = _leaves_early(layout)
        self._dtype: Dtype = layout.dtype

    @property
    def before(self) -> str:
        """Return structs, and ``kPlan``: kind, taps, first tap and field of each layer."""
        text = "".join(k.text(f"Kind{n}", self._dtype) for n, k in enumerate(self._kinds))
        text += "".join(taps.text(f"Taps{n}") for n, taps in enumerate(self._taps))
        rows = [
            (self._kinds.index(x.kind), self._taps.index(x.taps), x.first_tap, x.first_field)
            for x in self._layers
        ]
        numbers = ", ".join(str(value) for row in rows for value in row)
        return f"{text}WL_TABLE int kPlan[] = {{{numbers}}};\n"

    def layers(self, layer: str, read: str, leave: str) -> str:
        """Return the statements for all layers after the input.

        Parameters
        ----------
        layer : str
            One layer ``l``: a format of ``kind``.
        read : str
            Its readouts: a format of ``kind``, ``taps``, ``tap`` and ``field``.
        leave : str
            What ends a slice that goes no deeper than layer ``l``.
        """
        deep = len(self._layers) - 1
        runs = [list(run) for _, run in groupby(range(1, deep + 1), lambda n: self._layers[n].kind)]
        if len(runs) == len(self._kinds) - 1:
            return "".join(
                f"  WL_KEEP for (int l = {run[0]}; l < {run[-1] + 1}; ++l) {{\n"
                f"{self._one(run, layer, read, leave)}  }}\n"
                for run in runs
            )
        text = ""
        for n, kind in enumerate(self._kinds[1:], start=1):
            run = [number for number in range(1, deep + 1) if self._layers[number].kind == kind]
            text += f"    {'else ' if n > 1 else ''}if (kPlan[4 * l] == {n}) {{\n"
            text += self._one(run, layer, read, leave) + "    }\n"
        return f"  WL_KEEP for (int l = 1; l <= kLayers; ++l) {{\n{text}  }}\n"

    def _one(self, run: list[int], layer: str, read: str, leave: str) -> str:
        """Return the statements for one layer of some that are of a kind."""
        kind = f"Kind{self._kinds.index(self._layers[run[0]].kind)}"
        text = f"    {layer.format(kind=kind)}\n"
        for taps in dict.fromkeys(self._layers[number].taps for number in run):
            if not taps.taps:
                continue
            index = self._taps.index(taps)
            named = {"kind": kind, "taps": f"Taps{index}"}
            call = read.format(**named, tap="kPlan[4 * l + 2]", field="kPlan[4 * l + 3]")
            if self._leaves and run[-1] < len(self._layers) - 1:
                call += f" {leave}"
            text += f"    if (kPlan[4 * l + 1] == {index}) {{ {call} }}\n"
        return text

    def whole_layers(self, call: str, leave: str) -> str:
        """Return the statements for all layers, the input among them, and their readouts in one.

        Parameters
        ----------
        call : str
            One layer ``l`` with its readouts: a format of ``kind``, ``taps``, ``tap``, ``field``.
        leave : str
            As for `layers`.
        """
        text = ""
        both = dict.fromkeys((layer.kind, layer.taps) for layer in self._layers)
        for n, (kind, taps) in enumerate(both):
            index, which = self._kinds.index(kind), self._taps.index(taps)
            named = {"kind": f"Kind{index}", "taps": f"Taps{which}"}
            one = call.format(**named, tap="kPlan[4 * l + 2]", field="kPlan[4 * l + 3]")
            condition = f"kPlan[4 * l] == {index} && kPlan[4 * l + 1] == {which}"
            leaving = f" {leave}" if taps.taps and self._leaves else ""
            text += f"    {'else ' if n else ''}if ({condition}) {{ {one}{leaving} }}\n"
        return f"  WL_KEEP for (int l = 0; l <= kLayers; ++l) {{\n{text}  }}\n"

    def input(self, read: str) -> str:
        """Return the readouts of the input; as for `layers`."""
        taps = self._layers[0].taps
        if not taps.taps:
            return ""
        named = {"kind": "Kind0", "taps": f"Taps{self._taps.index(taps)}"}
        return "  " + read.format(**named, tap=0, field=0) + "\n"


def _leaves_early(layout: Layout) -> bool:
    return len(layout.program.stages[0].variants) > 1


_CALL = (
    "const Scalar* left, const Scalar* right, const int* rows, const int* columns, int n_rows, "
    "int n_columns, int pairwise, const int* entries, const int* variants, int n_entries, "
    "const Scalar* row_weights, const Scalar* column_weights, Scalar* partial"
)
_CALL_VALUES = (
    "left, right, rows, columns, n_rows, n_columns, pairwise, entries, variants, n_entries, "
    "row_weights, column_weights, partial"
)


def rows_source(
    layout: Layout,
    heights: Sequence[int],
    *,
    warps: int,
    tile: tuple[int, int] = (1, 1),
    staged: bool = False,
    tiled: bool = False,
) -> str:
    """Return the source of ``wl_rows``: the slices of some heights, with rows in registers.

    Parameters
    ----------
    layout : Layout
    heights : sequence of int
        Numbers of rows.
    warps : int
        Of a block.
    tile : tuple of int
        Rows and columns of pairs whose slices run side by side, if not `staged`.
    staged : bool
        Whether a block holds the samples of its pair in shared memory.
    tiled : bool
        Whether a block is a tile, in which each pair has one slice, and holds one field of all its
        samples in shared memory.
    """
    text = _Text(layout)
    read = "read_out<{kind}, {taps}, N>(c, K, T, m, {tap}, {field});"
    one = (
        "layer<{kind}, N>(K, T, x, z, m, bias_of<{kind}>(m.a, m.b, l)); "
        "x = advance(x, kField); z = advance(z, kField);"
    )
    if tiled:
        one = (
            "{{ const int at = place_of_field(c, m, kC + l - 1); layer<{kind}, N>(K, T, "
            "advance(x, at), advance(z, at), m, bias_of<{kind}>(m.a, m.b, l)); }}"
        )
    layers = text.layers(one, read, "if (!some(m.active & (depth > l))) return;")
    ahead = "" if tiled else "  x = advance(x, kC * kField);\n  z = advance(z, kC * kField);\n"
    numbers = ", ".join(map(str, heights))
    constants = _constants(
        layout, Warps=warps, TileRows=tile[0], TileColumns=tile[1], rows=1, fields=0,
        staged=layout.sample if staged else 0, tiled=sum(tile) * layout.field if tiled else 0,
    )  # fmt: skip
    return (
        f"{constants}{_chain_text()}\n{text.before}"
        "template <int N>\n"
        "WL_FN void all_layers(const Call& c, P x, P z, const Lanes& m, I depth) {\n"
        f"  V K[N], T[N];\n  input<Kind0, N>(c, K, x, z, m);\n{text.input(read)}{ahead}{layers}}}\n"
        "#if defined(__CUDACC__)\n"
        f'extern "C" __global__ void __launch_bounds__({32 * warps}) wl_rows({_CALL}) {{\n'
        f"  run_rows<{numbers}>(Call{{{_CALL_VALUES}}}, int(blockIdx.x), int(gridDim.x));\n}}\n"
        "#else\n"
        f'extern "C" void wl_rows(int n_blocks, {_CALL}) {{\n'
        "  for (int block = 0; block < n_blocks; ++block)\n"
        f"    run_rows<{numbers}>(Call{{{_CALL_VALUES}}}, block, n_blocks);\n}}\n"
        "#endif\n"
    )


def fields_source(layout: Layout, *, warps: int, in_shared: bool) -> str:
    """Return the source of ``wl_fields``: slices of any size, with fields in memory.

    Parameters
    ----------
    layout : Layout
    warps : int
        Of a block.
    in_shared : bool
        Whether the fields of a block lie in shared memory; if not, in ``memory``.
    """
    text = _Text(layout)
    call = "field_layer<{kind}, {taps}>(c, d, l, {tap}, {field}, fields, turn, sums);"
    layers = text.whole_layers(call, "if (d.depth <= l) return;")
    constants = _constants(layout, Warps=warps, rows=0, fields=1, staged=0, tiled=0)
    size = "4 * kH * kW"
    memory = "wl_field_memory" if in_shared else f"memory + (long long)blockIdx.x * {size}"
    return (
        f"{constants}{_chain_text()}\n{text.before}"
        "WL_FN void all_field_layers(const Call& c, const Slice& d, Fields (&fields)[2], "
        "Scalar* sums) {\n  int turn = 0;\n"
        f"{layers}}}\n"
        "#if defined(__CUDACC__)\n"
        "extern __shared__ Scalar wl_field_memory[];\n"
        f'extern "C" __global__ void __launch_bounds__({32 * warps}) wl_fields({_CALL}, '
        "Scalar* memory) {\n"
        "  __shared__ Scalar sums[2 * kWarps * kFields];\n"
        f"  run_fields(Call{{{_CALL_VALUES}}}, {memory}, sums, int(blockIdx.x), int(gridDim.x));\n"
        "}\n"
        "#else\n"
        "static Scalar wl_field_memory[4 * kH * kW];\n"
        f'extern "C" void wl_fields(int n_blocks, {_CALL}, Scalar* memory) {{\n'
        "  Scalar sums[2 * kWarps * kFields];\n"
        "  for (int block = 0; block < n_blocks; ++block)\n"
        f"    run_fields(Call{{{_CALL_VALUES}}}, {memory.replace('blockIdx.x', 'block')}, sums, "
        "block, n_blocks);\n}\n"
        "#endif\n"
    )


_FINISH = (
    "const Scalar* partial, const int* rows, const int* columns, int n_rows, int n_columns, "
    "int pairwise, int n_entries, const int* entries, const int* layers, const double* factors, "
    "const long long* identity_left, const long long* identity_right, const double* diagonal, "
    "const double* scale_left, const double* scale_right, double* out"
)
_FINISH_VALUES = (
    "partial, rows, columns, n_rows, n_columns, pairwise, n_entries, entries, layers, factors, "
    "identity_left, identity_right, diagonal, scale_left, scale_right, out"
)


def finish_source(layout: Layout) -> str:
    """Return the source of ``wl_finish``: from sums of entries to sums of pairs."""
    constants = _constants(layout, Warps=1, rows=0, fields=0, staged=0, tiled=0)
    return (
        f"{constants}{_chain_text()}\n"
        "#if defined(__CUDACC__)\n"
        f'extern "C" __global__ void wl_finish({_FINISH}) {{\n'
        "  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  const int n = pairwise ? n_rows : n_rows * n_columns;\n"
        "  if (i < (long long)n * kFields)\n"
        f"    finish(Finish{{{_FINISH_VALUES}}}, int(i / n), int(i % n));\n}}\n"
        "#else\n"
        f'extern "C" void wl_finish(int, {_FINISH}) {{\n'
        "  const int n = pairwise ? n_rows : n_rows * n_columns;\n"
        "  for (int field = 0; field < kFields; ++field)\n"
        f"    for (int i = 0; i < n; ++i) finish(Finish{{{_FINISH_VALUES}}}, field, i);\n}}\n"
        "#endif\n"
    )
