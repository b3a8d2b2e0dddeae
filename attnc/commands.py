"""What the commands do once their arguments are read: call the stages, print the result, write the files."""

from __future__ import annotations

import contextlib
import itertools
import json as json_text
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from attnc import terminal
from attnc.bench.names import PEERS, Mode
from attnc.bench.requests import LENGTHS, BenchOptions, single_request, standard_request, suite_files
from attnc.compiler import (
    Compiled,
    check_whole,
    compare_sources,
    declared_parameters,
    default_output,
    plan_source,
    render,
)
from attnc.diagnostics import CompileError, Diagnostic, Label, Severity
from attnc.files import STANDARD, read_pattern, require_writable, write_bytes, write_text
from attnc.parameters import MalformedParameterError, Value, parse_names, parse_values
from attnc.source import SourceFile, Span

Parameters = dict[str, Value]


def check(files: Sequence[Path], parameters: Parameters) -> bool:
    """Check files and print what is wrong with any of them; tell whether nothing is."""
    found: list[Diagnostic] = []
    for file in files:
        try:
            with _located(file):
                found += check_whole(read_pattern(file), parameters)
        except CompileError as error:
            found += error.diagnostics
    terminal.report(dict.fromkeys(found))
    return all(diagnostic.severity is not Severity.ERROR for diagnostic in found)


def compile_file(
    file: Path, parameters: Parameters, out: Path | None, *, standalone: bool, target: str, template: str
) -> None:
    """Compile a pattern and say where the module went."""
    if out is None:
        out = Path(STANDARD) if str(file) == STANDARD else default_output(file, ".py")
    to_file = str(out) != STANDARD
    if to_file:
        require_writable(out, file)
    compiled = _planned(file, parameters)
    text = render(compiled, standalone=standalone, target=target, template=template)
    if to_file:
        write_text(out, text)
        names = ", ".join((*(plan.attention.name for plan in compiled.plans), *(one.name for one in compiled.layers)))
        print(f"{file} -> {out}  ({names})")
    else:
        print(text, end="")


def emit(file: Path, parameters: Parameters, stage: str, out: Path | None) -> None:
    """Print what one stage makes of a pattern."""
    from attnc.stage_text import stage_text

    to_file = out is not None and str(out) != STANDARD
    if out is not None and to_file:
        require_writable(out, file)
    with _located(file):
        text, warnings = stage_text(read_pattern(file), parameters, stage)
    terminal.report(warnings)
    if out is not None and to_file:
        write_text(out, text)
    else:
        print(text, end="")


def report_machine_code(file: Path, parameters: Parameters, gpu: str, head_size: int, template: str) -> None:
    """Compile a pattern's kernels for a GPU that need not be there, and print their figures."""
    from attnc.machine_code import machine_code_table

    compiled = _planned(file, parameters)
    terminal.output().print(machine_code_table(compiled, gpu, head_size, template))


def explain(file: Path, parameters: Parameters, length: int, heads: int, head_size: int, *, json: bool) -> None:
    """Explain every attention and every layer of a file."""
    from attnc.explanation import explain_plan
    from attnc.explanation_layers import explain_layer

    compiled = _planned(file, parameters)
    explanations = [explain_plan(plan, length=length, heads=heads, head_size=head_size) for plan in compiled.plans]
    layers = [explain_layer(plan, length=length) for plan in compiled.layers]
    if json:
        _print_json([one.as_json() for one in explanations] + [one.as_json() for one in layers])
        return
    from attnc.explanation_layers_text import lay_out_layer
    from attnc.explanation_text import lay_out

    console = terminal.output()
    for number, parts in enumerate((*map(lay_out, explanations), *map(lay_out_layer, layers))):
        if number:
            console.print()
        for part in parts:
            console.print(part, markup=False)


def compare(sides: Sequence[str], parameters: Sequence[Parameters], expected: str | None, *, json: bool) -> bool:
    """Compare the masks of two files; tell whether every pair of attentions is related as expected.

    `parameters` are those for both sides, for the left one and for the right one.
    """
    from attnc.comparison import split_choice

    chosen = [split_choice(text) for text in sides]
    sources = {}
    for file, _ in chosen:
        if file not in sources:  # standard input can be read once
            with _located(Path(file)):
                sources[file] = read_pattern(file)
    (left, left_name), (right, right_name) = chosen
    compared, warnings = compare_sources(
        (sources[left], left_name),
        (sources[right], right_name),
        parameters[0],
        left_params=parameters[1],
        right_params=parameters[2],
    )
    terminal.report(warnings)
    if json:
        _print_json([one.as_json() for one in compared])
    else:
        print("\n\n".join("\n".join(one.lines()) for one in compared))
    failures = [one.failure(expected) for one in compared if expected is not None and not one.meets(expected)]
    terminal.report(failures)
    return not failures


def scheme(name: str, levels: int, out: Path | None, *, json: bool) -> None:
    """Print what is known of a bilinear scheme, and write a module with its kernels if asked for."""
    from attnc.schemes import describe_scheme, module_text, scheme_json, scheme_named

    found = scheme_named(name, levels)
    if out is not None:
        require_writable(out, name)
        write_text(out, module_text(found, name))
    if json:
        _print_json(scheme_json(found))
    else:
        print("\n".join(describe_scheme(found)))


def show(
    file: Path, parameters: Parameters, length: int, heads: int, head: int, out: Path | None, *, layout: bool
) -> None:
    """Draw every attention of a file, or every pass of each, into one picture."""
    from attnc.show import draw

    target = default_output(file, ".png") if out is None else out
    if str(target) != STANDARD:
        require_writable(target, file)
    if head >= heads:
        raise MalformedParameterError(f"head {head} is not one of the {heads} heads, which count from 0")
    compiled = _planned(file, parameters)
    picture = draw(compiled.plans, length, heads=heads, head=head, layout=layout)
    if str(target) == STANDARD:
        sys.stdout.buffer.write(picture)
        return
    write_bytes(target, picture)
    print(f"{file} -> {target}")


def verify(files: Sequence[Path], parameters: Parameters, *, json: bool) -> bool:
    """Verify files by brute force; tell whether everything agreed."""
    from attnc.verify import report_table, steps, verify_compiled
    from attnc.verify.kernels import KernelWorker

    patterns = [(str(file), _planned(file, parameters)) for file in files]
    total = sum(steps(compiled) for _, compiled in patterns)
    reports = []
    with KernelWorker() as worker, terminal.progress_bar(total, shown=not json) as (describe, advance):
        for file, compiled in patterns:
            describe(file)
            reports.append((file, verify_compiled(compiled, parameters, worker, advance)))
    if json:
        _print_json([{"file": file, "checks": [one.as_json() for one in outcomes]} for file, outcomes in reports])
    else:
        terminal.output().print(report_table(reports))
    wrong = [(file, outcome) for file, outcomes in reports for outcome in outcomes if outcome.problem]
    if wrong:
        file, first = wrong[0]
        at = f" at {first.variant}" if first.variant else ""
        message = f"{file}: {first.topic} of `{first.attention}`{at}: {first.problem}"
        terminal.report([Diagnostic("mismatch", message, help="this is a bug of attnc: please report it")])
    return not wrong


def parse_peers(text: str) -> tuple[str, ...]:
    """Turn `"sdpa,flex"` into names; `all` is everybody, `none` is nobody.

    Raises:
        MalformedParameterError: a name is not known.
    """
    match text.strip():
        case "all":
            return PEERS
        case "none":
            return ()
        case _:
            return parse_names(text, (*PEERS, "all", "none"), "a peer")


def parse_modes(text: str) -> tuple[Mode, ...]:
    """Turn `"forward,both"` into modes.

    Raises:
        MalformedParameterError: one is not known.
    """
    return tuple(Mode(name) for name in parse_names(text, Mode, "a mode"))


def bench(files: Sequence[Path], parameters: Parameters, **given: Any) -> bool:
    """Measure, print tables, write JSON and pictures; tell whether every attnc module computed the right thing.

    `given` are the fields of `BenchOptions`.
    """
    options = BenchOptions(**given)
    shipped = suite_files(options.suite)
    if not files and not shipped:
        raise MalformedParameterError("name a pattern, or say --suite standard")
    options.require_place()
    for target in (options.json, options.plot, options.markdown):
        if target is not None and str(target) != STANDARD:
            require_writable(target, *files, *shipped)
    if options.plot is not None:
        from attnc.pictures import figure_class

        figure_class()  # fail before the measuring rather than after it
    if options.suite is None:
        from attnc.bench.session import run_bench

        return run_bench(single_request(options, LENGTHS), [_planned(file, parameters) for file in files])
    from attnc.bench.suite_run import Course, Pattern

    chosen = [
        Pattern(file.stem, _first_comment(file), partial(_planned, file, parameters)) for file in (*shipped, *files)
    ]
    course = Course(options.budget, options.only, options.redo, options.json, options.markdown)
    if options.suite == "sparsity":
        from attnc.bench import suite

        return suite.run_suite(single_request(options, suite.LENGTHS), course, chosen)
    from attnc.bench.standard import run_standard

    return run_standard(standard_request(options), course, chosen)


def tune(files: Sequence[Path], parameters: Parameters, *, imported: Path | None, **options: Any) -> None:
    """Tune patterns, or add what was tuned elsewhere to the cache.

    `options` are the fields of `TuneRequest`; without a type, the one that suits the device.
    """
    if bool(files) == (imported is not None):
        raise MalformedParameterError(
            "name a pattern, or say --import TUNED.json" if not files else "--import is alone"
        )
    if options["kv_heads"] is not None and options["heads"] % options["kv_heads"]:
        raise MalformedParameterError(f"{options['kv_heads']} key/value heads do not divide {options['heads']} heads")
    if options["out"] is not None and len(files) != 1:
        raise MalformedParameterError("--out takes one pattern")
    if options["standalone"] and options["out"] is None:
        raise MalformedParameterError("--standalone is for --out")
    for target in (options["json"], options["export"], options["out"]):
        if target is not None and str(target) != STANDARD:
            require_writable(target, *files)
    if imported is not None:
        from attnc.tuning.session import import_tuned

        count, paths = import_tuned(imported)
        print(f"{count} tuned configurations -> {', '.join(map(str, paths)) or 'nowhere'}")
        return
    patterns = [_planned(file, parameters) for file in files]
    from attnc.tuning.session import TuneRequest, run_tuning, usual_dtype

    dtype = options["dtype"] or usual_dtype(options["gpu"], options["device"])
    run_tuning(TuneRequest(**{**options, "dtype": dtype}), patterns)


def _first_comment(file: Path) -> str:
    """Return what the first line of a file says about it; nothing if it is no comment."""
    with _located(file):
        first = read_pattern(file).text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def study(
    files: Sequence[Path],
    parameters: Parameters,
    *,
    tasks: str | None,
    contenders: str | None,
    changes: dict[str, Any],
    budgets: dict[str, float | None],
    seeds: tuple[int, int],
    **options: Any,
) -> None:
    """Train small transformers with several attentions, print tables, write JSON, Markdown and pictures.

    `changes` are the fields of `Changes`, `budgets` those of `Wanted`, `seeds` the first and how many, and `options`
    the other fields of `StudyRequest`.
    """
    targets = [options[name] for name in ("json", "markdown", "plot")]
    for target in targets:
        if target is not None and str(target) != STANDARD:
            require_writable(target, *files)
    for name, value in budgets.items():
        if value is not None and math.isnan(value):
            raise MalformedParameterError(f"--{name} is no number")
    if options["plot"] is not None:
        from attnc.pictures import figure_class

        figure_class()  # fail before the training rather than after it
    from attnc.study.contenders import SHIPPED
    from attnc.study.presets import DEFAULT_TASKS, TASKS, Changes, parse_names
    from attnc.study.session import StudyRequest, run_study
    from attnc.study.trial import Wanted

    chosen = DEFAULT_TASKS if tasks is None else parse_names(tasks, tuple(TASKS), "task")
    beside: tuple[str, ...] = ("torch", "huggingface", "dense") if files else SHIPPED
    if contenders is not None:
        beside = () if contenders == "none" else parse_names(contenders, SHIPPED, "contender")
    first, count = seeds
    request = StudyRequest(
        tasks=chosen,
        contenders=beside,
        changes=Changes(**changes),
        wanted=Wanted(**budgets),
        seeds=tuple(range(first, first + count)),
        **options,
    )
    run_study(request, _planned_each(files, parameters))


def _planned_each(files: Sequence[Path], parameters: Parameters) -> list[tuple[str, Compiled]]:
    """Take files as far as their plans, each with the values of parameters that it declares, and print warnings.

    Values with commas are values for one plan each. What stands before a plan tells those of a file apart.
    """
    sources = []
    for file in files:
        with _located(file):
            source = read_pattern(file)
            sources.append((file, source, declared_parameters(source)))
    unknown = {name for name in parameters if all(name not in declared for _, _, declared in sources)}
    if unknown and not files:
        raise MalformedParameterError(f"-D {next(iter(unknown))} is for patterns, and no FILE is given")
    found = []
    for file, source, declared in sources:
        # the first file tells of a parameter that is in none
        mine = {name: parse_values(value) for name, value in parameters.items() if name in declared or name in unknown}
        for values in itertools.product(*mine.values()):
            given = dict(zip(mine, values, strict=True))
            with _located(file):
                compiled = plan_source(source, given)
            terminal.report(compiled.warnings)
            varied = ", ".join(f"{name}={given[name]}" for name, several in mine.items() if len(several) > 1)
            found.append((varied, compiled))
    return found


def _planned(file: Path, parameters: Parameters) -> Compiled:
    """Take a file as far as its plans, and print warnings."""
    with _located(file):
        compiled = plan_source(read_pattern(file), parameters)
    terminal.report(compiled.warnings)
    return compiled


@contextlib.contextmanager
def _located(file: Path) -> Iterator[None]:
    """Give diagnostics that are about a whole file the place that every diagnostic of the command line has."""
    try:
        yield
    except CompileError as error:
        name = "<stdin>" if str(file) == STANDARD else str(file)
        start = Label(Span(SourceFile(name, ""), 0, 0, 1, 1))
        placed = (one if one.labels else replace(one, labels=(start,)) for one in error.diagnostics)
        raise CompileError(*placed) from None


def _print_json(value: Any) -> None:
    print(json_text.dumps(value, indent=2, allow_nan=False))
