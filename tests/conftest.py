"""Settings that must stand before anything is imported."""

import os
import signal
import tempfile

# scikit-learn leaves its array API checks out without it; SciPy reads it when it is imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

# Rates of this machine, and compiled kernels, of tests are not those of a user.
os.environ["WIDELIMIT_CACHE"] = tempfile.mkdtemp(prefix="widelimit-tests-")

# What a shell runs in the background has Ctrl-C ignored, and so would the tests of Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
