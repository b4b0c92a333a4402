"""Without PyTorch everything else works, and the error names the extra."""

import subprocess
import sys

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


def test_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_torch_is_imported_when_it_is_used() -> None:
    code = "import sys, widelimit; widelimit.finite.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
