"""The command line: what it prints and writes, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toys import NAMES, FakeKernel, make_images
from typer.testing import CliRunner, Result

from widelimit import __version__
from widelimit.cli import app
from widelimit.experiments import learning_curve
from widelimit.report import demo as demo_module
from widelimit.report.demo import Demo


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    x, y = make_images(90)
    path = tmp_path / "toy set.npz"
    np.savez(path, x_train=x, y_train=np.array(NAMES)[y])
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel()
    monkeypatch.setattr(learning_curve, "compute_kernel", kernel)
    return kernel


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def check_one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("widelimit: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_and_version() -> None:
    shown = call("--help")
    assert shown.exit_code == 0
    assert "demo" in shown.output
    assert call("--version").output == f"widelimit {__version__}\n"
    options = call("demo", "--help")
    assert options.exit_code == 0
    for option in ("--data", "--out", "--draws", "--seed", "--threads", "--quick", "--minutes"):
        assert option in options.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['widelimit', '--help']\n"
        "from widelimit.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*{'sklearn', 'scipy', 'matplotlib', 'PIL'} & set(sys.modules), file=sys.stderr)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "\n")


def test_python_m_widelimit() -> None:
    done = python("-m", "widelimit", "--version")
    assert (done.returncode, done.stdout) == (0, f"widelimit {__version__}\n")


def test_demo(toy: Path, tmp_path: Path, fake: FakeKernel) -> None:
    out = tmp_path / "new" / "folder"
    result = call("demo", "--data", toy, "--out", out, "--draws", 2, "--seed", 3, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(out)) == ["demo-toy-set.html", "demo-toy-set.json"]
    assert f"Report: {out / 'demo-toy-set.html'}\n" in result.output
    for words in ("toy set: 90 images of 8 x 8 x 1, 3 classes", "CNTK-GAP", "100%", "±"):
        assert words in result.output
    record = json.loads((out / "demo-toy-set.json").read_text("utf-8"))
    assert (record["seed"], record["draws"]) == (3, 2)
    page = (out / "demo-toy-set.html").read_text("utf-8")
    assert "demo-toy-set.json" in page
    assert f"{record['curves'][0]['points'][-1]['mean'] * 100:.1f}" in page
    assert page.count("<script") == 1  # its own, and nothing from elsewhere
    assert "default-src 'none'" in page


def test_demo_with_the_real_kernel_in_a_process(toy: Path, tmp_path: Path) -> None:
    done = python(
        *("-m", "widelimit", "demo", "--data", str(toy), "--out", str(tmp_path / "out")),
        *("--quick", "--threads", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "out" / "demo-toy-set.html").is_file()
    record = json.loads((tmp_path / "out" / "demo-toy-set.json").read_text("utf-8"))
    assert record["environment"]["command"].startswith("python -m widelimit demo --data")
    assert record["draws"] == 2
    gap = next(curve for curve in record["curves"] if curve["key"] == "gap")
    assert gap["points"][-1]["mean"] > 0.9


def test_demo_is_told_what_is_left_out(toy: Path, tmp_path: Path, fake: FakeKernel) -> None:
    x = np.zeros((90, 64, 64, 1))
    x[:, 32, 32] = 1.0
    np.savez(toy, x=x, y=np.arange(90) % 3)
    result = call("demo", "--data", toy, "--out", tmp_path, "--draws", 1, "--minutes", 0.01)
    assert result.exit_code == 0, result.output
    assert "Please note" in result.output
    assert "Images of 64 x 64 pixels were averaged" in result.output
    assert "averaged over blocks" in (tmp_path / "demo-toy-set.html").read_text("utf-8")


def test_float64_gives_way_on_slow_machines(
    toy: Path, tmp_path: Path, fake: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_curve, "estimate_seconds", lambda *_: 3600.0)
    result = call("demo", "--data", toy, "--out", tmp_path, "--draws", 1)
    assert "is computed in float32: in float64 it would take 1 h 00 min" in result.output
    assert {(dtype, "GlobalAvgPool" in net) for net, _, _, dtype in fake.calls} == {
        ("float32", True),
        ("float64", False),
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "digts"), "did you mean digits?"),
        (("--data", "{}/none.npz"), "there is no data set and no path"),
        (("--data", "{}/bad.npz"), "bad.npz must be an .npy or .npz file of numbers"),
        (("--data", "{}"), "bad.npz must be an .npy or .npz file of numbers"),
        (("--out", "{}/bad.npz"), "bad.npz: this is no folder: give another path"),
        (("--out", "{}/bad.npz/deeper"), "bad.npz: this is no folder: give another path"),
    ],
)
def test_wrong_input_is_one_line(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_text("nothing")
    result = call("demo", *(option.format(tmp_path) for option in options))
    check_one_line(result, 2, words)


def test_unreadable_files_are_one_line(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(toy))

    monkeypatch.setattr(demo_module, "load_dataset", refuse)
    result = call("demo", "--data", toy, "--out", tmp_path)
    check_one_line(result, 2, f"{toy}: Permission denied")


@pytest.mark.parametrize(
    "options",
    [
        ("--draws", "0"),
        ("--seed", "-1"),
        ("--threads", "0"),
        ("--minutes", "0"),
        ("--minutes", "nan"),
        ("--nonsense",),
    ],
)
def test_wrong_options(options: tuple[str, ...], tmp_path: Path) -> None:
    result = call("demo", "--out", tmp_path, *options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert os.listdir(tmp_path) == []


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("place", ["estimate_seconds", "run"])
def test_ctrl_c_in_the_demo(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, late: bool
) -> None:
    real: Callable[..., object] = getattr(learning_curve, place)

    def stop(*arguments: object, **options: object) -> None:
        if late:
            real(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(learning_curve, "compute_kernel", FakeKernel())
    monkeypatch.setattr(learning_curve, place, stop)
    out = tmp_path / "out"
    check_one_line(
        call("demo", "--data", toy, "--out", out, "--draws", 1), 130, "interrupted, nothing"
    )
    assert os.listdir(out) == []


@pytest.mark.parametrize("command", ["explain {}", "kernel x.npy --out k.npy --net {}"])
def test_networks_that_are_too_deep(command: str) -> None:
    """They are refused before there is a list of layers, for which there would be no memory."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))"
    words = command.format("cntk-gap-999999999").split()
    code = f"import sys; {limit}; sys.argv[1:] = {words}; from widelimit.cli import main; main()"
    done = python("-c", code)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search("must be from 2 to 16,383, got 999999999", done.stderr)


def test_a_warning_is_a_line() -> None:
    warned = "warnings.warn('the card is lost', RuntimeWarning) or given(*a, **k)"
    code = f"""
import sys, warnings
from widelimit import job
given = job.explain_networks
job.explain_networks = lambda *a, **k: {warned}
sys.argv[1:] = "explain cntk-gap-3 --shape 8x8x3 --inputs 2000".split()
from widelimit.cli import main
main()
"""
    done = python("-c", code)
    assert done.returncode == 0
    assert done.stderr == "widelimit: warning: the card is lost\n"


# Where Ctrl-C is pressed, the words of the command, and what it says it leaves behind.
INTERRUPTED = {
    "demo": ("widelimit.report.demo.load_dataset", "demo --out {}/out", "nothing was written"),
    "doctor": ("widelimit.doctor.examine", "doctor", "nothing was written"),
    "explain": ("widelimit.job.explain_networks", "explain cntk-gap-3", "nothing was written"),
    "kernel": (
        "widelimit.job.kernel",
        "kernel digits --net cntk-gap-3 --out {}/k.npy",
        "nothing was written",
    ),
    "kernel to a store": (
        "widelimit.job.gram",
        "kernel digits --net cntk-gap-3 --out {}/k.zarr",
        "what is finished is kept, the same command goes on",
    ),
    "fit": (
        "widelimit.classify.NTKClassifier.fit",
        "fit digits --per-class 2 --out {}/m",
        "nothing was written",
    ),
    "fit with a store": (
        "widelimit.classify.NTKClassifier.fit",
        "fit digits --per-class 2 --out {0}/m --store {0}/s",
        "what is finished is kept, the same command goes on",
    ),
    "fit and test": (
        "widelimit.classify.NTKClassifier.predict",
        "fit digits --per-class 2 --net cntk-vanilla-3 --out {}/m --test 0.2",
        "the model is in {}/m",
    ),
    "reproduce": (
        "widelimit.experiments.table1.gram",
        "reproduce table1 digits --depths 3 --n-train 40 --n-test 9 --column cntk-v "
        "--out {0}/t.json --store {0}/out",
        "what is finished is kept, the same command goes on",
    ),
    "rank": (
        "widelimit.experiments.rank.gram",
        "rank digits --n 20 --out {0}/r.json --store {0}/out",
        "what is finished is kept, the same command goes on",
    ),
    "suspects": (
        "widelimit.classify.NTKClassifier.fit",
        "suspects digits --out {}/out",
        "nothing was written",
    ),
    "predict": ("widelimit.classify.load_model", "predict {}/m {}/x.png", "nothing was written"),
    "report": (
        "widelimit.report.runs.read_json",
        "report {0}/x.json --out {0}/r.html",
        "nothing was written",
    ),
    "bench": ("widelimit.bench.choose_groups", "bench --out {}/b.json", "nothing was written"),
}


def test_ctrl_c_is_tried_in_every_command() -> None:
    assert {name.split()[0] for name in INTERRUPTED} == {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback is not None
    } | {group.name for group in app.registered_groups}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, words, kept = INTERRUPTED[name]
    monkeypatch.setattr(place, interrupt)
    result = call(*words.replace("{0}", "{}").replace("{}", str(tmp_path)).split())
    assert result.exit_code == 130
    told = [
        line
        for line in result.stderr.splitlines()
        if not re.search("cost: |cheaper: |pairs of ", line)
    ]
    assert told == [f"widelimit: interrupted, {kept.format(tmp_path)}"]
    left = {path.name for path in tmp_path.iterdir()} - {"out"}
    assert left == ({"m"} if name == "fit and test" else set())


def test_ctrl_c_in_a_process(tmp_path: Path) -> None:
    """The signal comes when the first bar is about to be shown: in the middle of the kernel."""
    command = [sys.executable, "-u", "-m", "widelimit", "demo", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("CNTK-GAP: "):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "widelimit: interrupted, nothing was written\n")
    assert os.listdir(tmp_path) == []


def test_out_of_memory_is_one_line(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("3.0 GiB needed")

    monkeypatch.setattr(Demo, "run", fail)
    check_one_line(call("demo", "--data", toy, "--out", tmp_path), 1, "out of memory: 3.0 GiB")


def test_mistakes_in_the_code_are_not_hidden(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Demo, "run", fail)
    result = call("demo", "--data", toy, "--out", tmp_path)
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("module", ["typer", "numpy", "widelimit.cli"])
def test_ctrl_c_while_modules_are_imported(module: str) -> None:
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.argv = ['widelimit', 'explain', 'cntk-gap-3']\n"
        "from widelimit.__main__ import main\n"
        "main()"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "widelimit: interrupted, nothing was written\n"


def test_what_a_shell_completes() -> None:
    environment = {**os.environ, "_WIDELIMIT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    for words, found in (("explain cntk-g", "cntk-gap-21"), ("fit dig", "digits")):
        environment["COMP_WORDS"] = f"widelimit {words}"
        command = [
            sys.executable,
            "-c",
            "from widelimit.cli import app; app(prog_name='widelimit')",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert found in done.stdout.split()


def test_short_help_and_flags_without_values() -> None:
    for words in (["-h"], ["fit", "-h"], ["kernel", "-h"]):
        shown = call(*words)
        assert shown.exit_code == 0
        assert "bool" not in shown.output
    assert "--overwrite" in shown.output


def test_predict_takes_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(backend="cpu", threads=2)
    short = SimpleNamespace(lines=list, is_long=False)
    job = SimpleNamespace(model=model, run=lambda _: f"{model.threads}", forecast=lambda: short)
    monkeypatch.setattr("widelimit.classify.Prediction.prepare", lambda *_, **__: job)
    assert call("predict", "m", "x").stdout == "2"
    assert call("predict", "m", "x", "--threads", 3).stdout == "3"
