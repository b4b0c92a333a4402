"""``widelimit`` and ``python -m widelimit``: Ctrl-C is looked for before anything is imported."""

import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        from widelimit.cli import main as run

        run()
    except KeyboardInterrupt:  # while modules are imported, or at the very end
        sys.stderr.write("widelimit: interrupted, nothing was written\n")
        sys.stderr.flush()
        os._exit(130)  # whatever is half imported is not asked to tidy up


if __name__ == "__main__":
    main()
