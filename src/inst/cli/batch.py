"""The commands `inst batch`: many photos, many styles, many prompts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.film import film
from inst.cli.learn import LearnOptions
from inst.cli.pictures import FlattenOption, GenerateOptions, TransferOptions
from inst.cli.places import read_path
from inst.cli.running import duration, ends_as_ctrl_c
from inst.cli.session import SeedOption, Session, with_session
from inst.cli.wording import command_line_wording
from inst.errors import InstError, UsageError
from inst.texts import LONGEST_LINE, cut

if TYPE_CHECKING:
    from inst.batch.orders import Order, Row
    from inst.batch.ray_cluster import RayOptions
    from inst.batch.run import Progress, Totals

app = typer.Typer(
    help="Work through whole folders, tables or films. A run that was interrupted goes on with the same command.",
    no_args_is_help=True,
)

_SOURCE = (
    "a folder, a glob (in quotes), a list of files (.txt), shards (.tar) or a Parquet file; on this computer, or s3:// "
    "and other URLs. Repeat it for more."
)
_EXTRA = {"allow_extra_args": True}  # `_refuse_more` has a clearer message for them
_RAY_PANEL = "Ray cluster"
_NOTES_EVERY = 60  # seconds between two lines about the progress where there is no terminal
_MOST_FAILURES_SHOWN = 20
_LONGEST_FAILURE = 600  # characters; the manifest has all of them

OutFolderOption = Annotated[
    str,
    typer.Option(
        "-o",
        "--out",
        parser=lambda text: text if "://" in text else str(read_path(text)),
        metavar="<folder>",
        help="Folder for the results, created if it is missing; or a URL, such as s3://bucket/folder.",
    ),
]
StylesOption = Annotated[
    list[str] | None,
    typer.Option("--styles", help=f"Styles: style files or paintings, each of them a style: {_SOURCE}"),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="png (keeps the record for inst repeat), jpg or webp (smaller files).")
]
ColumnOption = Annotated[str | None, typer.Option("--column", help="Picture column of the Parquet files.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Number of pictures that are made together. By default 8 on a GPU, 1 on a CPU."
    ),
]


@dataclass(kw_only=True)
class BatchOptions:
    """The options of all batches."""

    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Take the pictures in the folders of a folder too.")
    ] = False
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            help="Devices to use, each by its own process, such as cuda:0,cuda:1. By default all GPUs, or the CPU.",
        ),
    ] = None
    max_failures: Annotated[
        int | None,
        typer.Option(
            "--max-failures", min=0, help="Stop when more inputs than this cannot be used. By default the rest goes on."
        ),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Use Ray: auto for the cluster of this machine, ray://HOST:PORT, or local for this machine alone.",
            rich_help_panel=_RAY_PANEL,
        ),
    ] = None
    num_gpus: Annotated[
        float | None,
        typer.Option(
            "--num-gpus", help="GPUs of each worker; by default 1 if there are any.", rich_help_panel=_RAY_PANEL
        ),
    ] = None
    num_cpus: Annotated[
        float | None,
        typer.Option("--num-cpus", help="CPU cores of each worker; by default 1.", rich_help_panel=_RAY_PANEL),
    ] = None
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            help="Number of workers; by default as many as the cluster has room for.",
            rich_help_panel=_RAY_PANEL,
        ),
    ] = None

    def ray(self) -> RayOptions | None:
        """Return how to use Ray; None without it. Raises UsageError for options that need an address."""
        from inst.batch.ray_cluster import RayOptions

        given = {
            name: value
            for name in ("num_gpus", "num_cpus", "concurrency")
            if (value := getattr(self, name)) is not None
        }
        if self.address is None:
            if given:
                option = f"--{next(iter(given)).replace('_', '-')}"
                raise UsageError(f"{option} is for a Ray cluster", "add --address auto, or leave it out")
            return None
        if self.devices is not None:
            raise UsageError("--devices and --address exclude each other", "leave out one of them")
        return RayOptions(self.address, **given)


@app.command(context_settings=_EXTRA)
@with_session
def transfer(
    context: typer.Context,
    session: Session,
    out: OutFolderOption,
    options: TransferOptions,
    batch: BatchOptions,
    photos: Annotated[list[str] | None, typer.Option("--photos", help=f"Photos to repaint: {_SOURCE}")] = None,
    styles: StylesOption = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs",
            help="A CSV or Parquet file with the columns photo and style, instead of every photo in every style. "
            "Pairs of one style that stand together are faster.",
        ),
    ] = None,
    column: ColumnOption = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = None,
    flatten: FlattenOption = False,
    ending: FormatOption = "png",
) -> None:
    """Repaint many photos in the style of many paintings."""
    _refuse_more(context)
    settings = {**options.settings(), "flatten": flatten}
    if (pairs is None) == (photos is None and styles is None) or (photos is None) != (styles is None):
        raise UsageError("The pictures to repaint are not clear", "give --photos and --styles, or --pairs alone")

    def order(shared: dict[str, Any]) -> Order:
        from inst.batch.painting import TransferOrder

        return TransferOrder(
            **shared,
            photos=tuple(photos or ()),
            styles=tuple(styles or ()),
            pairs=pairs,
            column=column,
            ending=f".{ending.removeprefix('.')}",
        )

    _run(session, batch, order, settings, seed, batch_size, out, "repainting")


@app.command(context_settings=_EXTRA)
@with_session
def learn(
    context: typer.Context,
    session: Session,
    out: OutFolderOption,
    options: LearnOptions,
    batch: BatchOptions,
    paintings: Annotated[list[str], typer.Option("--paintings", help=f"Paintings, each of them a style: {_SOURCE}")],
    together: Annotated[
        int | None,
        typer.Option(
            "--together", min=1, help="Number of styles that learn together. By default 16 on a GPU, 1 on a CPU."
        ),
    ] = None,
    column: ColumnOption = None,
    seed: SeedOption = 0,
) -> None:
    """Learn a style of each of many paintings."""
    _refuse_more(context)

    def order(shared: dict[str, Any]) -> Order:
        from inst.batch.learning import LearnOrder

        return LearnOrder(**shared, paintings=tuple(paintings), column=column)

    settings = options.settings(context)
    find_image_encoder = settings["variant"] != "direct"
    _run(session, batch, order, settings, seed, together, out, "learning", find_image_encoder=find_image_encoder)


@app.command(context_settings=_EXTRA)
@with_session
def generate(
    context: typer.Context,
    session: Session,
    out: OutFolderOption,
    options: GenerateOptions,
    batch: BatchOptions,
    prompts: Annotated[
        str,
        typer.Option("--prompts", help="File of prompts: a text with one in each line, or CSV, JSON lines or Parquet."),
    ],
    styles: Annotated[list[str], typer.Option("--styles", help=f"Style files or paintings: {_SOURCE}")],
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = None,
    ending: FormatOption = "png",
) -> None:
    """Make pictures from many prompts, in the style of many paintings."""
    _refuse_more(context)

    def order(shared: dict[str, Any]) -> Order:
        from inst.batch.painting import GenerateOrder

        return GenerateOrder(**shared, prompts=prompts, styles=tuple(styles), ending=f".{ending.removeprefix('.')}")

    _run(session, batch, order, options.settings(), seed, batch_size, out, "painting")


app.command()(film)


def _refuse_more(context: typer.Context) -> None:
    """Refuse arguments that belong to no option, such as the files that a shell puts in the place of a glob."""
    if context.args:
        more = f" and {len(context.args) - 1:,} more are" if context.args[1:] else " is"
        raise UsageError(
            f"{context.args[0]}{more} without an option",
            'put a glob in quotes, such as "photos/*.jpg"; or repeat the option',
        )


def _run(
    session: Session,
    batch: BatchOptions,
    make_order: Any,
    settings: dict[str, Any],
    seed: int,
    batch_size: int | None,
    out: str,
    what: str,
    *,
    find_image_encoder: bool = False,
) -> None:
    """Do an order with a progress bar, and report what was done. Exits with 1 if an input could not be used."""
    ray = batch.ray()
    order = make_order(
        {
            "out": out,
            "settings": settings,
            "seed": seed,
            "batch_size": batch_size,
            "recursive": batch.recursive,
            "wording": command_line_wording,
            "backbone": session.load_arguments(find_image_encoder=find_image_encoder),
        }
    )
    from inst.batch.run import run_batch

    devices = () if ray is not None else _devices(session, batch)
    own = ray is None and len(devices) < 2
    steps = run_batch(
        order,
        backbone=session.load(find_image_encoder=find_image_encoder) if own else None,
        devices=devices,
        ray=ray,
        max_failures=batch.max_failures,
    )
    with ends_as_ctrl_c(signal.SIGTERM):  # as clusters stop a job
        totals = _follow(session, order, steps, what)
    numbers = asdict(totals) | {"seconds": round(totals.seconds, 3), "per_second": round(totals.rate, 4)}
    session.report([_line(totals), totals.manifest], **numbers)
    if totals.failed:
        raise typer.Exit(1)


def _devices(session: Session, batch: BatchOptions) -> tuple[str, ...]:
    """Return the devices that get a process each; one or none if this process does the work."""
    if batch.devices is not None:
        if session.device is not None:
            raise UsageError("--device and --devices exclude each other", "leave out one of them")
        devices = tuple(name.strip() for name in batch.devices.split(","))
        if not all(devices):
            shown = cut(batch.devices, 60)
            raise UsageError(f'The devices "{shown}" cannot be used', "give names, such as cuda:0,cuda:1")
        if len(devices) == 1:
            session.device = devices[0]
        return devices
    if session.device is not None:
        return ()
    import torch

    count = torch.cuda.device_count()
    return tuple(f"cuda:{number}" for number in range(count)) if count > 1 else ()


def _follow(session: Session, order: Order, steps: Generator[Progress, None, Totals], what: str) -> Totals:
    """Run a batch to its end, and show how far it is."""
    counted = _Count(order)
    shown, noted, totals = set[str](), time.monotonic(), None
    try:
        with session.progress(what) as update:
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
                totals = step.totals
                if step.row is None:
                    _note_changes(session, step.changed)
                    continue
                update(totals.done, counted.total, f"{totals.rate:.2f}/s")
                if step.row.status == "failed" and len(shown) < _MOST_FAILURES_SHOWN:
                    line = _failure(step.row)
                    if line not in shown:  # a style that cannot be used fails with each photo
                        session.note(line)
                        shown.add(line)
                        if len(shown) == _MOST_FAILURES_SHOWN:
                            session.note("Further failures are only in the manifest.")
                if session.hides_progress and not session.as_json and time.monotonic() - noted > _NOTES_EVERY:
                    noted = time.monotonic()
                    session.note(_line(totals, counted.total))
    except KeyboardInterrupt:
        if totals is not None:
            session.note(f"{_line(totals)} The same command goes on.")
        raise
    finally:
        steps.close()


class _Count:
    """Counts the inputs in a thread, because a large folder takes a while."""

    def __init__(self, order: Order) -> None:
        self.total: int | None = None
        threading.Thread(target=self._count, args=(order,), daemon=True).start()

    def _count(self, order: Order) -> None:
        with suppress(InstError):  # the run says what is wrong with its inputs
            self.total = order.count()


def _failure(row: Row) -> str:
    """Return the line about an input that failed. Errors of files name them; others do not."""
    where = "" if row.input in row.error or (row.style and row.style in row.error) else f"{row.input}: "
    return cut(f"Failed: {where}{row.error}", _LONGEST_FAILURE)  # the end has the reason, after a long prompt


def _note_changes(session: Session, changed: dict[str, tuple[object, object]]) -> None:
    if changed:
        values = (tuple(cut(str(part), 60) for part in (name, *pair)) for name, pair in changed.items())
        text = cut(", ".join(f"{name} {before} -> {now}" for name, before, now in values), LONGEST_LINE)
        session.note(f"Other settings than in the run before ({text}): its results stay beside the new ones.")


def _line(totals: Totals, total: int | None = None) -> str:
    of = f"{totals.done:,} of {total:,}: " if total else ""
    parts = [f"{totals.made:,} made"]
    parts += [
        f"{number:,} {word}" for number, word in ((totals.kept, "there already"), (totals.failed, "failed")) if number
    ]
    left = ""
    if total and totals.made and totals.done < total:
        left = f", about {duration(totals.seconds / totals.done * (total - totals.done))} left"
    return f"{of}{', '.join(parts)} in {duration(totals.seconds)} ({totals.rate:.2f} a second){left}."
