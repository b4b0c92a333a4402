"""Which files of a folder are images: one set of rules for all commands, and what it leaves out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from widelimit.data.image import can_open, image_suffixes

__all__ = ["HIDDEN", "Found", "find_images", "is_hidden", "visible_folders"]

_MAX_FILES = 200_000
_SYSTEM = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "@eadir",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "icon\r",
    }
)
HIDDEN = "hidden or of the system"
_HEIC = frozenset({".heic", ".heif"})


@dataclass
class Found:
    """What was found in a folder.

    Parameters
    ----------
    folder : Path
    images : list of Path
        In alphabetical order.
    passed : dict of list of Path
        All other files, and folders that were not entered, by the reason.
    """

    folder: Path
    images: list[Path] = field(default_factory=list[Path])
    passed: dict[str, list[Path]] = field(default_factory=dict[str, list[Path]])

    def pass_over(self, reason: str, *paths: Path) -> None:
        """Note files that are left out."""
        self.passed.setdefault(reason, []).extend(paths)

    def __str__(self) -> str:
        """What was passed over, and why; "" if nothing was."""
        if not self.passed:
            return ""
        parts: list[str] = []
        for reason, paths in self.passed.items():
            first = min(paths).relative_to(self.folder)
            shown = f"{first}" if len(paths) == 1 else f"{first}, ..."
            parts.append(f"{len(paths):,} {reason} ({shown})")
        return f"{self.folder}: passed over {', '.join(parts)}"


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system has put there."""
    return name.startswith(".") or name.lower() in _SYSTEM


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, and links to some, in alphabetical order."""
    return sorted(p for p in folder.iterdir() if not is_hidden(p.name) and p.is_dir())


def find_images(folder: Path, found: Found | None = None) -> Found:
    """Look for images in a folder and in all folders below it; links to folders are not followed.

    A file is an image if its name ends as those of a format that can be read, or, where the name
    ends in another way, if it begins like one.

    Parameters
    ----------
    folder : Path
    found : Found or None
        That is added to; of a folder in which this one lies.

    Raises
    ------
    OSError
        If a folder cannot be read.
    ValueError
        If there are more than 200,000 images.
    """
    found = Found(folder) if found is None else found
    suffixes = image_suffixes()
    folders, images = [folder], list[Path]()
    while folders:
        with os.scandir(folders.pop()) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
        for entry in entries:
            path = Path(entry.path)
            reason = ""
            if is_hidden(entry.name):
                reason = HIDDEN
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
                continue
            elif path.is_dir():
                reason = "links to folders"
            elif not path.is_file():  # of entries, links in a circle raise
                reason = "not regular files, or links to none"
            elif (end := path.suffix.lower()) not in suffixes and not can_open(path):
                reason = "of no format that is read here"
                if end in _HEIC:
                    reason = "in HEIC, which pip install pillow-heif makes readable"
            if reason:
                found.pass_over(reason, path)
            else:
                images.append(path)
        if len(found.images) + len(images) > _MAX_FILES:
            raise ValueError(f"{found.folder} must have at most {_MAX_FILES:,} images")
    found.images += sorted(images)
    return found
