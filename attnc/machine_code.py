"""What a GPU's compiler makes of a pattern's kernels; the GPU need not be there."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attnc.compiler import Compiled, import_compiled
from attnc.diagnostics import CompileError, Diagnostic

if TYPE_CHECKING:
    from rich.table import Table

    from attnc.runtime.aot import KernelReport

DTYPES = ("bfloat16", "float16", "float32")


def machine_code_table(compiled: Compiled, gpu: str, head_size: int, template: str = "tl") -> Table:
    """Compile every kernel, those of gradients included, ahead of time and lay its figures out.

    Args:
        compiled: the pattern.
        gpu: `sm_80`, `sm_90`, `sm_100`, `gfx942`, ...
        head_size: of query, key and value.
        template: `gluon` for the kernels in Gluon besides, where the GPU and the head size have them.

    Raises:
        CompileError: the GPU is not known, or triton is not installed.
    """
    from rich.table import Table

    _require_compiler()
    from attnc.runtime.aot import ARCHITECTURES

    if gpu not in ARCHITECTURES:
        raise CompileError(
            Diagnostic("unknown-gpu", f"no GPU is called `{gpu}`", help=f"known are {', '.join(ARCHITECTURES)}")
        )
    table = Table(title=f"{gpu}, head size {head_size}, compiled ahead of time", title_justify="left")
    table.add_column("attention")
    table.add_column("type")
    for heading in ("registers", "spilled bytes", "shared memory", "of", "matrix instructions"):
        table.add_column(heading, justify="right")
    table.add_column("")
    module = import_compiled(compiled, template)
    for plan in compiled.plans:
        for dtype in DTYPES:
            for row in _rows(module, plan.attention.name, gpu, dtype, head_size, template):
                table.add_row(*row)
    return table


def _rows(module: object, name: str, gpu: str, dtype: str, head_size: int, template: str) -> list[tuple[str, ...]]:
    """Return a line for each launch of an attention's kernels: those of outputs, of gradients, and in Gluon."""
    import torch

    from attnc.runtime.aot import compile_kernels

    passes: list[dict[str, Any]] = [{"gradients": False}, {"gradients": True}]
    if template == "gluon":
        passes.append({"template": template, "wanted": lambda kernel: kernel.endswith("_gluon_kernel")})
    return [
        _row(report, dtype)
        for options in passes
        for report in compile_kernels(
            module,  # type: ignore[arg-type]
            gpu,
            getattr(torch, dtype),
            head_size,
            name=name,
            **options,
        )
    ]


def _row(report: KernelReport, dtype: str) -> tuple[str, ...]:
    return (
        report.name,
        dtype,
        str(report.registers),
        str(report.spills),
        f"{report.shared / 1024:.0f} KiB",
        f"{report.shared_limit / 1024:.0f} KiB",
        str(report.matrix_instructions),
        "" if report.fits else "too much shared memory",
    )


def _require_compiler() -> None:
    if find_spec("triton") is None:
        raise CompileError(
            Diagnostic(
                "triton-missing", "`--gpu` needs triton, which is not installed", help="on Linux: pip install triton"
            )
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise CompileError(
            Diagnostic("triton-interprets", "TRITON_INTERPRET is set, so Triton compiles nothing", help="unset it")
        )
