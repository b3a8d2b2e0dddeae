"""Measure what `docs/results.md` shows, part by part, and write the page.

    python tools/reproduce.py                       # all parts, then the page: `make study`
    python tools/reproduce.py performer schemes     # some of them: performer, efficiency, schemes, structures
    python tools/reproduce.py page                  # the page again, from docs/results/*.json
    python tools/reproduce.py --budget 600          # begin no row after ten minutes; again goes on where it stopped

Rows are kept in build/study, one file a part, written after each row. A part that is complete goes to docs/results. The
same command with everything measured writes the page alone; `--redo` measures again. Rows of another machine or with
other settings are measured again in any case. `--quick` measures next to nothing, to try the programs out, and writes
to build/study-quick alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from results import efficiency, page, performer, schemes, structures
from results.store import OutOfTimeError, Store, one_thread, publish

from attnc.diagnostics import CompileError

PARTS = {part.NAME: part for part in (performer, efficiency, schemes, structures)}

PAGE = "page"

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for; return 0, or 1 where the time was over before."""
    options = parse(arguments)
    wanted = [name for name in options.parts if name != PAGE] if options.parts else list(PARTS)
    deadline = time.monotonic() + options.budget
    for folder in (options.work, options.docs / "results"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        finished = [measure(name, options, deadline) for name in wanted]
        page.write(options.docs)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(finished) else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, or {PAGE} alone")
    parser.add_argument("--budget", type=seconds, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--redo", action="store_true", help="measure again what is there")
    parser.add_argument("--quick", action="store_true", help="measure next to nothing")
    parser.add_argument("--docs", type=Path, help="where results.md and results/ lie, instead of docs")
    parser.add_argument("--work", type=Path, help="where rows are kept, instead of build/study")
    options = parser.parse_args(arguments)
    build = ROOT / "build" / ("study-quick" if options.quick else "study")
    options.work = options.work or build
    options.docs = options.docs or (build if options.quick else ROOT / "docs")
    unknown = [name for name in options.parts if name not in (*PARTS, PAGE)]
    if unknown:
        parser.error(f"there is no part `{unknown[0]}`: choose from {', '.join((*PARTS, PAGE))}")
    return options


def seconds(text: str) -> float:
    """Read a number of seconds that is not negative."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"`{text}` is no number of seconds: give one from 0 on")
    return found


def measure(name: str, options: argparse.Namespace, deadline: float) -> bool:
    """Measure a part and bring it to the pages; tell whether it is complete."""
    part = PARTS[name]
    path = options.work / f"{name}.json"
    store = Store(path, one_thread(), part.settings(quick=options.quick), deadline, redo=options.redo)
    print(f"{name}: {len(store.rows)} rows are there already", flush=True)
    try:
        part.measure(store)
    except OutOfTimeError:
        print(f"{name}: the time is over; the same command goes on with the other rows", flush=True)
        return False
    if part is schemes:
        schemes.publish(store, options.docs / "results")
    else:
        publish(store, options.docs / "results" / f"{page.FILES.get(name, name)}.json")
    return True


if __name__ == "__main__":
    sys.exit(main())
