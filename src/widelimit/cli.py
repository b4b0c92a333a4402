"""The command line. Each command checks its options, then calls the module that does the work.

Nothing heavy is imported before a command runs, so that ``widelimit --help`` is quick.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from widelimit.console import (
    DATA_HELP,
    DEFAULT_NETWORK,
    GOES_ON,
    HELP,
    NETWORK_HELP,
    NOTHING_WRITTEN,
    BackendOption,
    ChannelsOption,
    Command,
    DataArgument,
    DownloadOption,
    Group,
    ImageShapeOption,
    LabelOption,
    OneKind,
    Overwrite,
    SizeOption,
    SkipBad,
    Threads,
    Yes,
    complain,
    data_sets,
    deliver,
    exits,
    guarded,
    networks_named,
    tell,
    user_input,
    warned,
)
from widelimit.files import check_file, make_folder
from widelimit.keeping import keep, keep_and_show
from widelimit.reproduce import reproduce

__all__ = ["app", "main"]

app = typer.Typer(
    name="widelimit",
    cls=Group,
    context_settings=HELP,
    help="Exact kernels of infinitely wide neural networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
command = partial(app.command, cls=Command, context_settings=HELP)
app.add_typer(reproduce, name="reproduce")


def main() -> None:
    """Run the command line: `widelimit.__main__` is where it starts."""
    # Names of files need not be UTF-8, nor the terminal.
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        from widelimit._version import __version__

        typer.echo(f"widelimit {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Exact kernels of infinitely wide neural networks (NTK, CNTK, NNGP)."""


@command()
def demo(
    data: Annotated[str, typer.Option(help=DATA_HELP, autocompletion=data_sets)] = "digits",
    out: Annotated[str, typer.Option(help="Folder for the report.")] = "out",
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Training sets of each size.", show_default="5; quick: 2"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1e5,
            help="Time to plan for, on two modern processors: more minutes, more images.",
            show_default="2.5; quick: 0.05",
        ),
    ] = None,
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    label: LabelOption = None,
    image_shape: ImageShapeOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images and draws.")] = False,
) -> None:
    """Learn from few images: exact kernels against an SVM and logistic regression.

    Shows the accuracy with more and more training images; writes a report for the browser.
    """
    with exits():
        from rich.console import Console

        from widelimit.job import read_reading
        from widelimit.report.demo import Demo

        with user_input(), warned():
            job = Demo.prepare(
                data,
                out,
                draws=draws,
                seed=seed,
                minutes=minutes,
                threads=threads,
                **read_reading(channels, size, skip_bad, label, image_shape),
                quick=quick,
            )
        job.run(Console())


@command()
def doctor() -> None:
    """Show what was found on this machine and what is used of it; test every instruction set."""
    with exits():
        from widelimit.doctor import examine, render

        diagnosis = examine()
        typer.echo(render(diagnosis))
        if diagnosis.problems:
            raise typer.Exit(1)


@command()
def explain(
    networks: Annotated[
        list[str],
        typer.Argument(help=NETWORK_HELP, metavar="NETWORK...", autocompletion=networks_named),
    ],
    shape: Annotated[
        str, typer.Option(help="Of one input: 32x32x3, 128x1 of a series, or 784.")
    ] = "32x32x3",
    kind: Annotated[list[str] | None, typer.Option(help="ntk or nngp; may be repeated.")] = None,
    inputs: Annotated[
        int, typer.Option(min=1, help="How many inputs to tell the cost of, on this machine.")
    ] = 1000,
    backend: BackendOption = "auto",
) -> None:
    """Say what would be computed for a network, or for several in one pass, and at what cost."""
    with guarded():
        from widelimit.job import check_backend, explain_networks, read_network, read_shape
        from widelimit.matrices.inputs import read_series

        parsed = [read_network(text) for text in networks]
        chosen, named = check_backend(backend), read_shape(shape, series=read_series(parsed))
        typer.echo(explain_networks(parsed, named, kind or ["ntk"], networks, inputs, chosen))


@command()
def kernel(
    inputs: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Images (n, h, w, c), rows (n, d) or series (n, length, c) in an .npy or .npz "
            "file; or a data set: digits, fashion-mnist, cifar10, a folder (NAME:test for those of "
            "its test set).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="The kernel: an .npy file, or a .zarr store (a path or URL), which may be larger "
            "than memory, and which the same command goes on with after it was stopped.",
            show_default=False,
        ),
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{NETWORK_HELP} May be repeated: all in one pass.",
            show_default=False,
            autocompletion=networks_named,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="The other inputs.", show_default="the same: a symmetric matrix"),
    ] = None,
    array: Annotated[str | None, typer.Option(help="Which array of an .npz file.")] = None,
    kind: OneKind = "ntk",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    label: LabelOption = None,
    image_shape: ImageShapeOption = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory to take, as in 6GB; for a store.", show_default="60 % of what is free"
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all tiles of a store; mend damaged ones.")
    ] = False,
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed", help="Go on with a store of another instruction set or version."
        ),
    ] = False,
    overwrite: Overwrite = False,
    yes: Yes = False,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Say how far a store is, and compute nothing.", show_default=False
        ),
    ] = None,
) -> None:
    """Compute the kernel of a network between all pairs of inputs, into a file or a store."""
    stored = out is not None and out.endswith(".zarr")
    kept = GOES_ON if stored else NOTHING_WRITTEN
    with guarded(kept):
        from widelimit.job import Job, describe_store, read_network, read_reading

        if status is not None:
            if inputs is not None or out is not None or net:
                raise ValueError("--status takes a store, and neither DATA nor --out nor --net")
            typer.echo(describe_store(status))
            return
        if inputs is None or out is None or not net:
            raise ValueError(
                "kernel needs DATA, --net and --out, as in: widelimit kernel images.npy --net "
                "cntk-gap-11 --out k.zarr"
            )
        networks = [read_network(text) for text in net]
        job = Job.prepare(
            inputs,
            out,
            networks,
            columns=columns,
            array=array,
            kind=kind,
            dtype=dtype,
            backend=backend,
            threads=threads,
            **read_reading(channels, size, skip_bad, label, image_shape, networks),
            memory=memory,
            verify=verify,
            allow_mixed=allow_mixed,
            overwrite=overwrite,
        )
        tell(job.forecast(), yes)
        place = job.run(progress=stored or sys.stderr.isatty())
    typer.echo(job.describe(place, net, inputs, columns))


@command()
def fit(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="A new folder for the model.", show_default=False)],
    net: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{NETWORK_HELP} May be repeated: the best by leave-one-out.",
            show_default=DEFAULT_NETWORK,
            autocompletion=networks_named,
        ),
    ] = None,
    kind: OneKind = "ntk",
    ridge: Annotated[
        str, typer.Option(help="Relative ridge, or loo: chosen by leave-one-out.")
    ] = "0",
    time: Annotated[
        str | None,
        typer.Option(
            help="Time of training, or loo: chosen by leave-one-out.", show_default="until the end"
        ),
    ] = None,
    whiten: Annotated[
        str | None,
        typer.Option(
            help="Regularised ZCA of the images: its regularisation, as 0.1; or loo: chosen by "
            "leave-one-out, none included.",
            show_default="none",
        ),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="image: each image to unit norm, so that brightness plays no part.",
            show_default="none",
        ),
    ] = None,
    combine: Annotated[
        str, typer.Option(help="Of several networks: best, or the mean of their kernels.")
    ] = "best",
    per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Training images drawn of each class.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE|DATA",
            help="Classify images that are not fitted: a share of each class, as 0.2, which is "
            "held out; given, the test set of DATA; or another folder or data set.",
            show_default="all are fitted, leave-one-out is the test",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 or float64.", show_default="float32; for rows float64"),
    ] = None,
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    label: LabelOption = None,
    image_shape: ImageShapeOption = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="A folder for the kernel and its factor, which may be larger than memory; the "
            "same command goes on with it after it was stopped.",
            show_default="in memory",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory to take, as in 6GB.", show_default="60 % of what is free"),
    ] = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Fit a classifier to labelled images, rows or series, and save it.

    Tells the accuracy by leave-one-out.
    """
    kept = NOTHING_WRITTEN if store is None else GOES_ON
    with guarded(kept):
        from widelimit.classify import Fit, read_choice
        from widelimit.job import check_backend, read_network, read_reading

        networks = [read_network(text) for text in net or []]
        job = Fit.prepare(
            data,
            out,
            overwrite=overwrite,
            per_class=per_class,
            test=test,
            **read_reading(channels, size, skip_bad, label, image_shape, networks),
            seed=seed,
            net=None if not networks else networks[0] if len(networks) == 1 else networks,
            kind=kind,
            ridge=read_choice("ridge", ridge),
            time=read_choice("time", time),
            whiten=read_choice("whiten", whiten),
            normalise=normalise,
            combine=combine,
            dtype=dtype,
            backend=check_backend(backend),
            threads=threads,
            store=store,
            memory=memory,
            progress=store is not None or sys.stderr.isatty(),
        )
        tell(job.forecast(), yes)
        place = job.run(typer.echo)
    if test is not None:
        with guarded(f"the model is in {place}"):
            job.test(typer.echo)


@command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Image files in any format that Pillow reads, and folders; tables (CSV) of rows "
            "or pixels, and files of arrays: .npz, .npy, .mat, .h5.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The table, a CSV file.", show_default="printed"),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda or reference.", show_default="that of the model"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="those of the model")
    ] = None,
    array: Annotated[str | None, typer.Option(help="Which array of a file.")] = None,
    channels: ChannelsOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Classify images or rows: a table of classes and probabilities, a row for each of them.

    It is CSV in UTF-8. A cell that begins with ' holds text that a spreadsheet would run, or that
    is not UTF-8, with the escapes of a Python string.
    """
    with guarded():
        from widelimit.classify import Prediction
        from widelimit.job import check_backend, check_channels_word

        where = check_channels_word(channels)
        how: Any = {"array": array, "channels": where, "overwrite": overwrite}
        job = Prediction.prepare(model, images, out, **how)
        job.model.backend = check_backend(backend or job.model.backend)
        job.model.threads = threads or job.model.threads
        tell(job.forecast(), True)  # it asks nothing: it may stand in the middle of a pipe
        text = job.run(complain)
        if out is None:
            typer.echo(text.encode(), nl=False)
        else:
            place = job.write(text, out)
            typer.echo(f"{place}: {job.said}")


@command()
def suspects(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for table and sheet.")] = Path("suspects"),
    net: Annotated[
        str | None,
        typer.Option(
            help=NETWORK_HELP, show_default=DEFAULT_NETWORK, autocompletion=networks_named
        ),
    ] = None,
    ridge: Annotated[
        str, typer.Option(help="Relative ridge, or loo: chosen by leave-one-out.")
    ] = "loo",
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    label: LabelOption = None,
    image_shape: ImageShapeOption = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Name the images, rows or series whose labels are likely wrong.

    They are those that all others label otherwise.

    Writes a table, suspects.csv, and a sheet of thumbnails, suspects.html.
    """
    with guarded():
        from widelimit.classify import Suspicion, read_choice
        from widelimit.job import check_backend, read_network, read_reading
        from widelimit.report.suspects import unjudged

        networks = [] if net is None else [read_network(net)]
        job = Suspicion.prepare(
            data,
            out,
            overwrite=overwrite,
            **read_reading(channels, size, skip_bad, label, image_shape, networks),
            net=networks[0] if networks else None,
            ridge=read_choice("ridge", ridge),
            backend=check_backend(backend),
            threads=threads,
            progress=sys.stderr.isatty(),
        )
        tell(job.forecast(), yes)
        found, alone, sheet = job.run()
    for entry in found[:10]:
        typer.echo(
            f"{entry.file}: {entry.label} ({entry.p_label:.1%}), rather {entry.suggested} "
            f"({entry.p_suggested:.1%})"
        )
    what = job.data.what
    table = sheet.with_suffix(".csv")
    if alone:
        typer.echo(f"of {len(job.data.y_train):,} {what} {unjudged(alone)}")
    if job.left:
        typer.echo(job.left)
    typer.echo(
        f"{len(found):,} of {len(job.data.y_train):,} {what} are suspects: {sheet}, and {table}"
    )


@command()
def rank(
    data: DataArgument,
    net: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{NETWORK_HELP} May be repeated.",
            show_default="16 of the paper's kind",
            autocompletion=networks_named,
        ),
    ] = None,
    n: Annotated[
        str, typer.Option("--n", help="Training images, ascending, as many of each class.")
    ] = "200,500",
    validation: Annotated[
        int | None, typer.Option(min=1, help="Images for validation.", show_default="half of them")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Training sets of each size.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="The record, a .json file.")] = Path("rank.json"),
    store: Annotated[
        Path | None,
        typer.Option(
            help="Of the kernels; the same command goes on with it after it was stopped.",
            show_default="beside the record",
        ),
    ] = None,
    backend: BackendOption = "auto",
    threads: Threads = None,
    channels: ChannelsOption = None,
    size: SizeOption = None,
    skip_bad: SkipBad = False,
    label: LabelOption = None,
    image_shape: ImageShapeOption = None,
    download: DownloadOption = False,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory to take, as in 6GB.", show_default="60 % of what is free"),
    ] = None,
    overwrite: Overwrite = False,
    yes: Yes = False,
) -> None:
    """Rank architectures on few images, by leaving one out and by a validation set.

    Kendall's tau compares few images with more, both ways of scoring, and, where the images are
    those of CIFAR-10 (by the name of the data set, or of its classes), the paper's columns.
    Images are standardised by channel, with mean and deviation of all that are drawn, those for
    validation too.
    """
    with guarded(GOES_ON):
        from widelimit.experiments.rank import Rank
        from widelimit.job import check_backend, read_network, read_numbers, read_reading
        from widelimit.report.rank import to_markdown

        networks = {text: read_network(text) for text in net or []}
        reading = read_reading(channels, size, skip_bad, label, image_shape, [*networks.values()])
        job = Rank.prepare(
            data,
            networks,
            read_numbers("--n", n),
            out,
            store,
            validation=validation,
            draws=draws,
            seed=seed,
            overwrite=overwrite,
            reading=reading | {"download": download},
            backend=check_backend(backend),
            threads=threads,
            memory=memory,
        )
        tell(job.cost, yes)
        record = job.run(complain, progress=True)
        deliver(out, record, to_markdown(record))


@command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Records of reproduce, rank and demo: .json files."),
    ],
    out: Annotated[Path, typer.Option(help="The page, an .html file.")] = Path("report.html"),
    overwrite: Overwrite = False,
) -> None:
    """Make one page of the records of runs, for the browser: tables, plots, pictures.

    It needs nothing but itself, and no network.
    """
    with guarded():
        from widelimit.report.runs import Report

        page = Report.prepare(runs, out, overwrite=overwrite)
        typer.echo(f"report: {keep(out, page.write)}")


@command()
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="One group of measurements, may be repeated: speed, sizes, families, general, "
            "threads, store, instruction-sets, interrupt.",
            show_default="all",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON record goes.")] = Path("bench.json"),
    images: Annotated[
        Path | None,
        typer.Option(help="An .npz file with X_train.", show_default="random images"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random images.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round, to see that it works.")
    ] = False,
) -> None:
    """Measure this machine next to what it should reach; takes minutes, and wants it idle.

    Fails if a target is missed by more than its tolerance: 10 %, 20 % for shares of the bound.
    """
    with exits():
        from widelimit.bench import Setting, choose_groups, exit_code, render, run, write_json

        with user_input():
            groups = choose_groups(only)
            setting = Setting.prepare(images, seed, quick=quick)
            make_folder(out.parent)
            check_file(out)
        record = run(setting, groups, lambda line: typer.echo(line, err=True))
        place = keep_and_show(
            out, lambda path: write_json(record, path), lambda: typer.echo(render(record))
        )
        typer.echo(f"record: {place}")
        if exit_code(record):
            raise typer.Exit(1)


if __name__ == "__main__":
    main()
