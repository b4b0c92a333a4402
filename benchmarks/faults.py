"""Faults at random, and what becomes of a job: nothing wrong in silence, nothing lost.

usage: python benchmarks/faults.py [--faults 2500] [--seed 0] [--out docs/records/faults.json]

In each trial a small job works in a folder (tiles of a kernel, by itself or by workers to whom its
inputs travel; a factor in tiles; conjugate gradients with a checkpoint; a saved model; a fit) and
meets one fault or two: it is killed at a system call, the disk is full or broken at one, a file is
damaged, lost, taken from another job, or changes places with another, a writer comes late. Then the
same is called again, by one who follows what error messages say. Every result has to be that of a
job without faults, to the last bit, or an error that names the file and says what to do; what is
whole is not computed again; and in the end no lock is held and no half-written file is left.

Prints a table, writes a record, and ends with 1 if something was silent or lost.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import widelimit as wl
from widelimit.bench.record import write_json
from widelimit.experiments.environment import describe_environment
from widelimit.files import atomic_file, is_partial
from widelimit.machine import blas_on_one_thread
from widelimit.matrices import computation
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore
from widelimit.solvers import TiledFactor, conjugate, solve_conjugate, solve_tiled

N, TILE = 36, 16  # three tiles on a side, the last one narrow
NET = wl.ntk_dense(2)
KERNEL, FACTOR = "kernel.zarr", "factor.zarr"


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """Something small that is made in a folder; `variant` says of which data."""

    name: str
    # Begin, or go on, and return the bits of the result; verify, if there is such an option.
    run: Callable[[Path, int, bool], bytes]
    # Return the bits of what is there.
    read: Callable[[Path, int], bytes]
    verifies: bool = False
    tiles: str | None = None  # name of its store of tiles
    before: Callable[[Path], None] | None = None  # what is in the folder at first
    travels: bool = False


def samples(variant: int) -> np.ndarray:
    return np.random.default_rng(variant).normal(size=(N, 5))


def targets(variant: int) -> np.ndarray:
    return np.random.default_rng(variant + 10).normal(size=(N, 2))


_matrices: dict[int, np.ndarray] = {}


def matrix(variant: int) -> np.ndarray:
    if variant not in _matrices:
        _matrices[variant] = wl.kernel(NET, samples(variant), dtype="float64")
    return _matrices[variant]


def make_kernel(folder: Path, variant: int, verify: bool) -> bytes:
    k = wl.gram(NET, samples(variant), store=folder / KERNEL, tile=TILE, threads=1, verify=verify)
    return np.asarray(k).tobytes()


def read_kernel(folder: Path, variant: int) -> bytes:
    return np.asarray(wl.open_gram(folder / KERNEL)).tobytes()


class Workers(Executor):
    """Runs each task at once, as a process that has just begun would."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self._before, self._number = before, 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        computation.kept.forget()
        self._number += 1
        try:
            self._before(self._number - 1)
            future.set_result(fn(*args, **kwargs))
        except (Exception, CancelledError) as error:
            future.set_exception(error)
        return future


def make_on_workers(
    folder: Path, variant: int, verify: bool, executor: Executor | None = None
) -> bytes:
    k = wl.gram(
        NET,
        samples(variant),
        store=folder / KERNEL,
        tile=TILE,
        verify=verify,
        executor=Workers() if executor is None else executor,
    )
    return np.asarray(k).tobytes()


def make_factor(folder: Path, variant: int, verify: bool) -> bytes:
    solution = solve_tiled(
        matrix(variant),
        targets(variant),
        0.1,
        store=folder / FACTOR,
        tile=TILE,
        threads=1,
        verify=verify,
    )
    assert solution.factor is not None
    return solution.value.tobytes() + solution.factor.inverse_diagonal().tobytes()


def read_factor(folder: Path, variant: int) -> bytes:
    factor = TiledFactor(TileStore.open(open_objects(folder / FACTOR)), None, 1)
    return factor.solve(targets(variant)).tobytes() + factor.inverse_diagonal().tobytes()


def iterate(folder: Path, variant: int, verify: bool = False) -> bytes:
    solution = solve_conjugate(
        matrix(variant), targets(variant), 1e-3, tolerance=1e-10, checkpoint=folder / "checkpoint"
    )
    return solution.require().value.tobytes()


def fitted(variant: int) -> Any:
    if variant not in _models:
        model = wl.NTKRegressor(NET, ridge=0.1, standardise=False, threads=1)
        _models[variant] = model.fit(samples(variant), targets(variant))
    return _models[variant]


_models: dict[int, Any] = {}
EARLIER = 7  # variant of the model that is replaced


def save(folder: Path, variant: int, verify: bool = False) -> bytes:
    wl.save_model(fitted(variant), folder / "model", overwrite=True)
    return load(folder, variant)


def load(folder: Path, variant: int) -> bytes:
    return wl.load_model(folder / "model").predict(samples(3)).tobytes()


def fit(folder: Path, variant: int, verify: bool = False) -> bytes:
    model = wl.NTKRegressor(
        NET, ridge=0.1, standardise=False, threads=1, store=folder / "fits", memory="64GB"
    )
    return model.fit(samples(variant), targets(variant)).dual_coef_.tobytes()


JOBS = [
    Job("kernel", make_kernel, read_kernel, True, KERNEL),
    Job("kernel on workers", make_on_workers, read_kernel, True, KERNEL, travels=True),
    Job("factor", make_factor, read_factor, True, FACTOR),
    Job("checkpoint", iterate, iterate),
    Job("model", save, load, before=lambda folder: None),
    Job("model replaced", save, load, before=lambda folder: void(save(folder, EARLIER))),
    Job("fit", fit, fit),
]


def void(_: object) -> None:
    """Return nothing."""


# ---------------------------------------------------------------- disks


WRITES = {"write", "sync", "create", "mkdir", "rename"}
# What a handle does: such errors of the system name no file.
NAMELESS = {"write", "sync", "lock", "read"}


class Disk:
    """The file operations below a folder, counted; at one of them something happens.

    Parameters
    ----------
    folder : Path
    at : int or None
        Which one.
    act : callable
        What happens: it may raise, or end the process.
    half : bool
        Whether, of what is written then, one half is.
    lasting : bool
        Whether it happens to whatever is written from then on, too.
    """

    def __init__(
        self,
        folder: Path,
        at: int | None = None,
        act: Callable[[str, str], None] = lambda what, path: None,
        *,
        half: bool = False,
        lasting: bool = False,
    ) -> None:
        self._folder, self._at, self._act = str(folder), at, act
        self._half, self._lasting = half, lasting
        self._lock = threading.Lock()
        self.seen: list[str] = []

    def _happens(self, what: str) -> bool:
        with self._lock:
            number = len(self.seen)
            self.seen.append(what)
        later = self._lasting and self._at is not None and number > self._at and what in WRITES
        return number == self._at or later

    def _step(self, what: str, place: Any) -> None:
        if isinstance(place, int):
            with suppress(OSError):
                place = os.readlink(f"/proc/self/fd/{place}")
        inside = isinstance(place, str | Path) and str(place).startswith(self._folder)
        if inside and self._happens(what):
            self._act(what, str(place))

    def write(self, file: Any, name: str, content: Any) -> int:
        if self._happens("write"):
            if self._half:
                file.write(content[: len(content) // 2])
                file.flush()
            self._act("write", name)
        return file.write(content)

    @contextmanager
    def patched(self) -> Iterator[Disk]:
        """Put it in the place of the functions of the system."""
        step, real_open, fdopen = self._step, Path.open, os.fdopen

        def wrapped(function: Callable[..., Any], what: str) -> Callable[..., Any]:
            def call(place: Any, *rest: Any, **options: Any) -> Any:
                handle = place.fileno() if hasattr(place, "fileno") else place
                step(what, handle)
                return function(place, *rest, **options)

            return call

        def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            writes = set(mode) & set("wxa")
            step("create" if writes else "open", path)
            file = real_open(path, mode, *rest, **options)
            if writes and str(path).startswith(self._folder):
                return _File(file, self, str(path))
            return file

        def from_handle(handle: int, *rest: Any, **options: Any) -> Any:
            step("read", handle)
            return fdopen(handle, *rest, **options)

        functions = {
            "open": "open",
            "fsync": "sync",
            "replace": "rename",
            "rename": "rename",
            "mkdir": "mkdir",
            "unlink": "delete",
            "scandir": "list",
            "listdir": "list",
        }
        with (
            mock.patch.multiple(
                os,
                fdopen=from_handle,
                **{name: wrapped(getattr(os, name), what) for name, what in functions.items()},
            ),
            mock.patch.object(pathlib.Path, "open", opened),
            mock.patch.object(fcntl, "flock", wrapped(fcntl.flock, "lock")),
        ):
            yield self


class _File:
    """A file that is written to, by way of a disk."""

    def __init__(self, file: Any, disk: Disk, name: str) -> None:
        self._file, self._disk, self._name = file, disk, name

    def write(self, content: Any) -> int:
        return self._disk.write(self._file, self._name, content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def raising(number: int) -> Callable[[str, str], None]:
    """Return what fails as the system does."""

    def act(what: str, path: str) -> None:
        if what in NAMELESS:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), path)

    return act


def die(what: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def apart(call: Callable[[], object]) -> bool:
    """Call in a process of its own, and return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            with suppress(Exception):
                call()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


# ---------------------------------------------------------------- faults


@dataclass
class Trial:
    """One job in a folder of its own, and what has come of it."""

    job: Job
    folder: Path
    rng: random.Random
    templates: Templates
    faults: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # errors and warnings
    silent: list[str] = field(default_factory=list)  # wrong, and nobody was told
    left: list[str] = field(default_factory=list)  # locks, and half-written files
    lost: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        """Return what may be damaged, in an order that depends on the job alone."""
        every = self.folder.rglob("*")
        found = (path for path in every if path.is_file() and not path.is_symlink())
        return sorted((p for p in found if p.name != ".lock"), key=lambda p: kind_of(p, self))

    def pick(self) -> Path:
        """Choose a file, of each kind as often."""
        kinds: dict[str, list[Path]] = {}
        for path in self.files():
            name = path.relative_to(self.folder).as_posix()
            kind = next((k for k in ("/c/", "seals", "kept", "inputs") if k in name), path.name)
            kinds.setdefault(kind, []).append(path)
        return self.rng.choice(kinds[self.rng.choice(sorted(kinds))])


def kind_of(path: Path, trial: Trial) -> str:
    """Return the name of a file without what is drawn, or follows from data."""
    return nameless(path.relative_to(trial.folder))


def nameless(path: Path) -> str:
    return re.sub(r"[0-9a-f]{16,}", "*", path.as_posix())


class Templates:
    """Folders of finished jobs, to be copied."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[str, str], Path] = {}
        self._steps: dict[tuple[str, str, bool], list[str]] = {}
        self.expected: dict[str, bytes] = {}

    def __call__(self, job: Job, state: str) -> Path:
        """Return the folder "new", "done", of "other" data, or of a "twin": the same once more."""
        key = (job.name, state)
        if key not in self._made:
            folder = self._root / f"{job.name}-{state}".replace(" ", "-")
            folder.mkdir()
            if job.before is not None:
                job.before(folder)
            if state != "new":
                bits = job.run(folder, int(state == "other"), False)
                if state != "other":
                    assert self.expected.setdefault(job.name, bits) == bits
            self._made[key] = folder
        return self._made[key]

    def before(self, job: Job) -> list[bytes]:
        """Return the bits of what is there at first, if that can be read."""
        with suppress(OSError, ValueError):
            return [job.read(self(job, "new"), 0)]
        return []

    def steps(self, trial: Trial, state: str, verify: bool) -> list[str]:
        """Return what a run does to the disk."""
        key = (trial.job.name, state, verify)
        if key not in self._steps:
            folder = self._root / "-".join(map(str, key)).replace(" ", "-")
            shutil.copytree(self(trial.job, state), folder)
            with Disk(folder).patched() as disk:
                trial.job.run(folder, 0, verify)
            self._steps[key] = disk.seen
        return self._steps[key]


def during(trial: Trial, what: str) -> bool:
    """Something happens while the job runs: from its beginning, or over what is done."""
    state = trial.rng.choice(["new", "new", "new", "done"])
    verify = state == "done" and trial.job.verifies
    trial.templates(trial.job, "done")  # makes what is expected, too
    restore(trial, state)
    if trial.rng.random() < 0.5:
        with suppress(IndexError, FileNotFoundError):
            trial.rng.choice([p for p in trial.files() if "/c/" in str(p)]).unlink()
    steps = trial.templates.steps(trial, state, verify)
    if what == "disk full":
        allowed = [at for at, step in enumerate(steps) if step in WRITES]
    else:
        allowed = list(range(len(steps)))
    at = trial.rng.choice(allowed)
    half, lasting = trial.rng.random() < 0.5, trial.rng.random() < 0.5
    number = errno.ENOSPC if what == "disk full" else errno.EIO
    act = die if what == "killed" else raising(number)
    disk = Disk(trial.folder, at, act, half=half, lasting=lasting and what != "killed")

    def call() -> bytes:
        with disk.patched():
            return trial.job.run(trial.folder, 0, verify)

    if what == "killed":
        return apart(call)
    attempt(trial, call)
    return len(disk.seen) > at


def kill_a_worker(trial: Trial) -> bool:
    """One of those to whom tasks are handed out is killed, the others go on."""
    restore(trial, "new")
    at, task = trial.rng.randrange(40), trial.rng.randrange(6)
    half = trial.rng.random() < 0.5
    killed: list[bool] = []

    class Killing(Workers):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self._number == task:
                with Disk(trial.folder, at, die, half=half).patched():
                    killed.append(apart(lambda: fn(*args, **kwargs)))
                self._number += 1
                future = Future[Any]()
                future.set_exception(CancelledError())
                return future
            return super().submit(fn, *args, **kwargs)

    attempt(trial, lambda: make_on_workers(trial.folder, 0, False, Killing()))
    return any(killed)


def damage_inputs(trial: Trial) -> bool:
    """Inputs are damaged on their way to workers."""
    restore(trial, "new")
    task = trial.rng.randrange(6)

    def before(number: int) -> None:
        if number >= task:
            (path,) = (trial.folder / KERNEL / "inputs").iterdir()
            path.write_bytes(damaged(path.read_bytes(), trial.rng))

    attempt(trial, lambda: make_on_workers(trial.folder, 0, False, Workers(before)))
    return True


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return a content that differs."""
    size = len(content)
    match rng.choice(["flip", "flip", "cut", "empty", "longer", "noise"]):
        case "flip" if size:
            at = rng.randrange(size)
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case "cut" if size:
            return content[: rng.randrange(size)]
        case "longer":
            return content + rng.randbytes(rng.randrange(1, 9))
        case "noise" if size:
            return rng.randbytes(size)
        case _:
            return b"" if size else b"0"


def damage(trial: Trial) -> bool:
    path = trial.pick()
    path.write_bytes(damaged(path.read_bytes(), trial.rng))
    return True


def lose(trial: Trial) -> bool:
    trial.pick().unlink()
    return True


def take(trial: Trial, state: str) -> bool:
    """Put a file, or all files of one kind, of another folder in the place of our own."""
    other = trial.templates(trial.job, state)
    theirs = {nameless(p.relative_to(other)): p for p in other.rglob("*") if p.is_file()}
    path = trial.pick()
    chosen = [path]
    if trial.rng.random() < 0.3:  # a tile with its seal, an array with its document
        chosen.append(trial.pick())
    if trial.rng.random() < 0.2 and trial.job.before is None:  # else it is another model, whole
        chosen = [p for p in trial.files() if p.parent == path.parent]
    for one in chosen:
        found = theirs.get(kind_of(one, trial))
        if found is not None:
            shutil.copyfile(found, one)
    return True


def swap(trial: Trial) -> bool:
    """Two files change places, or one is copied over another; tiles maybe with their seals."""
    a = trial.pick()
    same = [p for p in trial.files() if p != a and p.suffix == a.suffix]
    if not same:
        return False
    b = trial.rng.choice(same)
    pairs = [(a, b)]
    if "/c/" in str(a) and "/c/" in str(b) and trial.rng.random() < 0.5:
        pairs.append((seal_of(a), seal_of(b)))
    both = trial.rng.random() < 0.7
    for one, two in pairs:
        if one.is_file() and two.is_file():
            content = one.read_bytes()
            one.write_bytes(two.read_bytes())
            if both:
                two.write_bytes(content)
    return True


def seal_of(tile: Path) -> Path:
    store = next(p for p in tile.parents if p.name.endswith(".zarr"))
    (folder, *_) = sorted((store / "seals").iterdir())
    return folder / tile.relative_to(store / "c")


def lead_astray(trial: Trial) -> bool:
    """A file becomes a folder, or a link to that of another job."""
    path = trial.pick()
    other = trial.templates(trial.job, "other")
    theirs = {nameless(p.relative_to(other)): p for p in other.rglob("*") if p.is_file()}
    found = theirs.get(kind_of(path, trial))
    path.unlink()
    if found is None or trial.rng.random() < 0.5:
        path.mkdir()
    else:
        path.symlink_to(found)
    return True


def write_late(trial: Trial) -> bool:
    """A job is suspended, its store made anew by another one, and it goes on."""
    name = trial.job.tiles
    assert name is not None
    shutil.rmtree(trial.folder)
    shutil.copytree(trial.templates(trial.job, "other"), trial.folder)
    stale = TileStore.open(open_objects(trial.folder / name))
    key = trial.rng.choice(sorted(stale.finished()))
    values = stale.read(key).copy()
    shutil.rmtree(trial.folder)
    shutil.copytree(trial.templates(trial.job, "done"), trial.folder)
    if trial.rng.random() < 0.5:
        with mock.patch.object(TileStore, "_check_current", return_value=None):
            stale.write(key, values)
    else:
        try:
            stale.write(key, values)
            trial.silent.append("a stale writer was not told")
        except StoreError as error:
            trial.words.append(str(error))
    return True


def write_slowly(trial: Trial) -> bool:
    """A worker of an earlier run is still writing a tile, while another run cleans up."""
    name = trial.job.tiles
    assert name is not None
    tiles = [p for p in trial.files() if "/c/" in str(p)]
    tile = trial.rng.choice(tiles)
    content = tile.read_bytes()
    trial.rng.choice(tiles).unlink()
    try:
        with atomic_file(tile) as file:
            file.write(content[:10])
            attempt(trial, lambda: trial.job.run(trial.folder, 0, True))
            file.write(content[10:])
    except OSError as error:
        trial.lost.append(f"what a worker was writing was deleted: {error}")
    return True


FAULTS: dict[str, Callable[[Trial], bool]] = {
    "killed": lambda trial: during(trial, "killed"),
    "disk full": lambda trial: during(trial, "disk full"),
    "disk broken": lambda trial: during(trial, "disk broken"),
    "worker killed": kill_a_worker,
    "inputs damaged": damage_inputs,
    "file damaged": damage,
    "file lost": lose,
    "of another job": lambda trial: take(trial, "other"),
    "of an earlier life": lambda trial: take(trial, "twin"),
    "swapped": swap,
    "folder or link": lead_astray,
    "late writer": write_late,
    "slow writer": write_slowly,
}
# What may follow another fault; all others begin anew.
SECOND = ["file damaged", "file lost", "of another job", "of an earlier life", "swapped"]
NEEDS: dict[str, Callable[[Job], object]] = {
    "worker killed": lambda job: job.travels,
    "inputs damaged": lambda job: job.travels,
    "late writer": lambda job: job.tiles,
    "slow writer": lambda job: job.tiles,
}


# ---------------------------------------------------------------- what has to follow


def restore(trial: Trial, state: str) -> None:
    shutil.rmtree(trial.folder, ignore_errors=True)
    shutil.copytree(trial.templates(trial.job, state), trial.folder)


def attempt(
    trial: Trial, call: Callable[[], bytes], *also: bytes
) -> tuple[bytes | None, BaseException | None]:
    """Call; note what is wrong with the result, or with the error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found, error = call(), None
        except Exception as raised:
            found, error = None, raised
    trial.words += [str(warning.message) for warning in caught]
    if found is not None and found not in (trial.templates.expected[trial.job.name], *also):
        trial.silent.append("another result")
    if error is not None:
        trial.words.append(str(error))
        why = wrong_with(error, trial.folder)
        if why:
            trial.lost.append(f"{why}: {''.join(traceback.format_exception(error))}")
    return found, error


def wrong_with(error: Exception, folder: Path) -> str:
    """Return what an error lacks."""
    if not isinstance(error, ValueError | OSError):
        return "an error of no kind that is promised"
    if str(folder) not in str(error):
        return "an error that names no file"
    system = isinstance(error, OSError) and error.errno in (errno.EIO, errno.ENOSPC)
    there = isinstance(error, FileNotFoundError)
    if not (system or there) and not re.search("run the|give |delete|save |again", str(error)):
        return "an error that says not what to do"
    return ""


def follow(trial: Trial, error: Exception) -> bytes:
    """Do what a message says, as its reader would: one of what it offers."""
    job, text, offers = trial.job, str(error), []
    if "verify=True" in text and job.verifies:
        offers.append(lambda: job.run(trial.folder, 0, True))
    named = re.findall(rf"{re.escape(str(trial.folder))}/[^\s:;,'\"()]+", text)
    if "this is a folder" in text and "mend this" in text:
        offers.append(lambda: remove(Path(named[-1])) or job.run(trial.folder, 0, False))
    if "delete" in text and named:
        offers.append(lambda: remove(Path(named[-1])) or job.run(trial.folder, 0, False))
    if "another path" in text or "another folder" in text:
        offers.append(lambda: move(trial) or job.run(trial.folder, 0, False))
    if not offers:
        offers = [lambda: job.run(trial.folder, 0, False)]
    return trial.rng.choice(offers)()


def move(trial: Trial) -> None:
    """Go on in another folder."""
    trial.folder = Path(tempfile.mkdtemp(dir=trial.folder.parent))


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def whole_files(trial: Trial) -> list[Path]:
    """Return the tiles, or the preconditioner, that are right: nobody has to make them again."""
    if trial.job.run is iterate:
        name = Path("checkpoint") / "preconditioner.npz"
        mine, right = (f / name for f in (trial.folder, trial.templates(trial.job, "done")))
        there = mine.is_file() and mine.read_bytes() == right.read_bytes()
        return [mine] if there else []
    if trial.job.tiles is None:
        return []
    place = trial.folder / trial.job.tiles
    try:
        store = TileStore.open(open_objects(place))
        keys = sorted(store.finished())
    except (OSError, ValueError):
        return []
    right = set(keys) - set(store.damaged(keys))
    return [place / "c" / str(i) / str(j) for i, j in right]


def stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def judge(trial: Trial) -> None:
    """Read, go on, do what messages say, verify, and read again."""
    job, first = trial.job, trial.folder
    earlier = [] if job.before is None else trial.templates.before(job)
    attempt(trial, lambda: job.read(trial.folder, 0), *earlier)
    whole = {path: stamp(path) for path in whole_files(trial)}
    _, error = attempt(trial, lambda: job.run(trial.folder, 0, False))
    if error is None and any(not p.exists() or stamp(p) != whole[p] for p in whole):
        trial.lost.append("what was right was made again")
    for _ in range(4):
        if error is not None:
            _, error = attempt(trial, lambda last=error: follow(trial, last))
    calls = [lambda: job.run(trial.folder, 0, job.verifies), lambda: job.read(trial.folder, 0)]
    for call in calls:
        if error is None:
            _, error = attempt(trial, call)
    if error is not None:
        trial.lost.append(f"nothing that messages say has helped: {error}")
    for folder in {first, trial.folder}:
        tidy(trial, folder)


def tidy(trial: Trial, folder: Path) -> None:
    """Note locks that are held, and half-written files, where all has been set right."""
    for path in folder.rglob("*"):
        if path.name == ".lock":
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    trial.left.append(str(path))
        if is_partial(path.name) and folder == trial.folder:
            trial.left.append(str(path))


# ---------------------------------------------------------------- all of it


TWO = "two of these"
COLUMNS = ("trials", "noticed", "harmless", "silent", "lost", "left")


def run_trial(
    templates: Templates, root: Path, rng: random.Random, kinds: Sequence[str], jobs: Sequence[Job]
) -> Trial:
    """Run one trial; which one depends on what is drawn alone."""
    pairs = [(job, kind) for job in jobs for kind in kinds if kind not in NEEDS or NEEDS[kind](job)]
    job, first = rng.choice(pairs)
    both = [kind for kind in SECOND if kind in kinds] if rng.random() < 0.25 else []
    second = rng.choice(both) if both else None
    trial = Trial(job, root / "trial", rng, templates)
    restore(trial, "done")
    for name in (first, second):
        with suppress(IndexError):  # there is no file left
            if name is not None and FAULTS[name](trial):
                trial.faults.append(name)
    if trial.faults:
        judge(trial)
    return trial


def run(
    faults: int,
    seed: int,
    say: Callable[[str], None],
    kinds: Sequence[str] = tuple(FAULTS),
    jobs: Sequence[Job] = tuple(JOBS),
) -> dict[str, Any]:
    """Run trials until there were so many faults, of some kinds; return plain data."""
    environment = asdict(describe_environment())
    rows: dict[tuple[str, str], Counter[str]] = {}
    details: list[str] = []
    done = number = 0
    often = mock.patch.object(conjugate, "_CHECKPOINT_SECONDS", 0.0)
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None  # no disk has to be waited for
    with tempfile.TemporaryDirectory(dir=place) as name, often, blas_on_one_thread():
        root = Path(name).resolve()
        (root / "templates").mkdir()
        templates = Templates(root / "templates")
        while done < faults:
            trial = run_trial(templates, root, random.Random(f"{seed} {number}"), kinds, jobs)
            for folder in root.iterdir():
                if folder.name != "templates":
                    shutil.rmtree(folder)
            number += 1
            if not trial.faults:
                continue
            done += len(trial.faults)
            label = trial.faults[0] if len(trial.faults) == 1 else TWO
            row = rows.setdefault((trial.job.name, label), Counter())
            row["trials"] += 1
            row["noticed" if trial.words else "harmless"] += 1
            for what in ("silent", "lost", "left"):
                found: list[str] = getattr(trial, what)
                row[what] += bool(found)
                for text in found:
                    details.append(f"trial {number - 1}, {trial.job.name}, {trial.faults}: {text}")
                    say(details[-1])
    return {
        "format": "widelimit.faults/1",
        "environment": environment,
        "seed": seed,
        "trials": sum(row["trials"] for row in rows.values()),
        "faults": done,
        "rows": [
            {"job": job, "fault": fault, **{column: row[column] for column in COLUMNS}}
            for (job, fault), row in sorted(rows.items())
        ],
        "details": details,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def render(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    head = f"{'job':<20}{'fault':<20}" + "".join(f"{name:>10}" for name in COLUMNS)
    lines = [head]
    for row in [*record["rows"], total(record)]:
        numbers = "".join(f"{row[name]:>10}" for name in COLUMNS)
        lines.append(f"{row['job']:<20}{row['fault']:<20}{numbers}")
    return "\n".join(lines)


def table(record: dict[str, Any]) -> str:
    """Return a line for each kind of fault, over all jobs, for docs/guarantees.md."""
    lines = [f"| fault | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for fault in [*FAULTS, TWO]:
        rows = [row for row in record["rows"] if row["fault"] == fault]
        lines.append(f"| {fault} | {' | '.join(f'{sum(r[c] for r in rows):,}' for c in COLUMNS)} |")
    sums = total(record)
    lines.append(f"| {record['faults']:,} in all | {' | '.join(f'{sums[c]:,}' for c in COLUMNS)} |")
    return "\n".join(lines)


def total(record: dict[str, Any]) -> dict[str, Any]:
    sums = {name: sum(row[name] for row in record["rows"]) for name in COLUMNS}
    return {"job": f"{record['faults']} faults", "fault": "", **sums}


def is_good(record: dict[str, Any]) -> bool:
    """Return whether nothing was silent, lost, or left."""
    sums = total(record)
    return not (sums["silent"] or sums["lost"] or sums["left"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record = run(arguments.faults, arguments.seed, print)
    print(render(record))
    if arguments.out is not None:
        write_json(record, arguments.out)
    return 0 if is_good(record) else 1


if __name__ == "__main__":
    sys.exit(main())
