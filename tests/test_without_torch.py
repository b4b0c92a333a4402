"""Without PyTorch everything else works, and the error names the extra."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import numpy as np
import widelimit as wl
x = np.random.default_rng(0).standard_normal((2, 4, 4, 1))
wl.finite.FiniteNetwork.sample(wl.cntk_gap(3), (4, 4, 1), 4).empirical_ntk(x)
wl.finite.convergence(wl.cntk_gap(3), x, [4], draws=2)
names = [wl.finite.build, wl.finite.from_torch, wl.finite.empirical_ntk]
calls = [
    lambda: wl.finite.build(wl.cntk_gap(3), 4),
    lambda: wl.finite.from_torch(None),
    lambda: wl.finite.empirical_ntk(None, x),
    lambda: wl.finite.empirical_nngp(None, x),
    lambda: wl.finite.compare(None, x),
]
for call in calls:
    try:
        call()
    except ImportError as error:
        assert 'pip install "widelimit[torch]"' in str(error), error
    else:
        raise AssertionError
print("done")
"""
COMMANDS = """
import sys

class Missing:
    def find_spec(self, name, *rest):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Missing())
from typer.testing import CliRunner
from widelimit.cli import app
for words in (["table1-cnn", "nothing"], ["table2", "nothing"], ["theorem31"], ["theorem32"],
              ["weakly-trained"]):
    done = CliRunner().invoke(app, ["reproduce", *words, "--out", "r.json"])
    assert done.exit_code == 2, done
    assert done.stderr.count("\\n") == 1, done.stderr
    assert 'pip install "widelimit[torch]"' in done.stderr, done.stderr
print("done")
"""


def test_commands_name_the_extra_before_any_work(tmp_path: Path) -> None:
    words = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "done\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_torch_is_imported_when_it_is_used() -> None:
    code = "import sys, widelimit; widelimit.finite.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
