"""The arguments of `attnc tune`; `cli` makes a command of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli_options import Definitions, Dtype, Heads, HeadSize
from attnc.parameters import parse_lengths, parse_parameters

EXAMPLES = (
    "attnc tune streaming.attn -n 8192",
    "attnc tune streaming.attn --gpu sm_90 --head-size 128 --dtype bfloat16 --out streaming.py",
    "attnc tune streaming.attn -n 4096,16384 --budget 600 --export tuned.json",
    "attnc tune --import tuned.json",
)


def tune(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="The patterns.", allow_dash=True)
    ] = None,
    define: Definitions = [],  # noqa: B006
    lengths: Annotated[
        str, typer.Option("-n", "--length", metavar="LEN,...", help="Queries and keys: 8192, or 1024,4096.")
    ] = "8192",
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="TARGET", help="Rank for sm_80, sm_86, sm_90, sm_100 or gfx942, without it."),
    ] = None,
    forward: Annotated[bool, typer.Option("--forward", help="Leave the backward pass out.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 1,
    heads: Heads = 8,
    kv_heads: Annotated[int | None, typer.Option("--kv-heads", min=1, help="Key and value heads.")] = None,
    head_size: HeadSize = 64,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Element type: float32 on a CPU and bfloat16 elsewhere.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")] = "auto",
    budget: Annotated[
        float, typer.Option("--budget", metavar="SECONDS", min=0.0, help="For each pattern at each length.")
    ] = 120.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, max=3600.0, help="Time to spend on each measurement.")
    ] = 0.5,
    remember: Annotated[
        bool, typer.Option("--remember/--no-remember", help="Keep what was measured in the cache, for all modules.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT.py", help="Write the module with its tuned tiles.")
    ] = None,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="With --out: put the runtime into the module.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="TUNED.json", help="Write what --import takes.")
    ] = None,
    imported: Annotated[
        Path | None, typer.Option("--import", metavar="TUNED.json", help="Keep what was tuned elsewhere.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", allow_dash=True, help="Write JSON; `-` is standard output.")
    ] = None,
) -> None:
    """Find fast tiles: measured on this machine and remembered, or, with --gpu, ranked without the device.

    Layers have the forms of their projections measured, at --batch times --length tokens.

    Every configuration is checked first, outputs and gradients. Calls of other lengths take what was tuned for the
    closest one; nothing is ever tuned during a call. ATTNC_PINNED=1 makes modules leave the cache alone.
    """
    from attnc import commands

    commands.tune(
        tuple(files or ()),
        parse_parameters(define),
        imported=imported,
        lengths=parse_lengths(lengths),
        gpu=gpu,
        backward=not forward,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        dtype=None if dtype is None else dtype.value,
        device=device,
        budget=budget,
        seconds=seconds,
        remember=remember,
        out=out,
        standalone=standalone,
        export=export,
        json=json,
    )
