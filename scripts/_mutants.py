"""Put faults into the package, one at a time, and see whether the tests notice.

tests/mutants.toml lists the faults: in which file or folder of the package, which text, what it
becomes, and the tests that should notice, the likeliest first. Each fault goes into a copy of the
package, and the compiled core is built again if the fault lies there (for one instruction set). The
tests run on the copy until one fails: then the fault is *killed*, as is one that runs into the time
limit. What is left are *survivors*: each shows a test that is missing, or code that is not needed.

What failed is run on a copy without a fault, too, where it has to pass. Rows are kept in a record,
and a fault is not tried again as long as its file is the same, and the test that killed it, or all
that it survived. Tests of Hypothesis draw from the seed, too.

The exit status is 1 if less than 90 % are killed, 2 if a fault or a test cannot be used.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fnmatch
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

PACKAGE = "widelimit"
LIST = "tests/mutants.toml"
ENOUGH = 0.9  # share that has to be killed
LEVELS = {"avx512": "v4", "avx2": "v3", "sse4": "v2", "plain": "plain"}  # names of CMakeLists.txt
BEST = "best"  # of those
SOURCES = (".py", ".cpp", ".hpp")
SEEDED = "--hypothesis-seed={}"


class Unusable(Exception):
    """A fault, or a test, that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Fault:
    """One edit of one file."""

    file: str  # below the package
    line: int
    old: str
    new: str
    mutated: str = field(repr=False)  # all of the file
    tests: tuple[str, ...]  # files of tests/, or tests in them: test_x.py::test_y
    level: str | None  # instruction set to build the core for; None: it is not in the core

    def __str__(self) -> str:
        before, after = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}:{self.line}: {before}  ->  {after}"


def read_faults(root: Path) -> list[Fault]:
    """Read the list of a repository; Unusable names every edit that does not fit the code."""
    package = root / "src" / PACKAGE
    sections: dict[str, Any] = tomllib.loads((root / LIST).read_text("utf-8"))
    faults: list[Fault] = []
    problems: list[str] = []
    for place, section in sections.items():
        files = _files(package / place)
        if not files:
            problems.append(f"{place}: there is no such file or folder in the package")
        texts = {path: path.read_text("utf-8") for path in files}
        for old, new, *tests in section["faults"]:
            found = [(path, text) for path, text in texts.items() for _ in range(text.count(old))]
            chosen = tuple(tests or section["tests"])
            problems += [f"{place}: {name}" for test in chosen if (name := _missing(root, test))]
            if len(found) != 1 or old == new:
                problems.append(f"{place}: {old!r} occurs {len(found)} times, not once")
                continue
            ((path, text),) = found
            at = text.index(old)
            mutated = text[:at] + new + text[at + len(old) :]
            name, line = path.relative_to(package).as_posix(), text.count("\n", 0, at) + 1
            level = None if path.suffix == ".py" else section.get("level", BEST)
            faults.append(Fault(name, line, old, new, mutated, chosen, level))
    if problems:
        raise Unusable(
            f"{LIST} must follow the code: mend or drop\n  " + "\n  ".join(dict.fromkeys(problems))
        )
    return faults


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix in SOURCES)
    return [place] if place.is_file() else []


def _missing(root: Path, test: str) -> str | None:
    """Say what is not there of a test; None if all is."""
    name, *inside = test.split("::")
    path = root / "tests" / name
    if not path.is_file():
        return f"there is no file tests/{name}"
    text = path.read_text("utf-8")
    for part in inside:
        if not re.search(rf"^\s*(def|class) {re.escape(part.partition('[')[0])}\b", text, re.M):
            return f"there is no {part} in tests/{name}"
    return None


# ---------------------------------------------------------------- a copy of the package


class Copy:
    """A copy of the package in a folder, with at most one fault in it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._source, self._path = root / "src" / PACKAGE, folder / "package"
        self._level: str | None = None  # that the engine was built for; None: as installed
        self._process: subprocess.Popen[bytes] | None = None
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(self._source, self._path / PACKAGE, ignore=ignore)
        self._use_engine(_installed())
        # Once: what a fault changes is compiled at each import, the rest is not.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(self._path)], check=True)

    def run(self, fault: Fault, limit: float, seed: int) -> tuple[bool, str]:
        """Run the tests of a fault with it; return what `test` does."""
        source, target = self._source / fault.file, self._path / PACKAGE / fault.file
        self.build(fault.level, fault)
        if not fault.level:
            target.write_text(fault.mutated, "utf-8")
            later = source.stat().st_mtime + 10  # bytecode is told by time and size
            os.utime(target, (later, later))
        try:
            return self.test(fault.tests, limit, seed)
        finally:
            shutil.copy2(source, target)

    def build(self, level: str | None, fault: Fault | None = None) -> None:
        """Build the core, with a fault, for one instruction set; None: take the installed one."""
        if level is None:
            if self._level is not None:
                self._use_engine(_installed())
                self._level = None
            return
        core = self._folder / "core"
        source, build = core / "src" / PACKAGE / "_core", core / f"build-{level}"
        source.mkdir(parents=True, exist_ok=True)
        texts = {core / "CMakeLists.txt": (self._root / "CMakeLists.txt").read_text("utf-8")}
        for path in _files(self._source / "_core"):
            texts[source / path.name] = path.read_text("utf-8")
        if fault is not None:
            texts[source / Path(fault.file).name] = fault.mutated
        for path, text in texts.items():
            if not path.is_file() or path.read_text("utf-8") != text:  # or all is built anew
                path.write_text(text, "utf-8")
        if not build.is_dir():
            options = (
                "CMAKE_BUILD_TYPE=Release",
                f"WIDELIMIT_LEVELS={LEVELS[level]}",
                f"Python_EXECUTABLE={sys.executable}",
            )
            command = ["cmake", "-G", "Ninja", *(f"-D{option}" for option in options)]
            _compile([*command, "-S", str(core), "-B", str(build)])
        _compile(["cmake", "--build", str(build)])
        self._use_engine(build)
        self._level = level

    def _use_engine(self, folder: Path) -> None:
        target = self._path / PACKAGE / "_core"
        if target.is_dir():
            for old in target.glob("_engine.*.so"):
                old.unlink()
            for built in folder.glob("_engine.*.so"):
                shutil.copy2(built, target)

    def test(self, tests: Sequence[str], limit: float, seed: int) -> tuple[bool, str]:
        """Run tests until one fails; return whether all passed, and what failed."""
        environment = dict(os.environ) | {
            "PYTHONPATH": str(self._path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self._folder / "hypothesis"),
        }
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        options += [f"--basetemp={self._folder / 'tmp'}", SEEDED.format(seed)]
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
        with (self._folder / "output").open("wb+") as output:
            process = self._process = subprocess.Popen(
                command,
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.stop()
                process.wait()
                self._process = None
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        if code is None:
            return False, f"time limit of {limit:.0f} s"
        if code < 0:
            return False, f"signal {signal.Signals(-code).name}"
        failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", text, re.M)
        return code == 0, failed[1] if failed else f"exit status {code} of pytest"

    def stop(self) -> None:
        """End the tests, and all that they have started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _compile(command: list[str]) -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = dict(os.environ) | {"PATH": tools}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"the core does not compile: {(done.stdout + done.stderr)[-1500:]}")


def _installed() -> Path:
    return Path(sysconfig.get_path("platlib")) / PACKAGE / "_core"


def supported_levels() -> list[str]:
    """Return the instruction sets of this processor, the best first."""
    from widelimit.backends.cpu import instruction_sets

    return [name for name, supported in instruction_sets().items() if supported]


# ---------------------------------------------------------------- all of them


def choose(faults: Sequence[Fault], only: str, sample: int | None, seed: int) -> list[Fault]:
    """Return the faults that match a pattern, or some of them."""
    chosen = [fault for fault in faults if fnmatch.fnmatch(str(fault), only)]
    if sample is None:
        return chosen
    return random.Random(seed).sample(chosen, min(sample, len(chosen)))


def key_of(fault: Fault, seed: int) -> str:
    """Return what a fault has its row under: a digest of its file and the rest."""
    text = repr((fault.file, fault.mutated, fault.level, seed))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(root: Path, tests: Sequence[str]) -> str:
    """Return a digest of the text of some tests: of functions, or of whole files."""
    digest = hashlib.sha256()
    for test in tests:
        name, *inside = test.split("::")
        text = (root / "tests" / name).read_text("utf-8")
        found: ast.AST | None = ast.parse(text)
        for part in inside:
            nodes = list(ast.iter_child_nodes(found)) if found is not None else []
            found = next((x for x in nodes if getattr(x, "name", None) == part), None)
        if inside and found is not None:
            lines = [x.lineno for x in getattr(found, "decorator_list", [])]
            first = min([*lines, getattr(found, "lineno", 1)])
            text = "\n".join(text.split("\n")[first - 1 : getattr(found, "end_lineno", None)])
        digest.update(f"{test}\n{text}\n".encode())
    return digest.hexdigest()[:16]


class Record:
    """What is known of faults, and of tests without a fault, as a JSON file."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path, self._lock = path, threading.Lock()
        self._content: dict[str, Any] = head | {"tests": {}, "faults": {}}

    def read(self, root: Path, keys: dict[str, Fault]) -> None:
        """Take over those rows that still hold."""
        if not self._path.is_file():
            return
        before = json.loads(self._path.read_text("utf-8"))
        for key, row in before["faults"].items():
            if row["seed"] != self._content["seed"]:  # of another run, which may go on
                self._content["faults"][key] = row
                continue
            fault = keys.get(key)
            if fault is None or any(_missing(root, test) for test in row["decided_by"]):
                continue
            if not row["killed"] and row["tests"] != list(fault.tests):
                continue
            if row["digest"] == digest_of(root, row["decided_by"]):
                self._content["faults"][key] = row
        if before["package"] == self._content["package"]:
            self._content["tests"] = before["tests"]

    def get(self, part: str, key: str) -> dict[str, Any] | None:
        """Return a row, if it is there."""
        return self._content[part].get(key)

    def put(self, part: str, key: str, row: dict[str, Any]) -> None:
        """Keep a row."""
        with self._lock:
            self._content[part][key] = row
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".partial")
            temporary.write_text(json.dumps(self._content, indent=1) + "\n", "utf-8")
            temporary.replace(self._path)


class Run:
    """Faults that are tried by some copies, side by side."""

    def __init__(
        self, root: Path, record: Record, copies: Sequence[Copy], seed: int, limit: float
    ) -> None:
        self._root, self._record, self._seed, self._limit = root, record, seed, limit
        self._all, self._stopped = copies, False
        self._copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            self._copies.put(copy)

    def all(self, keys: dict[str, Fault]) -> list[dict[str, Any]]:
        """Return a row for each fault."""
        new = [(fault, key) for key, fault in keys.items() if not self._record.get("faults", key)]
        # Neighbours in a file of the core: less is to be compiled.
        new.sort(key=lambda pair: (pair[0].level or "", pair[0].file, pair[0].line))
        with ThreadPoolExecutor(len(self._all)) as pool:
            try:
                for done in [pool.submit(self._one, *pair) for pair in new]:
                    done.result()
            except BaseException:  # also Ctrl-C: rows that are there are kept
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in self._all:
                    copy.stop()
                raise
        return [row for key in keys if (row := self._record.get("faults", key))]

    def _one(self, fault: Fault, key: str) -> None:
        copy = self._copies.get()
        try:
            start = time.monotonic()
            passed, why = copy.run(fault, self._limit, self._seed)
            seconds = time.monotonic() - start
            decided = list(fault.tests)
            if not passed:
                killer = why.partition("[")[0]
                decided = [killer] if killer.partition("::")[0].endswith(".py") else decided
                self._check(copy, decided, fault.level)
        finally:
            self._copies.put(copy)
        if self._stopped:
            return
        row = {
            "file": fault.file,
            "line": fault.line,
            "old": fault.old,
            "new": fault.new,
            "level": fault.level,
            "tests": list(fault.tests),
            "killed": not passed,
            "by": None if passed else why,
            "seconds": round(seconds, 1),
            "seed": self._seed,
            "decided_by": decided,
            "digest": digest_of(self._root, decided),
        }
        self._record.put("faults", key, row)
        print(f"{'SURVIVES' if passed else 'killed':8} {fault}", flush=True)
        if not passed:
            print(f"{'':8} by {why}, {seconds:.0f} s", flush=True)

    def _check(self, copy: Copy, tests: Sequence[str], level: str | None) -> None:
        """Refuse tests that do not pass without a fault."""
        key = f"{' '.join(tests)} {level} {digest_of(self._root, tests)}"
        if self._record.get("tests", key) is not None or self._stopped:
            return
        copy.build(level)
        start = time.monotonic()
        passed, why = copy.test(tests, self._limit, self._seed)
        if self._stopped:
            return
        if not passed:
            names = " ".join(f"tests/{test}" for test in tests)
            raise Unusable(f"{names} fails without a fault ({why}): mend that, or raise --limit")
        self._record.put("tests", key, {"seconds": round(time.monotonic() - start, 1)})


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line for each part of the package, one for each survivor, and the score."""
    parts: dict[str, list[bool]] = {}
    for row in rows:
        parts.setdefault(row["file"].partition("/")[0], []).append(row["killed"])
    lines = [f"{part:14} {sum(those):4} of {len(those):4}" for part, those in sorted(parts.items())]
    for row in rows:
        if not row["killed"]:
            old, new = (" ".join(row[name].split()) for name in ("old", "new"))
            lines.append(f"survivor: {row['file']}:{row['line']}: {old}  ->  {new}")
    killed = sum(row["killed"] for row in rows)
    share = killed / len(rows) if rows else 1.0
    return "\n".join([*lines, f"killed: {killed} of {len(rows)}, {share:.1%}"])


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """Try the faults that are asked for; return the exit status."""
    first = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=first)
    add = parser.add_argument
    add("--only", metavar="PATTERN", default="*", help="faults whose line matches: *store.py*")
    add("--sample", metavar="N", type=int, help="so many of them, drawn by the seed")
    add("--seed", metavar="S", type=int, default=0)
    add("--jobs", metavar="J", type=int, default=1, help="copies side by side")
    add("--limit", metavar="SECONDS", type=float, default=300.0, help="for the tests of a fault")
    add("--out", metavar="FILE", type=Path, default=root / "out" / "mutants.json")
    add("--fresh", action="store_true", help="forget what the record holds")
    asked = parser.parse_args(arguments)
    try:
        faults = read_faults(root)
        levels = supported_levels() if any(fault.level for fault in faults) else []
        faults = [replace(f, level=levels[0]) if f.level == BEST else f for f in faults]
        faults = [fault for fault in faults if fault.level in (None, *levels)]
        texts = [path.read_text("utf-8") for path in _files(root / "src" / PACKAGE)]
        head = {
            "format": "widelimit.mutants/1",
            "commit": _commit(root),
            "package": hashlib.sha256("".join(texts).encode()).hexdigest(),
            "seed": asked.seed,
        }
        record = Record(asked.out, head)
        if not asked.fresh:
            record.read(root, {key_of(fault, asked.seed): fault for fault in faults})
        chosen = choose(faults, asked.only, asked.sample, asked.seed)
        keys = {key_of(fault, asked.seed): fault for fault in chosen}
        with tempfile.TemporaryDirectory(prefix="widelimit-mutants-") as folder:
            copies = [Copy(root, Path(folder) / str(job)) for job in range(asked.jobs)]
            rows = Run(root, record, copies, asked.seed, asked.limit).all(keys)
    except Unusable as error:
        print(f"scripts/mutants: {error}", file=sys.stderr)
        return 2
    print(summary(rows))
    return int(sum(row["killed"] for row in rows) < ENOUGH * len(rows))


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the tests that are running end, too
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(Path(__file__).resolve().parents[1]))
