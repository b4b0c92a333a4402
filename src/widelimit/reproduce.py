"""The command ``widelimit reproduce``: the experiments of the paper, one command each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widelimit.console import (
    GOES_ON,
    HELP,
    BackendOption,
    ChannelsOption,
    Command,
    DataArgument,
    DownloadOption,
    Group,
    Overwrite,
    SizeOption,
    SkipBad,
    Threads,
    Yes,
    complain,
    deliver,
    guarded,
    tell,
    words,
)
from widelimit.keeping import keep, keep_and_show

if TYPE_CHECKING:
    from widelimit.experiments.run import Run

__all__ = ["reproduce"]

RecordOption = Annotated[Path, typer.Option("--out", help="The record, a .json file.")]
PartsOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="A folder for finished parts; the same command goes on with it after it was stopped.",
        show_default="beside the record",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Of the finite networks: cpu, cuda (an NVIDIA card), or auto, a card if there is one.",
        autocompletion=words("auto", "cpu", "cuda"),
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", help="Most memory to take, as in 6GB.", show_default="60 % of what is free"
    ),
]
WidthsOption = Annotated[
    str | None,
    typer.Option(
        "--widths", help="Ascending, as in 16,64,256.", show_default="as in docs/finite.md"
    ),
]
SeedsOption = Annotated[
    int | None,
    typer.Option(
        "--seeds", min=1, help="Networks of each width.", show_default="fewer of the widest"
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw the record, too: an .svg or .png file.",
        show_default=False,
    ),
]

reproduce = typer.Typer(
    cls=Group,
    context_settings=HELP,
    help="Rerun an experiment of the paper, at a size that this machine can bear.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
command = partial(reproduce.command, cls=Command, context_settings=HELP)


def _read_widths(text: str | None) -> tuple[int, ...] | None:
    from widelimit.job import read_numbers

    return None if text is None else tuple(read_numbers("--widths", text))


def _finish(job: Run, out: Path, picture: Path | None, yes: bool, overwrite: bool) -> None:
    """Say what a run of finite networks takes, run it, and write its record, and its picture."""
    from widelimit.plot import check_picture, draw_record
    from widelimit.report.finite import to_markdown

    if picture is not None:
        check_picture(picture, replace=overwrite)
    tell(job, yes)
    record = job.run(complain, progress=True)
    deliver(out, record, to_markdown(record), record.get("errors", []))
    if picture is not None:
        typer.echo(f"picture: {keep(picture, lambda path: draw_record(record, path))}")


@command()
def table1(
    data: DataArgument = "cifar10",
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="cntk-v, cntk-gap, cntk-v-2k or cntk-gap-2k; may be repeated.",
            show_default="all",
            autocompletion=words("cntk-v", "cntk-gap", "cntk-v-2k", "cntk-gap-2k"),
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The record, a .json file.")] = Path("table1.json"),
    store: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the kernels; the same command goes on with it after it was stopped.",
            show_default="beside the record",
        ),
    ] = None,
    depths: Annotated[str, typer.Option(help="All in one pass.")] = "3,4,6,11,21",
    n_train: Annotated[
        int | None,
        typer.Option(min=1, help="Training images.", show_default="50,000, for 2k 2,000"),
    ] = None,
    n_test: Annotated[
        int | None, typer.Option(min=1, help="Test images.", show_default="10,000")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="As in 30min or 2h: takes as many images as fit into it here.",
            show_default="as long as it takes",
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="The first classes alone: 2 is CIFAR-2.")
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Draw as many training images of each class.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of balanced training sets.")] = 0,
    draws: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    preprocessing: Annotated[
        str,
        typer.Option(
            help="standardise (by channel, as the paper), zca, normalise (by image) or none.",
            autocompletion=words("standardise", "zca", "normalise", "none"),
        ),
    ] = "standardise",
    flips: Annotated[
        str,
        typer.Option(
            help="Horizontal: none (as the paper's table), average (of kernels), or double (the "
            "training set).",
            autocompletion=words("none", "average", "double"),
        ),
    ] = "none",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    download: DownloadOption = False,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory to take, as in 6GB.", show_default="60 % of what is free"),
    ] = None,
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed", help="Go on with kernels of another instruction set or version."
        ),
    ] = False,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Table 1, its kernel columns: CNTK-V and CNTK-GAP, with all training images and with 2,000.

    The protocol of the paper, on DATA. Prints ours beside the paper's, and writes a JSON record.
    """
    with guarded(GOES_ON):
        from widelimit.display import read_duration
        from widelimit.experiments.planning import COLUMNS, Asked
        from widelimit.experiments.table1 import Table1
        from widelimit.job import check_backend, read_numbers, read_reading
        from widelimit.report.table1 import to_markdown

        asked = Asked(
            tuple(column or COLUMNS),
            read_numbers("--depths", depths),
            n_train,
            n_test,
            None if budget is None else read_duration(budget),
            classes,
            balanced,
            seed,
            draws,
            preprocessing,
            flips,
            dtype,
        )
        job = Table1.prepare(
            data,
            asked,
            out,
            store,
            overwrite=overwrite,
            reading=read_reading(channels, size, skip_bad) | {"download": download},
            backend=check_backend(backend),
            threads=threads,
            memory=memory,
            allow_mixed=allow_mixed,
        )
        tell(job, yes)
        record = job.run(complain, progress=True)
        deliver(out, record, to_markdown(record), record["errors"])


@command("small-data")
def small_data(
    data: DataArgument = "cifar10",
    out: Annotated[Path, typer.Option(help="The record, a .json file.")] = Path("small-data.json"),
    store: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the kernels; the same command goes on with it after it was stopped.",
            show_default="beside the record",
        ),
    ] = None,
    largest: Annotated[
        int, typer.Option(min=2, help="Images in the largest training set, at most.")
    ] = 1280,
    n_test: Annotated[
        int | None, typer.Option(min=1, help="Test images.", show_default="all")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Training sets of each size.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    download: DownloadOption = False,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory to take, as in 6GB.", show_default="60 % of what is free"),
    ] = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Ten images to 1,280: kernels beside a tuned SVM and logistic regression, over draws."""
    with guarded(GOES_ON):
        from rich.console import Console

        from widelimit.display import Display
        from widelimit.experiments.learning_curve import CURVE_STAGE, METHODS
        from widelimit.experiments.small_data import SmallData
        from widelimit.files import write_atomically
        from widelimit.job import check_backend, read_reading
        from widelimit.report.terminal import make_tables

        job = SmallData.prepare(
            data,
            out,
            store,
            largest=largest,
            n_test=n_test,
            draws=draws,
            seed=seed,
            overwrite=overwrite,
            reading=read_reading(channels, size, skip_bad) | {"download": download},
            backend=check_backend(backend),
            threads=threads,
            memory=memory,
        )
        tell(job.cost, yes)
        stages = [method.label for method in METHODS if method.network is not None]
        with Display([*stages, CURVE_STAGE]) as display:
            record = job.run(progress=display.show)

        def show() -> None:
            console = Console()
            for table in make_tables(record, console):
                console.print(table)
            for error in record.errors:
                complain(error)

        place = keep_and_show(out, lambda path: write_atomically(path, record.to_json()), show)
        typer.echo(f"record: {place}")


@command()
def readouts(
    data: DataArgument = "cifar10",
    out: Annotated[Path, typer.Option(help="The record, a .json file.")] = Path("readouts.json"),
    store: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the kernels; the same command goes on with it after it was stopped.",
            show_default="beside the record",
        ),
    ] = None,
    depth: Annotated[int, typer.Option(min=2, help="Of the network.")] = 4,
    n_train: Annotated[
        int, typer.Option(min=1, help="Training images, as many of each class.")
    ] = 500,
    n_test: Annotated[int, typer.Option(min=1, help="Test images.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Training sets.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="As in 30min or 2h: takes as many images as fit into it here.",
            show_default="as long as it takes",
        ),
    ] = None,
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    download: DownloadOption = False,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory to take, as in 6GB.", show_default="60 % of what is free"),
    ] = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Global and local average pooling and none, and what flips and whitening change.

    One network, of which only the readout differs: CNTK-V, with LAP(4), with GAP. On the images as
    they are, averaged over horizontal flips, whitened (ZCA), and both; differences within draws.
    """
    with guarded(GOES_ON):
        from widelimit.display import read_duration
        from widelimit.experiments.readouts import Asked, Readouts
        from widelimit.job import check_backend, read_reading
        from widelimit.report.readouts import to_markdown

        limit = None if budget is None else read_duration(budget)
        job = Readouts.prepare(
            data,
            Asked(depth, n_train, n_test, draws, seed, limit),
            out,
            store,
            overwrite=overwrite,
            reading=read_reading(channels, size, skip_bad) | {"download": download},
            backend=check_backend(backend),
            threads=threads,
            memory=memory,
        )
        tell(job, yes)
        record = job.run(complain, progress=True)
        deliver(out, record, to_markdown(record))


@command()
def myrtle(
    data: DataArgument = "cifar10",
    out: RecordOption = Path("myrtle.json"),
    store: PartsOption = None,
    networks: Annotated[
        str,
        typer.Option(
            help="myrtle-5, myrtle-7, myrtle-10: all in one pass, so that one more begins anew."
        ),
    ] = "myrtle-5,myrtle-7,myrtle-10",
    activations: Annotated[
        str, typer.Option(help="relu (NTK and NNGP), gaussian (NNGP).")
    ] = "relu,gaussian",
    preprocessing: Annotated[
        str, typer.Option(help="standardise (by channel), zca.")
    ] = "standardise,zca",
    flips: Annotated[
        bool, typer.Option("--flips", help="Average kernels over horizontal flips, too.")
    ] = False,
    n_train: Annotated[int, typer.Option(min=1, help="Training images, the first ones.")] = 2000,
    n_test: Annotated[int, typer.Option(min=1, help="Test images.")] = 1000,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="As in 30min or 2h: takes as many images as fit into it here.",
            show_default="as long as it takes",
        ),
    ] = None,
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    download: DownloadOption = False,
    memory: MemoryOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Myrtle networks (Shankar et al. 2020): pooled kernels, with and without whitening and flips.

    Ridges and the best kernel are chosen by leave-one-out. A run may be gone on with by one that
    asks for other activations, preprocessing or flips, and takes what is there. With other networks
    all kernels are computed anew: those of all networks of a run come out of one pass.
    """
    with guarded(GOES_ON):
        from widelimit.display import read_duration
        from widelimit.experiments.myrtle import Myrtle
        from widelimit.experiments.myrtle_groups import Asked
        from widelimit.job import check_backend, read_reading
        from widelimit.report.myrtle import to_markdown

        def names(text: str) -> tuple[str, ...]:
            return tuple(name.strip() for name in text.split(","))

        asked = Asked(
            names(networks),
            names(activations),
            names(preprocessing),
            flips,
            n_train,
            n_test,
            None if budget is None else read_duration(budget),
        )
        job = Myrtle.prepare(
            data,
            asked,
            out,
            store,
            overwrite=overwrite,
            reading=read_reading(channels, size, skip_bad) | {"download": download},
            backend=check_backend(backend),
            threads=threads,
            memory=memory,
        )
        tell(job, yes)
        record = job.run(complain, progress=True)
        deliver(out, record, to_markdown(record), record["notes"])


@command()
def table2(
    data: DataArgument = "cifar10",
    out: RecordOption = Path("table2.json"),
    store: PartsOption = None,
    depths: Annotated[str, typer.Option(help="Of the networks.")] = "3,4,6",
    width: Annotated[int, typer.Option("--channels", min=1, help="Of the random networks.")] = 128,
    draws: Annotated[int, typer.Option(min=1, help="Random networks of each depth.")] = 10,
    classes: Annotated[int, typer.Option(min=2, help="The first classes: 2 is CIFAR-2.")] = 2,
    n_train: Annotated[
        int | None, typer.Option(min=1, help="Training images.", show_default="all")
    ] = None,
    n_test: Annotated[
        int | None, typer.Option(min=1, help="Test images.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the networks.")] = 0,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: Threads = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    memory: MemoryOption = None,
    picture: PictureOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Table 2: kernel regression on the gradient of random networks, beside exact kernels.

    The median over draws of networks, for CNTK-V and CNTK-GAP.
    """
    with guarded(GOES_ON):
        from widelimit.experiments.table2 import Table2
        from widelimit.job import check_backend, read_numbers, read_reading

        job = Table2.prepare(
            data,
            out,
            store,
            depths=read_numbers("--depths", depths),
            channels=width,
            draws=draws,
            classes=classes,
            n_train=n_train,
            n_test=n_test,
            seed=seed,
            overwrite=overwrite,
            reading=read_reading(None, size, skip_bad),
            device=device,
            backend=check_backend(backend),
            threads=threads,
            memory=memory,
        )
        _finish(job, out, picture, yes, overwrite)


@command("table1-cnn")
def table1_cnn(
    data: DataArgument = "cifar10",
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="cnn-v or cnn-gap; may be repeated.",
            show_default="both",
            autocompletion=words("cnn-v", "cnn-gap"),
        ),
    ] = None,
    out: RecordOption = Path("table1-cnn.json"),
    store: PartsOption = None,
    depths: Annotated[str, typer.Option(help="Of the networks.")] = "3,4,6,11,21",
    widths: Annotated[
        str, typer.Option("--channels", help="One number, or several: every depth with each.")
    ] = "1024",
    n_train: Annotated[
        int | None, typer.Option(min=1, help="Training images.", show_default="50,000")
    ] = None,
    n_test: Annotated[
        int | None, typer.Option(min=1, help="Test images.", show_default="10,000")
    ] = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(
            help="May be repeated: the one is taken that learns the training images first.",
            show_default="0.1, 1 and 10",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Networks of each depth.")] = 3,
    kappa: Annotated[float, typer.Option(help="What outputs are multiplied by.")] = 0.05,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, and of the order of images.")] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="The exact kernels, too, on the same images.")
    ] = False,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    threads: Threads = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    picture: PictureOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Table 1, its CNN columns: finite networks with the layers of the kernels, trained by SGD.

    Test accuracy is the mean of the 10 epochs after every training image is right, or of the last
    10, where that is not reached.
    """
    with guarded(GOES_ON):
        from widelimit.experiments.table1_cnn import AskedCNN, Table1CNN
        from widelimit.job import check_backend, read_numbers, read_reading

        given = {"columns": column, "learning_rates": learning_rate}
        chosen: Any = {name: tuple(values) for name, values in given.items() if values}
        asked = AskedCNN(
            depths=read_numbers("--depths", depths),
            channels=read_numbers("--channels", widths),
            n_train=n_train,
            n_test=n_test,
            trials=trials,
            kappa=kappa,
            batch=batch,
            epochs=epochs,
            seed=seed,
            exact=exact,
            **chosen,
        )
        job = Table1CNN.prepare(
            data,
            asked,
            out,
            store,
            overwrite=overwrite,
            reading=read_reading(None, size, skip_bad),
            device=device,
            backend=check_backend(backend),
            threads=threads,
        )
        _finish(job, out, picture, yes, overwrite)


@command()
def theorem31(
    out: RecordOption = Path("theorem31.json"),
    store: PartsOption = None,
    widths: WidthsOption = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Of each width, 2 or more.", show_default="as in docs/finite.md"),
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Networks whose mean is taken.")] = 200,
    mean_width: Annotated[int, typer.Option(min=2, help="Their width.")] = 512,
    device: DeviceOption = "auto",
    threads: Threads = None,
    picture: PictureOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Theorem 3.1 on digits: tangent kernels of networks of growing width tend to the exact one.

    The slope of the error in logarithms, and the mean of many networks.
    """
    with guarded(GOES_ON):
        from widelimit.experiments import theorems

        job = theorems.theorem31(
            out,
            store,
            widths=_read_widths(widths),
            seeds=seeds,
            draws=draws,
            mean_width=mean_width,
            overwrite=overwrite,
            device=device,
            threads=threads,
        )
        _finish(job, out, picture, yes, overwrite)


@command()
def theorem32(
    out: RecordOption = Path("theorem32.json"),
    store: PartsOption = None,
    widths: WidthsOption = None,
    seeds: SeedsOption = None,
    n_train: Annotated[int, typer.Option(min=2, help="Training images.")] = 20,
    n_test: Annotated[int, typer.Option(min=2, help="Test images.")] = 100,
    kappa: Annotated[float, typer.Option(help="What outputs are multiplied by.")] = 0.1,
    device: DeviceOption = "auto",
    threads: Threads = None,
    picture: PictureOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Theorem 3.2 on digits: trained networks of growing width tend to kernel regression.

    The largest gap on test images, at all times of the training.
    """
    with guarded(GOES_ON):
        from widelimit.experiments import theorems

        job = theorems.theorem32(
            out,
            store,
            widths=_read_widths(widths),
            seeds=seeds,
            n_train=n_train,
            n_test=n_test,
            kappa=kappa,
            overwrite=overwrite,
            device=device,
            threads=threads,
        )
        _finish(job, out, picture, yes, overwrite)


@command("weakly-trained")
def weakly_trained(
    out: RecordOption = Path("weakly-trained.json"),
    store: PartsOption = None,
    widths: WidthsOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks of each width.")] = 5,
    n_train: Annotated[int, typer.Option(min=2, help="Training images.")] = 40,
    n_test: Annotated[int, typer.Option(min=2, help="Test images.")] = 200,
    device: DeviceOption = "auto",
    threads: Threads = None,
    picture: PictureOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Networks of which the last layer alone is trained tend to the NNGP kernel, on digits."""
    with guarded(GOES_ON):
        from widelimit.experiments import theorems

        job = theorems.weakly_trained(
            out,
            store,
            widths=_read_widths(widths),
            seeds=seeds,
            n_train=n_train,
            n_test=n_test,
            overwrite=overwrite,
            device=device,
            threads=threads,
        )
        _finish(job, out, picture, yes, overwrite)
