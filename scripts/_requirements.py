"""Print what pyproject.toml asks for, one requirement a line.

usage: python _requirements.py [--lowest] [EXTRA ...]

What the build needs comes first, then what the package needs, then the extras. With --lowest every
lower bound is taken as the exact version.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path


def expand(requirements: Iterable[str], extras: dict[str, list[str]]) -> Iterator[str]:
    """Replace the package's own extras (``widelimit[test]``) by what they stand for."""
    for requirement in requirements:
        own = re.fullmatch(r"widelimit\[(.+)\]", requirement)
        if own:
            for extra in own[1].split(","):
                yield from expand(extras[extra.strip()], extras)
        else:
            yield requirement


def main() -> None:
    """Read the file beside this folder and print."""
    lowest = "--lowest" in sys.argv
    wanted = [argument for argument in sys.argv[1:] if argument != "--lowest"]
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    # scikit-build-core asks for CMake and Ninja only when it makes the build environment itself.
    requirements = [*pyproject["build-system"]["requires"], "cmake", "ninja"]
    requirements += project["dependencies"]
    requirements += expand((f"widelimit[{extra}]" for extra in wanted), extras)
    for requirement in requirements:
        print(requirement.replace(">=", "==") if lowest else requirement)


if __name__ == "__main__":
    main()
