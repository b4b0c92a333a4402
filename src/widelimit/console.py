"""What all commands of the command line have in common: options, messages, exit codes."""

from __future__ import annotations

import select
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from widelimit.files import said, write_record
from widelimit.keeping import NotWritten, keep_and_show

__all__ = [
    "DATA_HELP",
    "DEFAULT_NETWORK",
    "GOES_ON",
    "HELP",
    "INTERRUPTED",
    "NETWORK_HELP",
    "NOTHING_WRITTEN",
    "WRONG_INPUT",
    "BackendOption",
    "ChannelsOption",
    "Command",
    "DataArgument",
    "DownloadOption",
    "Foreseen",
    "Group",
    "ImageShapeOption",
    "LabelOption",
    "OneKind",
    "Overwrite",
    "SizeOption",
    "SkipBad",
    "Threads",
    "Yes",
    "complain",
    "data_sets",
    "deliver",
    "exits",
    "guarded",
    "networks_named",
    "one_line",
    "tell",
    "user_input",
    "warned",
    "words",
]

INTERRUPTED = 130  # the exit code of a shell for Ctrl-C
WRONG_INPUT = 2  # that of a wrong option
NOTHING_WRITTEN = "nothing was written"
GOES_ON = "what is finished is kept, the same command goes on"
DEFAULT_NETWORK = "myrtle-5; below 8x8 pixels cntk-gap-11; for rows ntk-dense-3 with biases"
NETWORK_HELP = (
    "cntk-gap-DEPTH, cntk-vanilla-DEPTH, ntk-dense-DEPTH, myrtle-5, myrtle-7, myrtle-10, "
    "resnet-DEPTH, wide-resnet-DEPTH, cnn-1d-DEPTH, or a file with the JSON of a network."
)
DATA_HELP = (
    "digits, fashion-mnist, cifar10, cifar100, a folder of images by class, or a file: .npz, .mat, "
    ".h5, .csv, an archive of CIFAR, IDX."
)


def words(*words: str) -> Callable[[str], list[str]]:
    """Return what a shell completes an unfinished word to."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def data_sets(incomplete: str) -> list[str]:
    """Return names of data sets that begin so."""
    from widelimit.data.load import NAMED

    return words(*NAMED)(incomplete)


def networks_named(incomplete: str) -> list[str]:
    """Return names of networks that begin so."""
    from widelimit.architectures import EXAMPLES

    return words(*EXAMPLES)(incomplete)


OneKind = Annotated[str, typer.Option(help="ntk or nngp.", autocompletion=words("ntk", "nngp"))]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="auto, cpu, cuda (an NVIDIA card) or reference.",
        autocompletion=words("auto", "cpu", "cuda", "reference"),
    ),
]
DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help=DATA_HELP, autocompletion=data_sets)
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask before work of more than ten minutes.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
ChannelsOption = Annotated[
    str | None,
    typer.Option(
        "--channels",
        help="Where those of images in arrays are: first, as in PyTorch, or last.",
        show_default="last; what looks as if they were first is refused",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Height x width that all images are resized to, as in 32x32.",
        show_default="as they are",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and name them.")
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        "--label",
        metavar="NAME",
        help="The column or array of labels, by name; or the place of the column, as -1.",
        show_default="told by its name",
    ),
]
ImageShapeOption = Annotated[
    str | None,
    typer.Option(
        "--image-shape",
        metavar="HxWxC",
        help="Of the image that a row of a table or array is, as in 28x28; 1x128x3 are series of "
        "128 steps in 3 channels.",
        show_default="rows stay rows",
    ),
]
DownloadOption = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Fetch CIFAR-10, 170 MB, where it is not on this machine: to the folder that "
        "WIDELIMIT_DATA names, or ~/.local/share/widelimit.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads.", show_default="one for each processor")
]


HELP = {"help_option_names": ["-h", "--help"]}


def _plain_flags(params: list[Any]) -> list[Any]:
    """A flag takes no value: its help names none."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command whose flags name no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _plain_flags(super().get_params(ctx))


class Group(TyperGroup):
    """Commands, with flags that name no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _plain_flags(super().get_params(ctx))


@contextmanager
def exits(kept: str = NOTHING_WRITTEN) -> Generator[None]:
    """End the command with one line, instead of a traceback, where the user can do something."""
    try:
        yield
    except KeyboardInterrupt as error:
        complain(f"interrupted, {error}" if str(error) else f"interrupted, {kept}")
        raise typer.Exit(INTERRUPTED) from None
    except MemoryError as error:
        complain(f"out of memory: {error}" if str(error) else "out of memory")
        raise typer.Exit(1) from None
    except NotWritten as error:
        complain(one_line(error))
        raise typer.Exit(1) from None


@contextmanager
def user_input() -> Generator[None]:
    """End the command with one line where what the user gave is at fault.

    Where nobody reads on, as behind ``| head``, nothing is at fault: Typer ends without a word.
    """
    try:
        yield
    except NotWritten:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        complain(one_line(error))
        raise typer.Exit(WRONG_INPUT) from None
    except ImportError as error:
        if error.name is not None:  # a module that is broken; of an extra we say how to get it
            raise
        complain(one_line(error))
        raise typer.Exit(WRONG_INPUT) from None
    except RuntimeError as error:
        from widelimit.backends.cuda.device import LostCard

        if not isinstance(error, LostCard):
            raise
        complain(str(error))
        raise typer.Exit(1) from None


@contextmanager
def warned() -> Generator[None]:
    """Show warnings as one line each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=UserWarning)
        warnings.showwarning = _show_warning
        yield


@contextmanager
def guarded(kept: str = NOTHING_WRITTEN) -> Generator[None]:
    """Make lines of warnings, and of all errors about which the user can do something."""
    with exits(kept), user_input(), warned():
        yield


def _nobody_reads() -> bool:
    """Return whether what is printed goes to a pipe without a reader."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # it is no file
            poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _show_warning(message: Warning | str, *rest: object, **more: object) -> None:
    complain(f"warning: {message}")


def one_line(error: OSError | ValueError | ImportError) -> str:
    """Return what an error says."""
    return said(error) if isinstance(error, OSError) else " ".join(str(error).split())


def complain(message: str) -> None:
    """Say something on standard error."""
    # One line, whatever the names in it, and nothing that a terminal acts on.
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    typer.echo(f"widelimit: {line}", err=True)


def deliver(out: Path, record: dict[str, Any], text: str, notes: Sequence[str] = ()) -> None:
    """Write the record of a run; then print it as text, its notes, and where it is."""

    def show() -> None:
        typer.echo(text)
        for note in notes:
            complain(note)

    place = keep_and_show(out, lambda path: write_record(path, record), show)
    typer.echo(f"record: {place}")


class Foreseen(Protocol):
    """What a command will take."""

    @property
    def is_long(self) -> bool:
        """Whether it is worth a question."""
        ...

    def lines(self) -> list[str]:
        """Say it."""
        ...


def tell(forecast: Foreseen, yes: bool) -> None:
    """Say what a command will take; ask a user at a terminal whether that is meant, if it is long.

    Elsewhere nobody can answer: the work begins.
    """
    for line in forecast.lines():
        complain(line)
    if forecast.is_long and not yes and sys.stdin.isatty() and sys.stderr.isatty():
        try:
            typer.confirm("go on?", default=True, abort=True, err=True)
        except typer.Abort:
            raise KeyboardInterrupt from None
