"""The source of the kernel for one general program: stages of levels, and windows between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.backends.base import Dtype
from widelimit.backends.cuda.rounds import Gather, Rounds
from widelimit.backends.cuda.source import FLAGS, number, scalar_text, shared_text
from widelimit.backends.lowered import (
    AB_RELU,
    COS,
    ERF,
    GATHER,
    GAUSSIAN,
    GELU_,
    IDENTITY,
    IMAGE,
    NORM,
    RELU,
    SIN,
    Lowered,
    LoweredLevel,
    lower,
)
from widelimit.program import Program

__all__ = ["StagesLayout", "SumField", "gathering", "stages_source"]

_DUALS = {
    IDENTITY: "Identity",
    RELU: "Relu",
    AB_RELU: "AbRelu",
    GAUSSIAN: "Gaussian",
    ERF: "Erf",
    GELU_: "Gelu",
    SIN: "Sine",
    COS: "Cosine",
    NORM: "Norm",
}
_BEYOND = 32  # numbers that lanes without a pixel may read behind a sample


@dataclass(frozen=True, slots=True)
class SumField:
    """A sum that is wanted: of K (0) or Theta (1), at a tap, of a level."""

    tap: int
    index: int
    level: int


@dataclass(frozen=True)
class StagesLayout:
    """How samples lie, and what is summed, for one general program and dtype.

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
        return lower(self.program)

    @cached_property
    def profiles(self) -> dict[int, int]:
        """Where the profile of each node begins in a sample."""
        found: dict[int, int] = {}
        at = math.prod(self.program.shape)
        for place, level in enumerate(self.lowered.levels):
            if level.kind not in (IMAGE, GATHER):
                found[place] = at
                at += level.h * level.w
        return found

    @cached_property
    def biases(self) -> dict[int, int]:
        """Where the bias of each node lies in a sample."""
        first = math.prod(self.program.shape) + self.lowered.n_profile
        return {place: first + n for n, place in enumerate(self.profiles)}

    @property
    def sample(self) -> int:
        """Numbers of one sample: a multiple of 16 bytes."""
        used = math.prod(self.program.shape) + self.lowered.n_profile + len(self.profiles)
        return -(-(used + _BEYOND) // 4) * 4

    @cached_property
    def fields(self) -> tuple[SumField, ...]:
        """What is summed, in the order of taps."""
        found: list[SumField] = []
        for tap, level in enumerate(self.lowered.taps):
            wanted = (self.program.taps[tap].want_sigma, self.program.taps[tap].want_theta)
            found += [SumField(tap, index, level) for index in (0, 1) if wanted[index]]
        return tuple(found)

    def grid(self, tap: int) -> tuple[int, int]:
        """Return height and width of what a tap reads."""
        level = self.lowered.levels[self.lowered.taps[tap]]
        return level.h, level.w

    def weights(self) -> tuple[FloatArray, FloatArray]:
        """Return the weights of all taps along rows, by ``|di|``, and along columns, by dj."""
        rows: list[FloatArray] = []
        columns: list[FloatArray] = []
        for index, tap in enumerate(self.program.taps):
            h, w = self.grid(index)
            rows.append(tap.weights(h)[h - 1 :].ravel())
            columns.append(tap.weights(w).ravel())
        return tuple(np.concatenate(some).astype(self.dtype) for some in (rows, columns))  # type: ignore[return-value]

    def arrange(self, images: FloatArray, profiles: FloatArray, biases: FloatArray) -> FloatArray:
        """Return samples as the kernel reads them.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c)
        profiles : ndarray of shape (n, numbers of all nodes)
        biases : ndarray of shape (n, n_nodes)

        Returns
        -------
        ndarray of shape (n, sample)
            Channels, profiles, biases.
        """
        n = len(images)
        out = np.zeros((n, self.sample), self.dtype)
        parts = images.transpose(0, 3, 1, 2).reshape(n, -1), profiles, biases
        joined = np.concatenate(parts, axis=1)
        out[:, : joined.shape[1]] = joined
        return out


# ---------------------------------------------------------------- text


def _constants(level: LoweredLevel) -> tuple[float, tuple[float, ...]]:
    """Return the scale of an activation and its other constants (`duals.cuh`)."""
    scale, unit = level.out_scale, level.unit
    match level.activation:
        case 2:  # AB_RELU
            a, b = level.parameters
            total = a * a + b * b
            return scale * (b - a) ** 2 / total, (scale * 2 * a * b / total,)
        case 3:  # GAUSSIAN
            (gamma,) = level.parameters
            return scale, (gamma, scale * gamma)
        case 4:  # ERF
            return scale, (2 * unit, 4 * unit**2, scale * unit * 4 / math.pi)
        case 5:  # GELU_
            return scale, (unit, unit**2, scale * unit)
        case 6 | 7:  # SIN, COS
            return scale, (unit, scale * unit)
        case 8:  # NORM
            return scale, (unit, scale * unit, level.parameters[0])
        case _:
            return scale, ()


def _layer(level: LoweredLevel, dtype: Dtype) -> str:
    """Return the body of a struct with what an activation must know."""
    scale, others = _constants(level)
    on = {"signed": level.signed, "k": level.k_out, "theta": level.theta_out}
    flags = sum(FLAGS[name] for name, is_on in on.items() if is_on)
    chosen = "Scalar(0)"
    for n, value in reversed(list(enumerate(others))):
        chosen = f"i == {n} ? {number(value, dtype)} : {chosen}"
    return (
        f"  static constexpr int flags = {flags};\n"
        f"  WL_FN static constexpr Scalar scale() {{ return {number(scale, dtype)}; }}\n"
        f"  WL_FN static constexpr Scalar p(int i) {{ return {chosen}; }}\n"
    )


class _Stage:
    """The text of one stage: a warp's way down a slice.

    Parameters
    ----------
    layout : StagesLayout
    rounds : Rounds
    k : int
        Which stage.
    rooms : dict of int to int
        Where the memory of each level that gathers begins.
    """

    def __init__(self, layout: StagesLayout, rounds: Rounds, k: int, rooms: dict[int, int]) -> None:
        self._layout, self._rounds, self._k, self._rooms = layout, rounds, k, rooms
        lowered = layout.lowered
        first = sum(grid.n_levels for grid in lowered.stages[:k])
        self._grid = lowered.stages[k]
        self._numbers = range(first, first + self._grid.n_levels)
        self._levels = {n: lowered.levels[n] for n in self._numbers}
        self._w = max(level.w for level in self._levels.values())
        self._one_width = len({level.w for level in self._levels.values()}) == 1
        self._gathers = rounds.gathers[k]
        self._pack = rounds.packed[k]
        # A level is so many rows behind the input that all rows it reads are there.
        self._lag: dict[int, int] = {}
        for n, level in self._levels.items():
            if level.kind in (IMAGE, GATHER):
                self._lag[n] = 0
                continue
            lag = self._lag[level.source] + level.rows - 1 - level.top
            self._lag[n] = max(lag, self._lag[level.skip] if level.skip >= 0 else 0)
        # How many rows ago the oldest row was made that others read; -1: nobody reads.
        self._oldest: dict[int, tuple[int, int]] = dict.fromkeys(self._numbers, (-1, -1))
        for n, level in self._levels.items():
            if level.kind in (IMAGE, GATHER):
                continue
            oldest = self._lag[n] - self._lag[level.source] + level.top
            self._read(level.source, oldest, theta=level.theta_in)
            if level.skip >= 0:
                self._read(level.skip, self._lag[n] - self._lag[level.skip], theta=level.theta_skip)

    def _read(self, n: int, age: int, *, theta: bool) -> None:
        k, t = self._oldest[n]
        self._oldest[n] = max(k, age), max(t, age) if theta else t

    def text(self) -> str:
        """Return the function ``stage_k``."""
        lines = [
            f"WL_FN void stage_{self._k}(const Pair& pair, const int* task, Scalar* part) {{",
            f"  const Place p = place_of<{self._pack}>(task, {self._w});",
            "  const int di = task[1], variant = task[2];",
            "  const bool swapped = task[3] == 1, same = pair.same && task[3] == 2;",
            "  const Scalar *const x = swapped ? pair.z : pair.x, "
            "*const z = swapped ? pair.x : pair.z;",
            *self._before(),
        ]
        steps = max(self._levels[n].h + self._lag[n] for n in self._numbers)
        lines.append(f"  WL_TURNS for (int t = 0; t < {steps} - di; ++t) {{")
        for n in self._numbers:
            lines += [f"    {line}" for line in self._level(n)]
        for n in self._numbers:
            for name, oldest in zip("kt", self._oldest[n], strict=True):
                lines += [
                    f"    {name}{n}[{age}] = {name}{n}[{age - 1}];" for age in range(oldest, 0, -1)
                ]
        lines += ["  }", *self._after(), "}\n"]
        return "\n".join(lines)

    def _before(self) -> Iterator[str]:
        masks: dict[tuple[int, int], None] = {}
        for n, level in self._levels.items():
            for name, oldest in zip("kt", self._oldest[n], strict=True):
                if oldest >= 0:
                    yield f"  V {name}{n}[{oldest + 1}] = {{}};"
            if level.kind in (IMAGE, GATHER):
                continue
            width = self._levels[level.source].w
            masks |= {(width, o): None for o in self._offsets(level)}
            if level.biased:
                at = self._layout.biases[n]
                yield f"  const V bias{n} = broadcast(x[{at}] * z[{at}]);"
        for width, offset in masks:
            yield f"  const V {_mask(width, offset)} = beside(p, {width}, {offset});"
        if not self._one_width:
            for width in sorted({level.w for level in self._levels.values()}):
                yield f"  const B in_{width} = inside(p, {width});"
        for gather in self._gathers:
            yield f"  Push<Windows{gather.level}> push{gather.level}(task, p);"
        for f, field in enumerate(self._layout.fields):
            if field.level in self._numbers:
                yield f"  V sum{f} = broadcast(0);"

    @staticmethod
    def _offsets(level: LoweredLevel) -> list[int]:
        """Return which columns but its own a filter reads."""
        return [o for o in range(-level.left, level.columns - level.left) if o]

    def _level(self, n: int) -> Iterator[str]:
        level = self._levels[n]
        lag = self._lag[n]
        yield "{"
        yield f"  const int r = t{f' - {lag}' if lag else ''};"
        yield "  V k, theta;"
        condition = f"r < {level.h} - di" + (" && r >= 0" if lag else "")
        through = self._grid.variants
        if not all(n in variant for variant in through):
            bits = sum(1 << i for i, variant in enumerate(through) if n in variant)
            condition += f" && {bits}ull >> variant & 1"
        yield f"  if ({condition}) {{"
        made = {IMAGE: self._image, GATHER: self._gathered}.get(level.kind, self._node)
        for line in made(n):
            yield f"    {line}"
        if not self._one_width:
            yield f"    k = select(in_{level.w}, k, broadcast(0));"
            yield f"    theta = select(in_{level.w}, theta, broadcast(0));"
        for f, field in enumerate(self._layout.fields):
            if field.level == n:
                value = "theta" if field.index else "k"
                at = self._row_weight(field.tap)
                term = f"mad({value}, broadcast({at}), sum{f})" if at else f"sum{f} + {value}"
                yield f"    sum{f} = {term};"
        for gather in self._gathers:
            if gather.source == n:
                room = f"pair.room + {self._rooms[gather.level]}"
                yield f"    push{gather.level}.add({room}, r, {level.h - 1} - di, k, theta);"
        yield "  } else {"
        yield "    k = theta = broadcast(0);"
        yield "  }"
        for name, value, oldest in zip("kt", ("k", "theta"), self._oldest[n], strict=True):
            if oldest >= 0:
                yield f"  {name}{n}[0] = {value};"
        yield "}"

    def _image(self, n: int) -> Iterator[str]:
        h, w, c = self._layout.program.shape
        scale = number(self._levels[n].out_scale, self._layout.dtype)
        yield "k = theta = broadcast(0);"
        yield f"WL_UNROLL for (int c = 0; c < {c}; ++c)"
        yield (
            f"  k = mad(look(x + (c * {h} + r) * {w}, p.x), "
            f"look(z + (c * {h} + r + di) * {w}, p.z), k);"
        )
        yield f"k = k * {scale};"

    def _gathered(self, n: int) -> Iterator[str]:
        level = self._levels[n]
        room = f"pair.room + {self._rooms[n]}"
        at = f"(p.entry + ({level.w} - p.size) * r + p.column) * {level.fields}"
        yield f"take_entry<{level.fields}>({room}, {at}, inside(p, {level.w}), k, theta);"

    def _node(self, n: int) -> Iterator[str]:
        level = self._levels[n]
        source, behind = level.source, self._lag[n] - self._lag[level.source]
        ages = [behind + level.top - i for i in range(level.rows)]
        yield f"V s = {' + '.join(f'k{source}[{age}]' for age in ages)};"
        yield from self._across(level, "s")
        if level.theta_in:
            yield f"V th = {' + '.join(f't{source}[{age}]' for age in ages)};"
            yield from self._across(level, "th")
        if level.biased:
            yield f"s = s + bias{n};"
        if not level.theta_in:
            yield f"V th = {'s' if level.trainable and level.theta_out else 'broadcast(0)'};"
        elif level.trainable and level.theta_out:
            yield "th = th + s;"
        if level.skip >= 0:
            age = self._lag[n] - self._lag[level.skip]
            scale = f"broadcast({number(level.skip_scale, self._layout.dtype)})"
            yield f"s = mad(k{level.skip}[{age}], {scale}, s);"
            if level.theta_skip:
                yield f"th = mad(t{level.skip}[{age}], {scale}, th);"
        pixels = "s, s"
        if level.activation != IDENTITY:
            at = self._layout.profiles[n]
            yield f"const V xv = look(x + ({at} + r * {level.w}), p.x);"
            yield f"const V zv = look(z + ({at} + (r + di) * {level.w}), p.z);"
            yield "if (same) s = xv * zv;"
            pixels = "xv, zv"
        yield "k = theta = broadcast(0);"
        yield "V factor = s;"
        yield f"{_DUALS[level.activation]}::dual<Level{n}>({pixels}, s, same, k, factor);"
        if level.theta_out:
            yield "theta = th * factor;"

    def _across(self, level: LoweredLevel, name: str) -> Iterator[str]:
        """Add neighbouring columns."""
        offsets = self._offsets(level)
        if not offsets:
            return
        width = self._levels[level.source].w
        yield f"const V of_{name} = {name};"
        for o in offsets:
            shifted = f"shuffle_{'down' if o > 0 else 'up'}(of_{name}, {abs(o)})"
            yield f"{name} = mad({_mask(width, o)}, {shifted}, {name});"

    def _tap_at(self, tap: int) -> tuple[int, int]:
        """Return where the weights of a tap begin, of rows and of columns."""
        grids = [self._layout.grid(index) for index in range(tap)]
        return sum(h * h for h, _ in grids), sum((2 * w - 1) * w for _, w in grids)

    def _row_weight(self, tap: int) -> str:
        h, _ = self._layout.grid(tap)
        weights = self._layout.program.taps[tap].weights(h)
        heights = np.unique(self._grid.slices[:, 0]).tolist()
        if all((weights[di + h - 1, : h - di] == 1).all() for di in heights if di < h):
            return ""
        return f"pair.row_weights[{self._tap_at(tap)[0]} + di * {h} + r]"

    def _after(self) -> Iterator[str]:
        for f, field in enumerate(self._layout.fields):
            if field.level not in self._numbers:
                continue
            _, w = self._layout.grid(field.tap)
            weights = self._layout.program.taps[field.tap].weights(w)
            used = {abs(dj) for dj in self._grid.slices[:, 1].tolist() if abs(dj) < w}
            plain = all((weights[dj + w - 1, : w - dj] == 1).all() for dj in used)
            at = "nullptr" if plain else f"pair.column_weights + {self._tap_at(field.tap)[1]}"
            yield f"  read_out(part + {f}, sum{f}, p, {w}, {at});"


def _mask(width: int, offset: int) -> str:
    return f"m{width}_{'r' if offset > 0 else 'l'}{abs(offset)}"


def _windows(gather: Gather, lowered: Lowered, table: int, pack: int) -> str:
    level = lowered.levels[gather.level]
    down, across = gather.most
    early = -(-gather.early // level.stride_across)
    numbers = {
        "down": down,
        "across": across,
        "longest": gather.longest,
        "early": early,
        "apart": int(gather.tallest <= level.stride_down),
        "stride_down": level.stride_down,
        "stride_across": level.stride_across,
        "fields": level.fields,
        "width": lowered.levels[gather.source].w,
        "table": table,
        "pack": pack,
    }
    values = ", ".join(f"{name} = {value}" for name, value in numbers.items())
    return f"struct Windows{gather.level} {{\n  static constexpr int {values};\n}};\n"


def gathering(lowered: Lowered, rounds: Rounds) -> tuple[dict[int, int], int]:
    """Return where the memory of each level that gathers begins, and how much it is in all."""
    found: dict[int, int] = {}
    at = 0
    for k, gathers in enumerate(rounds.gathers):
        for gather in gathers:
            found[gather.level] = at
            at += -(-rounds.rooms[k + 1] * lowered.levels[gather.level].fields // 4) * 4
    return found, at


_CALL: Sequence[tuple[str, str]] = (
    ("const Scalar*", "left"),
    ("const Scalar*", "right"),
    ("const int*", "rows"),
    ("const int*", "columns"),
    ("int", "n_rows"),
    ("int", "n_columns"),
    ("int", "pairwise"),
    ("const int*", "rounds"),
    ("int", "n_rounds"),
    ("const int*", "tasks"),
    ("const int*", "joins"),
    ("const Scalar*", "row_weights"),
    ("const Scalar*", "column_weights"),
    ("const double*", "factors"),
    ("const long long*", "identity_left"),
    ("const long long*", "identity_right"),
    ("const double*", "scale_left"),
    ("const double*", "scale_right"),
    ("double*", "out"),
)


@lru_cache(maxsize=64)
def stages_source(
    layout: StagesLayout, rounds: Rounds, warps: int, *, room: bool, samples: bool
) -> str:
    """Return the source of ``wl_stages``: all slices of general programs, a block for each pair.

    Parameters
    ----------
    layout : StagesLayout
    rounds : Rounds
    warps : int
        Of a block.
    room, samples : bool
        Whether coarse slices, and the samples of a pair, lie in shared memory.
    """
    lowered, dtype = layout.lowered, layout.dtype
    rooms, size = gathering(lowered, rounds)
    n_fields = len(layout.fields)
    of: list[int] = []
    for field in layout.fields:
        stops = np.cumsum([grid.n_levels for grid in lowered.stages])
        of.append(int(np.searchsorted(stops, field.level, side="right")))
    constants = {
        "kWarps": warps,
        "kFields": n_fields,
        "kSample": layout.sample,
        "kRoom": size,
        "kTask": rounds.tasks.shape[1],
    }
    text = scalar_text(dtype)
    flags = {"STAGED": 0, "TILED": 0, "SAMPLES_SHARED": samples}
    text += "".join(f"#define WL_{name} {int(value)}\n" for name, value in flags.items())
    text += "".join(f"constexpr int {name} = {value};\n" for name, value in constants.items())
    text += f"#define WL_STAGE_OF {{{', '.join(map(str, of))}}}\n"
    text += shared_text("lanes.cuh", "duals.cuh", "stages.cuh") + "\n"
    for n, level in enumerate(lowered.levels):
        if level.kind not in (IMAGE, GATHER):
            text += f"struct Level{n} {{\n{_layer(level, dtype)}}};\n"
    for k, gathers in enumerate(rounds.gathers):
        table = 4 + 3 * rounds.packed[k]
        for gather in gathers:
            pack = rounds.packed[k]
            text += _windows(gather, lowered, table, pack)
            down, across = gather.most
            table += 3 * down + pack * across * (3 + down)
    stages = range(len(lowered.stages))
    text += "".join(_Stage(layout, rounds, k, rooms).text() for k in stages)
    cases = "".join(f"    case {k}: return stage_{k}(pair, task, part);\n" for k in stages)
    text += (
        "WL_FN void sweep(const Pair& pair, const int* task, Scalar* part) {\n"
        f"  switch (task[0]) {{\n{cases}  }}\n}}\n"
        "WL_FN void join_stage(Scalar* room, const int* j) {\n"
    )
    for k, gathers in enumerate(rounds.gathers):
        for gather in gathers:
            f = lowered.levels[gather.level].fields
            to = f"room + {rooms[gather.level]}"
            terms = ", ".join(f"j[{i}] * {f}" for i in range(1, 5))
            text += f"  if (j[0] == {k + 1}) join({to}, {terms});\n"
    text += "}\n"
    signature = ", ".join(f"{kind} {name}" for kind, name in _CALL)
    values = ", ".join(name for _, name in _CALL)
    own = "memory + (long long){} * kRoom"
    return text + (
        "#if defined(__CUDACC__)\n"
        "extern __shared__ double2 wl_memory[];\n"
        f'extern "C" __global__ void __launch_bounds__({32 * warps}) wl_stages({signature}, '
        "Scalar* memory) {\n"
        "  double* const total = reinterpret_cast<double*>(wl_memory);\n"
        "  Scalar* const begin = reinterpret_cast<Scalar*>(wl_memory + (kFields + 1) / 2);\n"
        f"  Scalar* const room = {'begin' if room else own.format('blockIdx.x')};\n"
        f"  Scalar* const samples = begin + {'kRoom' if room else '0'};\n"
        f"  Scalar* const parts = samples + {'2 * kSample' if samples else '0'};\n"
        f"  run_stages(Call{{{values}}}, room, samples, parts, total, int(blockIdx.x), "
        "int(gridDim.x));\n}\n"
        "#else\n"
        "static Scalar wl_room[kRoom + 1], wl_samples[2 * kSample];\n"
        "static Scalar wl_parts[2 * kWarps * kFields];\n"
        "static double wl_total[kFields];\n"
        f'extern "C" void wl_stages(int n_blocks, {signature}, Scalar* memory) {{\n'
        "  for (int block = 0; block < n_blocks; ++block)\n"
        f"    run_stages(Call{{{values}}}, {'wl_room' if room else own.format('block')}, "
        "wl_samples, wl_parts, wl_total, block, n_blocks);\n}\n"
        "#endif\n"
    )
