"""The arguments of `attnc study`; `cli` makes a command of them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from attnc.parameters import parse_parameters

EXAMPLES = (
    "attnc study --preset tiny",
    "attnc study streaming.attn -D window=16 --task recall",
    "attnc study streaming.attn -D window=8,16,32 -D sink_tokens=0,4 --task recall",
    "attnc study a.attn b.attn --task copying --with dense --seeds 3 --json study.json --plot study.png",
    "attnc study --task recall --set gap=32 --length 96 --steps 500 --with torch,window --window 16",
)


class Preset(StrEnum):
    """Sizes of studies."""

    TINY = "tiny"
    SMALL = "small"
    MEDIUM = "medium"


def _number(name: str, help: str, *more: str) -> Any:
    return typer.Option(name, *more, min=1, max=1 << 30, help=help)


def _text(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help)


Files = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE...", help="Patterns that take part.", allow_dash=True)
]
Definitions = Annotated[
    list[str],
    typer.Option(
        "-D",
        "--define",
        metavar="NAME=VALUE",
        help="Value of a parameter of the FILEs that have it; several with commas for one contender each.",
    ),
]
Sizes = Annotated[Preset, typer.Option("--preset", help="Sizes of models and tasks.")]
Tasks = Annotated[
    str | None, _text("--task", "NAME,...", "recall, copying, selective, listops; all but selective unless said.")
]
Contenders = Annotated[
    str | None,
    _text(
        "--with",
        "NAME,...",
        "Takes part beside the FILEs: torch, huggingface, dense, window, streaming, dilated_window, strided; or none."
        " Unless said, the first three, or all where no FILE is given.",
    ),
]
Settings = Annotated[list[str], _text("--set", "NAME=VALUE", "Setting of a task, as pairs=16; may be repeated.")]
Steps = Annotated[int | None, _number("--steps", "Updates of the parameters.")]
Flops = Annotated[
    float | None,
    typer.Option(
        "--flops", min=1.0, max=1e30, help="Budget of operations; what the first contender needs unless said."
    ),
]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.0, max=1e9, help="Budget of time; likewise.")]
Length = Annotated[int | None, _number("-n", "Positions of an example.", "--length")]
Window = Annotated[int | None, _number("--window", "Width of the windows of patterns that --with names.")]
Batch = Annotated[int | None, _number("--batch", "Examples of a step.")]
Width = Annotated[int | None, _number("--width", "Of the models.")]
Layers = Annotated[int | None, _number("--layers", "Of the models.")]
Heads = Annotated[int | None, _number("--heads", "Of each layer.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", min=1e-9, max=1e3, help="Behind the warm-up.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=1 << 30, help="Of parameters and examples.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, help="How many, from --seed on.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="Cores to compute with; one in the tiny preset.")
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="OUT", allow_dash=True, help="Write JSON; `-` is standard output.")
]
Markdown = Annotated[Path | None, typer.Option("--markdown", metavar="OUT", help="Write a report.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="PIC.png", help="Draw the curves.")]


def study(
    files: Files = None,
    define: Definitions = [],  # noqa: B006 - typer copies it
    preset: Sizes = Preset.TINY,
    task: Tasks = None,
    contenders: Contenders = None,
    settings: Settings = [],  # noqa: B006
    steps: Steps = None,
    flops: Flops = None,
    seconds: Seconds = None,
    length: Length = None,
    window: Window = None,
    batch: Batch = None,
    width: Width = None,
    layers: Layers = None,
    heads: Heads = None,
    learning_rate: Rate = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = None,
    markdown: Markdown = None,
    plot: Plot = None,
    redo: Annotated[bool, typer.Option("--redo", help="Run again what the JSON file has already.")] = False,
) -> None:
    """Train small transformers that differ in their attention alone, on tasks with known answers.

    Prints loss and accuracy at equal steps, equal FLOPs and equal time. Files are written after each
    trial (a task with one seed); with --json FILE, the same command goes on where an interrupted one stopped.
    """
    from attnc import commands

    commands.study(
        tuple(files or ()),
        parse_parameters(define),
        preset=preset.value,
        tasks=task,
        contenders=contenders,
        settings=parse_parameters(settings),
        changes={
            "steps": steps,
            "length": length,
            "window": window,
            "batch": batch,
            "width": width,
            "layers": layers,
            "heads": heads,
            "learning_rate": learning_rate,
        },
        budgets={"flops": flops, "seconds": seconds},
        seeds=(seed, seeds),
        device=device,
        threads=threads,
        json=json,
        markdown=markdown,
        plot=plot,
        redo=redo,
    )
