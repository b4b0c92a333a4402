"""Importing the package has no side effect: nothing heavy, no thread, no process, no file."""

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ["sklearn", "scipy", "matplotlib", "torch", "cupy", "zarr", "rich", "typer", "pandas"]

# Audit hooks cannot be removed: each look at an import is a new interpreter. NumPy comes first,
# because its BLAS starts threads of its own when it is loaded.
LOOK = """
import json, os, sys, threading
import numpy

def count_threads():
    task = "/proc/self/task"
    return len(os.listdir(task)) if os.path.isdir(task) else threading.active_count()

events = []

def hook(event, args):
    if event == "open":
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if set(args[1] or "") & set("wax+") or (args[2] or 0) & writes:
            events.append(f"open for writing: {args[0]}")
    elif event.startswith(("subprocess.", "socket.", "os.system", "os.fork", "os.mkdir",
                           "os.putenv", "tempfile.")):
        events.append(event)

def start(thread, run=threading.Thread.start):  # Python 3.11 has no audit event for it
    events.append(f"thread started: {thread.name}")
    run(thread)

threading.Thread.start = start
before = count_threads()
sys.addaudithook(hook)
import widelimit
@STATEMENT@
events = list(events)
print(json.dumps({
    "modules": sorted(sys.modules), "events": events, "new_threads": count_threads() - before,
}))
"""


def look(statement: str = "") -> dict[str, Any]:
    # -B: byte code is Python's to write, not ours. -P: what is installed, not the current folder.
    command = [sys.executable, "-B", "-P", "-c", LOOK.replace("@STATEMENT@", statement)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_has_no_side_effect() -> None:
    seen = look()
    assert seen["events"] == []
    assert seen["new_threads"] == 0
    assert "widelimit" in seen["modules"]
    assert [name for name in HEAVY if name in seen["modules"]] == []


@pytest.mark.parametrize(
    ("statement", "event"),
    [
        ("import tempfile; tempfile.TemporaryFile('w').close()", "open for writing"),
        ("import threading; t = threading.Thread(target=print); t.start()", "thread started"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', ''])", "subprocess.Popen"),
    ],
)
def test_side_effects_are_seen(statement: str, event: str) -> None:
    assert any(event in line for line in look(statement)["events"])


def test_all_public_names_exist() -> None:
    statement = "assert all(getattr(widelimit, n) is not None for n in widelimit.__all__)"
    look(statement)
