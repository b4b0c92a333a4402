"""A kernel column of Table 1 on a card: five depths in one pass, kernels and exact solves.

The protocol of the paper (Section 5): the first n training images, pixels / 255, standardised by
channel with the mean and deviation of the training images, labels -0.1 and 0.9, no ridge, quadratic
loss, the largest output. The file is an ``.npz`` with uint8 images ``X_train, X_test`` and labels
``y_train, y_test``, or a ``.tar`` with images ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``::

    python benchmarks/table1.py cifar10.npz --readout gap --out table1.json
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import widelimit as wl
from widelimit.experiments.environment import describe_environment
from widelimit.files import check_file, write_atomically
from widelimit.keeping import keep
from widelimit.solvers import encode_labels, solve

DEPTHS = (3, 4, 6, 11, 21)
# Table 1 of Arora et al. 2019, in percent: all 50,000 training images, and the first 2,000.
PAPER = {
    ("v", 50000): (64.47, 65.52, 66.03, 65.90, 64.09),
    ("gap", 50000): (70.47, 75.93, 76.73, 77.43, 77.08),
    ("v", 2000): (40.94, 42.54, 43.43, 43.42, 42.53),
    ("gap", 2000): (49.71, 51.06, 51.73, 51.92, 52.22),
}


def read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of an ``.npz`` file."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in ("X_train", "y_train", "X_test", "y_test")}


def read_tar(path: Path) -> dict[str, Any]:
    """Return the images of a ``.tar`` of folders of JPEG files."""
    found: dict[str, list[tuple[str, bytes]]] = {"train": [], "test": []}
    with tarfile.open(path) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) >= 3 and parts[-3] in found and member.size < 2**20:
                file = tar.extractfile(member)
                assert file is not None
                found[parts[-3]].append((parts[-2], file.read()))
    names = sorted({name for name, _ in found["train"]})

    def decode(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    out: dict[str, Any] = {}
    with ThreadPoolExecutor() as pool:
        for part, files in found.items():
            out[f"X_{part}"] = np.array(list(pool.map(decode, [content for _, content in files])))
            out[f"y_{part}"] = np.array([names.index(name) for name, _ in files])
    return out


def table(record: dict[str, Any]) -> str:
    """Return the table of docs/results.md."""
    loo = all("leave_one_out" in row for row in record["rows"])
    head = "| depth | test accuracy | the paper | difference | " + "leave-one-out | " * loo
    lines = [head + "residual | solve, s |", "|---" * (6 + loo) + "|"]
    for row in record["rows"]:
        accuracy, error = 100 * row["accuracy"], 100 * row["standard_error"]
        paper = row["paper_percent"]
        known = paper is not None  # the paper has no figure for other numbers of images
        cells = [f"{row['depth']}", f"{accuracy:.2f}%", f"{paper:.2f}%" if known else "-"]
        cells.append(f"{accuracy - paper:+.2f} ± {error:.2f}" if known else f"± {error:.2f}")
        if loo:
            cells.append(f"{100 * row['leave_one_out']:.2f}%")
        cells += [f"{row['residual_norm']:.0e}", f"{row['solve_seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compute, solve, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--table", type=Path, help="print the table of a record, and do nothing")
    parser.add_argument("--readout", choices=["gap", "v"])
    parser.add_argument("--train", type=int, default=10**9)
    parser.add_argument("--test", type=int, default=10**9)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--method", default="card")
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--note", default="", help="what is to be said of the data")
    parser.add_argument("--commit", help="of the code, where it is not in its repository")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(table(json.loads(arguments.table.read_text())), end="")
        return
    if None in (arguments.path, arguments.readout, arguments.out):
        parser.error("path, --readout and --out are needed")
    check_file(arguments.out)
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.1f} s  {text}", flush=True)

    read = read_npz if arguments.path.suffix == ".npz" else read_tar
    data = read(arguments.path)
    x_train, y_train = (data[f"{n}_train"][: arguments.train] for n in "Xy")
    x_test, y_test = (data[f"{n}_test"][: arguments.test] for n in "Xy")
    mean = (x_train / 255).mean(axis=(0, 1, 2))
    std = np.sqrt(((x_train / 255 - mean) ** 2).mean(axis=(0, 1, 2)))
    x_train, x_test = (((x / 255 - mean) / std).astype("float32") for x in (x_train, x_test))
    say(f"{len(x_train)} training and {len(x_test)} test images")
    make = wl.cntk_gap if arguments.readout == "gap" else wl.cntk_vanilla
    networks = [make(depth) for depth in DEPTHS]
    times: dict[str, float] = {"read": time.perf_counter() - begin}
    start = time.perf_counter()
    k_train = wl.kernel(networks, x_train, backend=arguments.backend, progress=True)
    times["kernel_train"] = time.perf_counter() - start
    start = time.perf_counter()
    k_test = wl.kernel(networks, x_test, x_train, backend=arguments.backend, progress=True)
    times["kernel_test"] = time.perf_counter() - start
    say(f"kernels: {times['kernel_train']:.1f} s and {times['kernel_test']:.1f} s")
    rows: list[dict[str, Any]] = []
    targets = encode_labels(y_train, np.arange(10))
    paper = PAPER.get((arguments.readout, len(x_train)), (None,) * len(DEPTHS))
    for depth, k, cross, published in zip(DEPTHS, k_train, k_test, paper, strict=True):
        start = time.perf_counter()
        solution = solve(k, targets, method=arguments.method)
        outputs = cross @ solution.value
        accuracy = float(np.mean(outputs.argmax(axis=1) == y_test))
        row: dict[str, Any] = {
            "depth": depth,
            "accuracy": accuracy,
            "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / len(y_test))),
            "paper_percent": published,
            "status": solution.status.name,
            "residual_norm": solution.statistics.residual_norm,
            "reciprocal_condition": solution.statistics.reciprocal_condition,
            "solve_seconds": time.perf_counter() - start,
        }
        if arguments.leave_one_out and solution.factor is not None:
            start = time.perf_counter()
            left_out = solution.factor.left_out(targets, solution.value)
            row["leave_one_out"] = float(np.mean(left_out.argmax(axis=1) == y_train))
            row["leave_one_out_seconds"] = time.perf_counter() - start
        rows.append(row)
        say(f"depth {depth}: {100 * accuracy:.2f} % (paper {published}), {row}")
        del solution
    times["total"] = time.perf_counter() - begin
    pairs = len(x_train) * (len(x_train) + 1) // 2 + len(x_train) * len(x_test)
    environment = dataclasses.asdict(describe_environment())
    environment["commit"] = arguments.commit or environment["commit"]
    record = {
        "format": "widelimit.table1/1",
        "environment": environment,
        "data": {"file": arguments.path.name, "note": arguments.note},
        "readout": arguments.readout,
        "n_train": len(x_train),
        "n_test": len(x_test),
        "pairs": pairs,
        "backend": arguments.backend,
        "method": arguments.method,
        "seconds": times,
        "rows": rows,
    }
    if arguments.backend == "cuda":
        from widelimit.backends.cuda.cupy_device import find_devices

        record["card"] = dataclasses.asdict(find_devices()[0].card)
    text = json.dumps(record, indent=1) + "\n"
    keep(arguments.out, lambda path: write_atomically(path, text))


if __name__ == "__main__":
    main()
