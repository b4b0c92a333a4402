"""``python -m widelimit`` is ``widelimit``."""

from widelimit.cli import main

if __name__ == "__main__":
    main()
