"""Count the instructions of the slice engine's hot loop, by purpose, from a build of it.

    python benchmarks/instruction_mix.py FILE [--dtype float64] [--isa avx2]

Needs GNU objdump, x86-64, and a FILE with symbols: the object file of one instruction set from
CMake's build folder (.../wl_kernels_v4.dir/.../kernels.cpp.o), or an _engine.so with
its symbols. Counts are per vector of entries: 16 element-layers in float32 with AVX-512.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Of kernels.cpp: Relu, kThetaOwn | kTrain | kOutK | kOutTheta, two rows: an inner layer.
_SPACE = "widelimit::(anonymous namespace)::"
INNER = (
    f"compute_rows<{{dtype}}, {_SPACE}Relu<{{dtype}}, (anonymous namespace)::Vec<{{dtype}}> >, "
    "60, 2, true, false>"
)
# The widest registers of each instruction set, best first.
REGISTER = {"avx512": "%zmm", "avx2": "%ymm", "sse4": "%xmm"}

# First match wins. Where the operands decide, see `classify`.
GROUPS = (
    ("fused multiply-add", r"vfn?m(add|sub)\w*"),
    ("multiplication", r"v?mul[ps][sd]"),
    ("addition, subtraction", r"v?(add|sub)[ps][sd]"),
    ("maximum, minimum", r"v?(max|min)[ps][sd]"),
    ("estimate of 1/sqrt", r"v?rsqrt\w*"),
    ("square root, division", r"v?(sqrt|div)[ps][sd]"),
    (
        "comparison, logic, selection",
        r"v?(cmp|and|andn|or|xor|blend|pand|pxor|por|ptern)\w*|kmov\w",
    ),
    ("broadcast of a register", r"v?(broadcast|pbroadcast|shuf|perm|unpck|insert|extract)\w*"),
    ("move between registers", r"v?mov[auhld]?[a-z]*[0-9]*"),
)
ARITHMETIC = ("fused multiply-add", "multiplication", "addition, subtraction", "maximum, minimum")


@dataclass(frozen=True)
class Instruction:
    address: int
    mnemonic: str
    operands: str

    @property
    def is_vector(self) -> bool:
        return bool(re.search(r"%[xyz]mm|%k[0-7]", self.operands))

    @property
    def touches_memory(self) -> bool:
        return "(" in self.operands and not self.mnemonic.startswith(("lea", "nop"))

    @property
    def target(self) -> int | None:
        """Address that a jump goes to."""
        found = re.match(r"([0-9a-f]+)\b", self.operands)
        return int(found[1], 16) if self.mnemonic.startswith("j") and found else None


def read_functions(listing: str, wanted: str) -> list[list[Instruction]]:
    """Functions whose demangled name contains `wanted`, from the output of ``objdump -dC``."""
    functions: list[list[Instruction]] = []
    inside = False
    for line in listing.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            inside = wanted in head[1] and ".cold" not in head[1]
            if inside:
                functions.append([])
        elif inside and (code := re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)$", line)):
            text = code[3].split("#")[0].strip()
            functions[-1].append(Instruction(int(code[1], 16), code[2], text))
    return functions


def find_hot_loop(function: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most vector instructions."""
    loops: list[list[Instruction]] = []
    for last in function:
        if last.target is not None and last.target <= last.address:
            loops.append([i for i in function if last.target <= i.address <= last.address])
    inner = [a for a in loops if not any(set(b) < set(a) for b in loops)]
    return max(inner, key=lambda loop: sum(i.is_vector for i in loop), default=[])


def widest_register(loop: list[Instruction]) -> str | None:
    """Kind of the widest vector registers in use: it tells the instruction set."""
    used = [r for r in REGISTER.values() if any(r in i.operands for i in loop)]
    return used[0] if used else None


def classify(instruction: Instruction) -> str:
    """Group of one instruction, by what it does rather than by what it is called."""
    name, operands = instruction.mnemonic, instruction.operands
    if not instruction.is_vector:
        return "jump" if name.startswith("j") else "scalar: addresses and counters"
    moves = re.fullmatch(r"v?(mov|broadcast|pbroadcast)\w*", name)
    if moves and instruction.touches_memory:
        return "store" if re.search(r"\)(\{[^}]*\})?$", operands) else "load"
    for group, pattern in GROUPS:
        if re.fullmatch(pattern, name):
            return group
    return f"other ({name})"


def count(loop: list[Instruction]) -> tuple[Counter[str], Counter[str], float]:
    """Instructions by group, notes, and how many vectors of entries one turn of the loop computes.

    An inner layer stores K and Theta of each entry, and nothing else but what it spills.
    """
    groups = Counter(classify(i) for i in loop)
    stack = [i for i in loop if i.touches_memory and re.search(r"\(%r[sb]p", i.operands)]
    spilled = sum(classify(i) == "store" and i.is_vector for i in stack)
    notes = Counter(
        {
            "arithmetic with an operand in memory (one more load)": sum(
                i.is_vector and i.touches_memory and classify(i) not in ("load", "store")
                for i in loop
            ),
            "of all: vector loads and stores of the stack (spills)": sum(
                i.is_vector for i in stack
            ),
        }
    )
    return groups, notes, (groups["store"] - spilled) / 2


def render(groups: Counter[str], notes: Counter[str], vectors: float, lanes: int) -> str:
    """Write the counts as a table."""
    names = [group for group, _ in GROUPS]
    order = ["load", "store", *names[:6], *names[6:]]
    order += sorted(set(groups) - set(order))
    lines = [f"{'group':<56}{'per vector':>11}"]
    lines += [f"{name:<56}{groups[name] / vectors:>11.2f}" for name in order if groups[name]]
    total = sum(groups.values())
    arithmetic = sum(groups[name] for name in ARITHMETIC)
    lines.append(f"{'all':<56}{total / vectors:>11.2f}")
    title = "multiply, add, FMA, max: the arithmetic of the bound"
    lines.append(f"{title:<56}{arithmetic / vectors:>11.2f}")
    lines += [f"{name:<56}{n / vectors:>11.2f}" for name, n in notes.items()]
    lines.append(
        f"one turn of the loop: {vectors:g} vectors of {lanes} entries, {total} instructions"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--isa", choices=list(REGISTER), default="avx512")
    parser.add_argument("--function", help="part of a demangled name instead of the inner layer's")
    parser.add_argument("--listing", action="store_true", help="print the loop, too")
    options = parser.parse_args()

    command = ["objdump", "-dC", "--no-show-raw-insn", str(options.file)]
    listing = subprocess.check_output(command, text=True)
    c_type = "float" if options.dtype == "float32" else "double"
    wanted = options.function or INNER.format(dtype=c_type)
    register = REGISTER[options.isa]
    loops = [find_hot_loop(function) for function in read_functions(listing, wanted)]
    found = [loop for loop in loops if widest_register(loop) == register]
    if not found:
        raise SystemExit(
            f"{options.file} has no loop of {wanted!r} with {register} registers: name a build "
            "with symbols, or the object file of one instruction set"
        )
    loop = max(found, key=len)
    if options.listing:
        print("\n".join(f"{i.address:x}: {i.mnemonic} {i.operands}" for i in loop))
    bits = {"%zmm": 512, "%ymm": 256, "%xmm": 128}[register]
    lanes = bits // (32 if options.dtype == "float32" else 64)
    print(f"{wanted}, {options.isa}")
    print(render(*count(loop), lanes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
