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

from attnc import __version__, cli_study, cli_tune, terminal
from attnc.cli_options import Definitions, Dtype, File, Files, Heads, HeadSize, Length
from attnc.diagnostics import CompileError
from attnc.files import cannot_write
from attnc.parameters import MalformedParameterError, parse_counts, parse_lengths, parse_parameters

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


class Template(StrEnum):
    """Which templates write a module's kernels."""

    TL = "tl"
    GLUON = "gluon"


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
    template: Annotated[
        Template,
        typer.Option("--template", help="`gluon` writes a kernel for sm_90 besides, for ATTNC_TEMPLATE=gluon."),
    ] = Template.TL,
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
        commands.report_machine_code(file, parameters, gpu, head_size, template.value)
        if out is None:
            return
    commands.compile_file(file, parameters, out, standalone=standalone, target=target.value, template=template.value)


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


@app.command(epilog=examples("attnc scheme winograd --levels 2", "attnc scheme mine.json -o mine.py"))
@guarded
def scheme(
    name: Annotated[str, typer.Argument(metavar="SCHEME", help="A file, or strassen, winograd, laderman, ...")],
    levels: Annotated[int, typer.Option("--levels", min=1, help="How often it is applied.")] = 1,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="OUT.py", help="Write a module with its fused kernels.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Prove that a bilinear scheme multiplies matrices; print its cost, its error and where it breaks even."""
    from attnc import commands

    commands.scheme(name, levels, out, json=json)


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


class Suite(StrEnum):
    """Patterns that `bench --suite` measures."""

    SPARSITY = "sparsity"
    STANDARD = "standard"


def _listed(metavar: str, *names: str, help: str) -> Any:
    """Return an option that takes a list with commas; a suite has values of its own where it is not given."""
    return typer.Option(*names, metavar=metavar, help=help)


@app.command(
    epilog=examples(
        "attnc bench streaming.attn -n 8192",
        "attnc bench streaming.attn longformer.attn -n 2048,4096,8192 --plot times.png --json times.json",
        "attnc bench gpt.attn --backward --peers sdpa --heads 16 --head-size 128",
        "attnc bench --suite standard --budget 120 --json standard.json --markdown standard.md",
        "attnc bench --suite standard --only causal,window -n 1024,4096 --modes forward",
        "attnc bench --suite sparsity --json sparsity.json --markdown sparsity.md --budget 3600",
    )
)
@guarded
def bench(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="The patterns.", allow_dash=True)
    ] = None,
    define: Definitions = [],  # noqa: B006
    lengths: Annotated[str | None, _listed("LEN,...", "-n", "--length", "--lengths", help="Queries and keys.")] = None,
    peers: Annotated[
        str | None, _listed("NAME,...", "--peers", help="What to compare with: sdpa, flex, ..., all, or none.")
    ] = None,
    backward: Annotated[bool, typer.Option("--backward", help="Time forward and backward together.")] = False,
    modes: Annotated[
        str | None, _listed("MODE,...", "--modes", help="Of the standard suite: forward, backward, both.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Batch size.")] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Batch size times length in the standard suite.")
    ] = None,
    heads: Heads = 8,
    kv_heads: Annotated[str | None, _listed("COUNT,...", "--kv-heads", help="Key and value heads.")] = None,
    head_size: Annotated[str | None, _listed("SIZE,...", "--head-size", help="Head size.")] = None,
    dtype: Annotated[list[Dtype], typer.Option("--dtype", help="Element type; the standard suite takes several.")] = [],  # noqa: B006
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")] = "auto",
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.0, max=3600.0, help="Time to spend on each measurement.")
    ] = None,
    suite: Annotated[
        Suite | None, typer.Option("--suite", help="Measure patterns that come with attnc, one by one, and sum up.")
    ] = None,
    only: Annotated[
        list[str], typer.Option("--only", metavar="NAME,...", help="Of the suite, these patterns; may be repeated.")
    ] = [],  # noqa: B006
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", min=0.0, help="Begin no case of the suite after so long."),
    ] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Measure cases again that the JSON file has.")] = False,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="OUT", help="Write the suite's report, case by case.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", allow_dash=True, help="Write JSON; `-` is standard output.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PIC.png", help="Draw time against length; a suite adds endings.")
    ] = None,
) -> None:
    """Measure patterns against PyTorch's attention and other libraries.

    Every contender is first checked against a float64 reference; one that is wrong gets no time. A suite writes its
    files after each case, and goes on where those of `--json` end. docs/benchmarks.md has the rules.
    """
    from attnc import commands

    right = commands.bench(
        tuple(files or ()),
        parse_parameters(define),
        suite=None if suite is None else suite.value,
        lengths=None if lengths is None else parse_lengths(lengths),
        peers=None if peers is None else commands.parse_peers(peers),
        backward=backward,
        modes=None if modes is None else commands.parse_modes(modes),
        batch=batch,
        tokens=tokens,
        heads=heads,
        kv_heads=None if kv_heads is None else parse_counts(kv_heads, 4096, "a number of heads"),
        head_sizes=None if head_size is None else parse_counts(head_size, 256, "a head size"),
        dtypes=tuple(dict.fromkeys(one.value for one in dtype)) or None,
        device=device,
        seconds=seconds,
        only=tuple(name.strip() for one in only for name in one.split(",") if name.strip()),
        budget=budget,
        redo=redo,
        markdown=markdown,
        json=json,
        plot=plot,
    )
    if not right:
        raise typer.Exit(USER_MISTAKE)


app.command("study", epilog=examples(*cli_study.EXAMPLES))(guarded(cli_study.study))
app.command("tune", epilog=examples(*cli_tune.EXAMPLES))(guarded(cli_tune.tune))
