"""Train a language model over bytes with a dense, a streaming and a dilated-plus-window attention, on a CPU.

    python examples/train_lm.py
    python examples/train_lm.py --steps 400 --length 1024 --batch 2 --patterns streaming --no-check

The text is what every Python ships with: its licence, its language reference and the documentation strings of its
modules. Each pattern is compiled by attnc, and trained a second time with PyTorch's `scaled_dot_product_attention` and
the pattern's dense mask: same parameters at the start, same text, so the curves must be the same but for rounding.
Curves as a picture, the table and all numbers are written to `--out`.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from language_model import picture, report
from language_model.agreement import FIRST, Agreement, agreements
from language_model.mistakes import MistakeError
from language_model.model import Size
from language_model.patterns import Pattern, load_pattern, parse_names, torch_attend
from language_model.text import read_corpus
from language_model.training import Learner, Settings, train
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attnc import CompileError, terminal
from attnc.bench.machine import free_memory
from attnc.files import require_writable, write_bytes, write_text
from attnc.pictures import figure_class

MASK_BYTES = 5
"""Bytes that SDPA needs for each pair: of the mask, and of the float that it makes of it."""

LARGEST_HEAD = 256
"""The greatest head size of attnc's attentions."""

LARGEST, MOST_THREADS = 1 << 30, 1024
"""No option needs a greater number."""


class Precision(StrEnum):
    """Of parameters and computation; float64 shows that differences are rounding, for they shrink."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Steps = Annotated[int, typer.Option(help="Updates of the parameters.")]
Length = Annotated[int, typer.Option(help="Bytes of a window.")]
Batch = Annotated[int, typer.Option(help="Windows of a step.")]
Patterns = Annotated[str, typer.Option(help="Of dense, streaming, dilated; with commas.")]
Window = Annotated[int, typer.Option(help="Keys in the window of streaming and dilated.")]
Width = Annotated[int, typer.Option(help="Width of the model.")]
Layers = Annotated[int, typer.Option(help="Layers of the model.")]
Heads = Annotated[int, typer.Option(help="Heads of a layer.")]
Rate = Annotated[float, typer.Option(help="The highest learning rate.")]
Evaluations = Annotated[int, typer.Option(help="How often the loss on held-out text is taken.")]
HeldOut = Annotated[int, typer.Option(help="Windows of held-out text.")]
TextBytes = Annotated[int, typer.Option(help="The most text to read.")]
Seed = Annotated[int, typer.Option(help="Of the parameters and of the order of the text.")]
Dtype = Annotated[Precision, typer.Option(help="Precision.")]
Threads = Annotated[int | None, typer.Option(help="Cores to compute with; torch's choice unless said.")]
Check = Annotated[bool, typer.Option(help="Train with SDPA as well, and compare the curves.")]
Tolerance = Annotated[float, typer.Option(help="How far the curves may be apart, in nats.")]
Out = Annotated[Path, typer.Option(help="Folder for loss.png, table.md and curves.json.")]


@app.command()
def main(
    steps: Steps = 400,
    length: Length = 1024,
    batch: Batch = 1,
    patterns: Patterns = "dense,streaming,dilated",
    window: Window = 128,
    width: Width = 128,
    layers: Layers = 5,
    heads: Heads = 4,
    learning_rate: Rate = 1.5e-3,
    evaluations: Evaluations = 10,
    held_out: HeldOut = 4,
    text_bytes: TextBytes = 4_000_000,
    seed: Seed = 0,
    dtype: Dtype = Precision.FLOAT32,
    threads: Threads = None,
    check: Check = True,
    tolerance: Tolerance = 1e-3,
    out: Out = Path("build/train_lm"),
) -> None:
    """Train a language model with several attentions, and compare loss, FLOPs, time and memory."""
    _require_least(1, steps=steps, batch=batch, window=window, layers=layers, heads=heads, evaluations=evaluations)
    _require_least(1, held_out=held_out, text_bytes=text_bytes)
    _require_least(2, length=length, width=width)
    _require_least(0, seed=seed)
    if threads is not None:
        _require_least(1, most=MOST_THREADS, threads=threads)
        torch.set_num_threads(threads)
    _require_above_zero(learning_rate=learning_rate, tolerance=tolerance)
    if width % (2 * heads) or width // heads > LARGEST_HEAD:
        raise MistakeError(
            f"--width is {width}, expected a multiple of twice --heads, {2 * heads}, up to {LARGEST_HEAD * heads}"
        )
    names = parse_names(patterns)
    if check:
        _require_memory(length)
    size, precision = Size(width, layers, heads), getattr(torch, dtype.value)
    settings = Settings(size, steps, length, batch, learning_rate, evaluations, held_out, seed, precision)
    corpus = read_corpus(text_bytes, length)
    files = _prepare(out)
    print(
        f"{corpus.documents:,} documents of Python {platform.python_version()}: {len(corpus.training):,} bytes to learn"
        f" from, {len(corpus.validation):,} held out",
        flush=True,
    )
    learners = _learners([load_pattern(name, length, window) for name in names], settings, check=check)
    with _progress(learners, settings) as advance:
        train(learners, corpus, settings, advance)
    found = agreements(learners)
    _write(files, learners, settings, found)
    _judge(found, tolerance)


def _require_least(least: int, *, most: int = LARGEST, **options: int) -> None:
    for name, value in options.items():
        if not least <= value <= most:
            option = name.replace("_", "-")
            raise MistakeError(f"--{option} is {value}, expected a number from {least} to {most:,}")


def _require_above_zero(**options: float) -> None:
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise MistakeError(f"--{name.replace('_', '-')} is {value}, expected a number above 0")


def _require_memory(length: int) -> None:
    needed, free = MASK_BYTES * length**2, free_memory(torch.device("cpu"))
    if needed > free:
        raise MistakeError(
            f"SDPA's mask of {length:,} x {length:,} takes {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free; lower --length or use --no-check"
        )


def _prepare(out: Path) -> dict[str, Path]:
    """Make the folder, and fail before the training where its files could not be written after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MistakeError(f"--out: `{out}` cannot be made: {(error.strerror or str(error)).lower()}") from None
    files = {name: out / name for name in ("loss.png", "table.md", "curves.json")}
    for file in files.values():
        require_writable(file)
    figure_class()
    return files


def _learners(loaded: Sequence[Pattern], settings: Settings, *, check: bool) -> list[Learner]:
    """Return a model for each pattern, and one of PyTorch's attention beside it."""
    learners = []
    for pattern in loaded:
        learners.append(Learner(pattern, "attnc", pattern.attend, settings))
        if check:
            learners.append(Learner(pattern, *torch_attend(pattern), settings))
    return learners


@contextlib.contextmanager
def _progress(learners: Sequence[Learner], settings: Settings) -> Iterator[Callable[[Learner], None]]:
    """Show a bar and the losses of each model on standard error; nothing where that is not a terminal."""
    console = terminal.messages()
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {learner.name: bars.add_task(learner.name, total=settings.steps, losses="") for learner in learners}

        def advance(learner: Learner) -> None:
            curves = learner.curves
            held_out = curves.validation[max(curves.validation)]
            losses = f"loss {curves.training[-1]:.3f}, held out {held_out:.3f}"
            bars.update(tasks[learner.name], advance=1, losses=losses)

        yield advance


def _write(files: dict[str, Path], learners: Sequence[Learner], settings: Settings, found: Sequence[Agreement]) -> None:
    """Print the table and write the files."""
    terminal.output().print(report.table(learners, settings))
    print(report.caption(settings))
    for one in found:
        print(one.sentence())
    write_bytes(files["loss.png"], picture.draw(learners, found))
    write_text(files["table.md"], report.markdown(learners, settings, found))
    write_text(files["curves.json"], json.dumps(report.as_json(learners, settings, found), indent=1) + "\n")
    print("wrote " + ", ".join(str(file) for file in files.values()))


def _judge(found: Sequence[Agreement], tolerance: float) -> None:
    """Fail where curves are apart; an unsteady training is another reason for it, since rounding grows in it."""
    for one in found:
        if not one.greatest <= tolerance:
            apart = f"{one.greatest:.1e} apart, more than {tolerance:.1e}; {one.first:.1e} in the first {FIRST} steps"
            hint = "where only later ones are, try a lower --learning-rate: rounding grows less"
            raise MistakeError(f"{one.pattern}: the curves are {apart} ({hint})")


def run() -> None:
    """Run the command line; what the user can mend is said in a line, with exit code 1."""
    try:
        app()
    except MistakeError as error:
        sys.exit(f"error: {error}")
    except CompileError as error:
        terminal.report_error(error)
        sys.exit(1)


if __name__ == "__main__":
    run()
