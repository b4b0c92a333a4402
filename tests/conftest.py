"""Settings that must stand before anything is imported."""

import os

# scikit-learn leaves its array API checks out without it; SciPy reads it when it is imported.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
