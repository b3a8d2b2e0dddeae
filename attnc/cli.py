"""The command `attnc`: arguments in, text out. What the commands do stands in the modules that they call."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from attnc import __version__, cli_study, terminal
from attnc.diagnostics import CompileError
from attnc.files import cannot_write
from attnc.parameters import MalformedParameterError, parse_lengths, parse_parameters

USER_MISTAKE, INTERNAL, INTERRUPTED = 1, 70, 130
"""Exit codes, besides 0 and 2 (usage, which typer gives)."""

DEBUG: ContextVar[bool] = ContextVar("DEBUG", default=False)
"""Whether a failure of the compiler's own is shown with its traceback."""

app = typer.Typer(
    name="attnc",
    help="Compile attention patterns (.attn files) to Triton kernels and PyTorch modules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Stage(StrEnum):
    """What `compile --emit` can print."""

    TREE = "tree"
    IR = "ir"
    SIMPLIFIED = "simplified"
    PLAN = "plan"
    TRITON = "triton"


class Target(StrEnum):
    """What a compiled module runs."""

    TRITON = "triton"
    FLEX = "flex"


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


def main() -> None:
    """Run the command line and leave with its exit code."""
    _open_closed_streams()
    app(prog_name="attnc")


def _open_closed_streams() -> None:
    """Give Python's absent streams (`attnc check a.attn >&-`) somewhere to go."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"attnc {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ATTNC_DEBUG", help="Show a traceback where the compiler itself fails.")
    ] = False,
) -> None:
    """Compile attention patterns (.attn files) to Triton kernels and PyTorch modules."""
    DEBUG.set(debug)


def examples(*lines: str) -> str:
    """Lay out examples for the end of a command's help, a line each."""
    return "\n\n".join(("Examples:", *(f"  {line}" for line in lines)))


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn exceptions into the exit codes that the command line promises."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            sys.stdout.flush()
        except CompileError as error:
            terminal.report_error(error)
            raise typer.Exit(USER_MISTAKE) from None
        except MalformedParameterError as error:
            raise typer.BadParameter(str(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
                _report_bug(error)
                raise typer.Exit(INTERNAL) from None
            _abandon_output()
            terminal.report_error(cannot_write("standard output", error))
            raise typer.Exit(USER_MISTAKE) from None
        except Exception as error:
            _report_bug(error)
            raise typer.Exit(INTERNAL) from None

    return run


def _abandon_output() -> None:
    """Let nothing more be written to a full disk, so that leaving does not fail once more."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _report_bug(error: Exception) -> None:
    summary = f"{type(error).__name__}: {error}".split("\n")[0][:500]
    sys.stderr.write(f"internal error: {summary}\n")
    if DEBUG.get():
        traceback.print_exception(error)
    else:
        sys.stderr.write(
            f"This is a bug of attnc {__version__}, not of your pattern. Please report it, with the pattern and the\n"
            "traceback that `attnc --debug ...` prints.\n"
        )


@app.command(epilog=examples("attnc check streaming.attn", "attnc check examples/*.attn"))
@guarded
def check(files: Files, define: Definitions = []) -> None:  # noqa: B006 - typer copies it
    """Check patterns: names, types, proofs of what they assert."""
    from attnc import commands

    if not commands.check(files, parse_parameters(define)):
        raise typer.Exit(USER_MISTAKE)


@app.command(
    "compile",
    epilog=examples(
        "attnc compile streaming.attn",
        "attnc compile streaming.attn -D window=512 -o model/streaming.py --standalone",
        "attnc compile streaming.attn --target flex -o streaming_flex.py",
        "attnc compile streaming.attn --emit plan",
        "attnc compile streaming.attn --gpu sm_90 --head-size 128",
    ),
)
@guarded
def compile_(
    file: File,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", allow_dash=True, help="Where to write; `-` is standard output."),
    ] = None,
    define: Definitions = [],  # noqa: B006
    standalone: Annotated[
        bool, typer.Option("--standalone", help="Write a module that needs torch and triton alone.")
    ] = False,
    target: Annotated[
        Target, typer.Option("--target", help="What the module runs: its own kernels, or PyTorch's FlexAttention.")
    ] = Target.TRITON,
    emit: Annotated[Stage | None, typer.Option("--emit", help="Print a stage instead of writing a module.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="ARCH", help="Report the kernels' machine code: sm_80, sm_90, sm_100, gfx942."),
    ] = None,
    head_size: HeadSize = 64,
) -> None:
    """Compile a pattern to a Python module, NAME.py in the current folder unless told otherwise."""
    from attnc import commands

    parameters = parse_parameters(define)
    if emit is not None:
        commands.emit(file, parameters, emit.value, out)
        return
    if gpu is not None:
        commands.report_machine_code(file, parameters, gpu, head_size)
        if out is None:
            return
    commands.compile_file(file, parameters, out, standalone=standalone, target=target.value)


@app.command(
    epilog=examples("attnc explain streaming.attn", "attnc explain streaming.attn -D window=512 -n 100000 --json")
)
@guarded
def explain(
    file: File,
    define: Definitions = [],  # noqa: B006
    length: Length = 8192,
    heads: Heads = 8,
    head_size: HeadSize = 64,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Explain a pattern: normal form, proofs, tiles, exact pairs, cost."""
    from attnc import commands

    commands.explain(file, parse_parameters(define), length, heads, head_size, json=json)


@app.command(
    epilog=examples(
        "attnc show streaming.attn -D window=256 -o streaming.png",
        "attnc show longformer.attn -n 100000 -o longformer.png",
        "attnc show sparse_transformer.attn -n 8192 --layout",
    )
)
@guarded
def show(
    file: File,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="PIC.png", help="The picture; NAME.png unless said.")
    ] = None,
    define: Definitions = [],  # noqa: B006
    length: Length = 1024,
    heads: Heads = 8,
    head: Annotated[int, typer.Option("--head", min=0, help="Which head, where they differ.")] = 0,
    layout: Annotated[
        bool, typer.Option("--layout", help="Draw each pass with queries and keys in the order that it walks them in.")
    ] = False,
) -> None:
    """Draw a pattern's mask and its tiles."""
    from attnc import commands

    commands.show(file, parse_parameters(define), length, heads, head, out, layout=layout)


class Relation(StrEnum):
    """What `compare --expect` can ask for."""

    EQUAL = "equal"
    INSIDE = "inside"
    CONTAINS = "contains"
    DISJOINT = "disjoint"


@app.command(
    epilog=examples(
        "attnc compare streaming.attn causal.attn --expect inside",
        "attnc compare patterns.attn:old patterns.attn:new",
        "attnc compare window.attn window.attn --left width=256 --right width=512",
    )
)
@guarded
def compare(
    left: Annotated[str, typer.Argument(metavar="A", help="A pattern, `FILE` or `FILE:ATTENTION`.")],
    right: Annotated[str, typer.Argument(metavar="B", help="The pattern to compare it with.")],
    define: Definitions = [],  # noqa: B006
    left_define: Annotated[
        list[str], typer.Option("--left", metavar="NAME=VALUE", help="Value of a parameter of A alone.")
    ] = [],  # noqa: B006
    right_define: Annotated[
        list[str], typer.Option("--right", metavar="NAME=VALUE", help="Value of a parameter of B alone.")
    ] = [],  # noqa: B006
    expect: Annotated[
        Relation | None, typer.Option("--expect", help="Exit with 1 unless A is proven to be this to B.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compare two masks, for every length: equal, one inside the other, disjoint, or overlapping, with examples."""
    from attnc import commands

    parameters = [parse_parameters(one) for one in (define, left_define, right_define)]
    expected = None if expect is None else expect.value
    if not commands.compare((left, right), parameters, expected, json=json):
        raise typer.Exit(USER_MISTAKE)


@app.command(epilog=examples("attnc verify streaming.attn", "attnc verify examples/*.attn"))
@guarded
def verify(
    files: Files,
    define: Definitions = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Verify patterns by brute force over small sizes: sets, tiles, programs, gradients, kernels."""
    from attnc import commands

    if not commands.verify(files, parse_parameters(define), json=json):
        raise typer.Exit(USER_MISTAKE)


@app.command(
    epilog=examples(
        "attnc tune streaming.attn -n 8192",
        "attnc tune streaming.attn --gpu sm_90 --head-size 128 --dtype bfloat16 --out streaming.py",
        "attnc tune streaming.attn -n 4096,16384 --budget 600 --export tuned.json",
        "attnc tune --import tuned.json",
    )
)
@guarded
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


class Suite(StrEnum):
    """Patterns that `bench --suite` measures."""

    SPARSITY = "sparsity"


@app.command(
    epilog=examples(
        "attnc bench streaming.attn -n 8192",
        "attnc bench streaming.attn longformer.attn -n 2048,4096,8192 --plot times.png --json times.json",
        "attnc bench gpt.attn --backward --peers sdpa --heads 16 --head-size 128",
        "attnc bench --suite sparsity --json sparsity.json --markdown sparsity.md --budget 3600",
    )
)
@guarded
def bench(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="The patterns.", allow_dash=True)
    ] = None,
    define: Definitions = [],  # noqa: B006
    lengths: Annotated[
        str | None,
        typer.Option(
            "-n", "--length", metavar="LEN,...", help="Queries and keys: 1024,4096, or 2048,8192,32768 for a suite."
        ),
    ] = None,
    peers: Annotated[
        str, typer.Option("--peers", metavar="NAME,...", help="What to compare with: sdpa, flex, none.")
    ] = "sdpa,flex",
    backward: Annotated[bool, typer.Option("--backward", help="Time forward and backward together.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 1,
    heads: Heads = 8,
    kv_heads: Annotated[int | None, typer.Option("--kv-heads", min=1, help="Key and value heads.")] = None,
    head_size: HeadSize = 64,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Element type.")] = Dtype.FLOAT32,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")] = "auto",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, max=3600.0, help="Time to spend on each measurement.")
    ] = 2.0,
    suite: Annotated[
        Suite | None, typer.Option("--suite", help="Measure patterns that come with attnc, one by one, and sum up.")
    ] = None,
    only: Annotated[
        list[str], typer.Option("--only", metavar="NAME", help="Of the suite, this pattern; may be repeated.")
    ] = [],  # noqa: B006
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", min=0.0, help="Begin no case of the suite after so long."),
    ] = None,
    redo: Annotated[
        bool, typer.Option("--redo", help="Measure cases of the suite again that the JSON file has.")
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="OUT", help="Write the suite's report, case by case.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", allow_dash=True, help="Write JSON; `-` is standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PIC.png", help="Draw time against length.")] = None,
) -> None:
    """Measure patterns against PyTorch's attention.

    Every contender is first checked against a float64 reference; one that is wrong gets no time. A suite writes its
    files after each case, and goes on where those of `--json` end.
    """
    from attnc import commands

    right = commands.bench(
        tuple(files or ()),
        parse_parameters(define),
        suite=None if suite is None else suite.value,
        only=only,
        budget=budget,
        redo=redo,
        markdown=markdown,
        lengths=None if lengths is None else parse_lengths(lengths),
        peers=commands.parse_peers(peers),
        backward=backward,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        dtype=dtype.value,
        device=device,
        seconds=seconds,
        json=json,
        plot=plot,
    )
    if not right:
        raise typer.Exit(USER_MISTAKE)


app.command("study", epilog=examples(*cli_study.EXAMPLES))(guarded(cli_study.study))
