"""What the compiler makes of the CUDA kernels, without a card: registers, spills, instructions.

Needs CuPy (for NVRTC) and the tools that read machine code, all from PyPI::

    pip install 'widelimit[cuda13]' nvidia-cuda-nvrtc nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump
    scripts/gpu-report
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import widelimit as wl
from widelimit.backends.cuda.cupy_device import compile_cubin, compiler_version
from widelimit.backends.cuda.device import Card
from widelimit.backends.cuda.plan import Kernel, Kernels, plan_kernels
from widelimit.backends.cuda.source import Layout
from widelimit.network import Network
from widelimit.program import compile_networks

# Shared memory that a block may have, registers, warps and shared memory of a multiprocessor.
TARGETS = {
    "sm_80": (166_912, 65536, 64, 167_936),
    "sm_90": (232_448, 65536, 64, 233_472),
    "sm_100": (232_448, 65536, 64, 233_472),
}
CLASSES = ("FFMA", "FADD", "FMUL", "DFMA", "DADD", "DMUL", "SHFL", "MUFU", "LDS", "LDG", "MOV")


@dataclass(frozen=True)
class Code:
    """Machine code of one kernel.

    Parameters
    ----------
    registers, stack, spills : int
        Of a thread: registers, bytes, and instructions that move numbers to and from memory.
    instructions : int
        In all.
    loops : dict of int to Counter
        By the number of rows: instructions of the loop over inner layers, by class.
    """

    registers: int
    stack: int
    spills: int
    instructions: int
    loops: dict[int, Counter[str]]


def tool(name: str) -> str | None:
    """Return the path of a tool: that of PyPI, or one of an installed toolkit."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for found in Path(folder).glob(f"cu*/bin/{name}"):
            return str(found)
    return shutil.which(name)


def read_code(cubin: bytes) -> Code:
    """Take machine code apart.

    Raises
    ------
    FileNotFoundError
        If ``nvdisasm`` or ``cuobjdump`` is missing.
    """
    tools = {name: tool(name) for name in ("nvdisasm", "cuobjdump")}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        raise FileNotFoundError(f"{missing} not found: pip install nvidia-cuda-{missing[0]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        run = {"capture_output": True, "text": True, "check": True}
        usage = subprocess.run([tools["cuobjdump"], "-res-usage", path], **run).stdout  # type: ignore[call-overload]
        listing = subprocess.run([tools["nvdisasm"], "-c", path], **run).stdout  # type: ignore[call-overload]
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    instructions, labels, pending, loops = [], {}, [], {}
    for line in listing.splitlines():
        if label := re.match(r"^(\.L_\w+):", line):
            pending.append(label[1])
        elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*)", line):
            labels |= dict.fromkeys(pending, len(instructions))
            pending = []
            instructions.append(code[1].split(".")[0])
            target = re.search(r"`\((\.L_\w+)\)", code[2])
            if code[1].startswith("BRA") and target and target[1] in labels:
                body = Counter(instructions[labels[target[1]] :])
                rows = body["MUFU"]
                # One activation a row: the shortest such loop is that over inner layers.
                if rows and (rows not in loops or body.total() < loops[rows].total()):
                    loops[rows] = body
    spills = sum(name in ("LDL", "STL") for name in instructions)
    return Code(int(found[1]), int(found[2]), spills, len(instructions), loops)


def kernels_of(
    networks: list[Network], shape: tuple[int, int, int], dtype: str, target: str
) -> Kernels:
    """Return the kernels of networks for a target."""
    ((program, _),) = compile_networks(networks, shape, ("ntk",))
    shared = TARGETS[target][0]
    layout = Layout(program, dtype)  # type: ignore[arg-type]
    return plan_kernels(layout, Card(target, target, 132, shared, 80 * 2**30))


def heights(kernel: Kernel) -> list[int]:
    """Return the numbers of rows that a kernel goes through."""
    found = re.findall(r"run_rows<([\d, ]+)>", kernel.source)
    return [int(part) for part in found[0].split(",")]


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=[*TARGETS])
    parser.add_argument("--dtype", action="append", choices=["float32", "float64"])
    parser.add_argument("--depth", type=int, default=11)
    arguments = parser.parse_args()
    print(f"NVRTC {compiler_version()}; CNTK-GAP of depth {arguments.depth}, 32 x 32 x 3, filter 3")
    for target in arguments.target or TARGETS:
        _, registers, most, shared = TARGETS[target]
        for dtype in arguments.dtype or ("float32", "float64"):
            print(f"\n{target}, {dtype}")
            print("rows      warps  regs spill  shared  occup.  instr. a row, inner layer")
            for kernel in kernels_of(
                [wl.cntk_gap(arguments.depth)], (32, 32, 3), dtype, target
            ).kernels:
                code = read_code(compile_cubin(kernel.source, target))
                each = -(-code.registers // 8) * 8 * 32 * kernel.warps
                blocks = min(registers // each, shared // (kernel.shared + 1024))
                first = heights(kernel)[0]
                body = code.loops.get(first, Counter())
                a_row = {n: body[n] / first for n in CLASSES if body[n]}
                words = " ".join(f"{name} {value:.2f}" for name, value in a_row.items())
                print(
                    f"{first:>2}..{heights(kernel)[-1]:<5} {kernel.warps:>4} {code.registers:>5} "
                    f"{code.spills:>5} {kernel.shared:>7} {blocks * kernel.warps / most:>6.0%}  "
                    f"{body.total() / first:6.2f} = {words}"
                )


if __name__ == "__main__":
    main()
