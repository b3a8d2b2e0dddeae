"""Arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Element types of query, key and value."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


File = Annotated[Path, typer.Argument(metavar="FILE", help="The pattern; `-` is standard input.", allow_dash=True)]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="The patterns.", allow_dash=True)]
Definitions = Annotated[
    list[str], typer.Option("-D", "--define", metavar="NAME=VALUE", help="Value of a parameter; may be repeated.")
]
Length = Annotated[int, typer.Option("-n", "--length", metavar="LEN", min=1, max=1 << 30, help="Queries and keys.")]
Heads = Annotated[int, typer.Option("--heads", min=1, max=4096, help="Query heads.")]
HeadSize = Annotated[int, typer.Option("--head-size", min=1, max=256, help="Head size.")]
