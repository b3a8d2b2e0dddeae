"""What a compiled kernel is expected to take: an estimate from its loop's instructions, and nothing that was measured.

One tile of pairs takes a multiprocessor's matrix units a known time, and its schedulers the time of all other
instructions of the loop. Both go on at the same time where several warp groups or programs are there to take turns, and
one after the other where there is one. Programs that fit at once follow from registers, shared memory and threads.
Rates per cycle are those of NVIDIA's programming guide and AMD's instruction set reference; latencies, caches and
memory are left out. The order of candidates means something, the differences between close ones do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.runtime.aot import ARCHITECTURES, KernelReport
from attnc.tuning.disassembly import MATRIX, Loop
from attnc.tuning.schedule import UNKNOWN_ROWS, Rows, imbalance


@dataclass(frozen=True, slots=True)
class Machine:
    """What the estimate knows of a target.

    Attributes:
        multiprocessors: number of them.
        clock: cycles a second.
        matrix: floating-point operations of 16-bit products that the matrix units of one multiprocessor do in a cycle.
        schedulers: of a multiprocessor, each of which issues an instruction of a warp in a cycle.
        registers: 32-bit ones of a multiprocessor.
        shared: bytes of shared memory of a multiprocessor.
        threads: most of a multiprocessor.
    """

    multiprocessors: int
    clock: float
    matrix: int
    schedulers: int
    registers: int
    shared: int
    threads: int


MACHINES = {
    "sm_80": Machine(108, 1.41e9, 2048, 4, 65536, 164 << 10, 2048),
    "sm_86": Machine(84, 1.70e9, 1024, 4, 65536, 100 << 10, 1536),
    "sm_90": Machine(132, 1.75e9, 4096, 4, 65536, 228 << 10, 2048),
    "sm_100": Machine(148, 1.85e9, 8192, 4, 65536, 228 << 10, 2048),
    "gfx942": Machine(304, 2.1e9, 2048, 4, 131072, 64 << 10, 2048),
}
"""Dense products, boost clocks, of the A100, the A40, the H100, the B200 and the MI300X."""

CYCLES = {
    "MUFU": 8.0,
    "F2F": 8.0,
    "I2F": 8.0,
    "F2I": 8.0,
    "F2FP": 2.0,
    "IMAD": 2.0,
    "SHFL": 4.0,
    "LDSM": 4.0,
    "LDS": 4.0,
    "STS": 4.0,
    "STSM": 4.0,
    "LDL": 16.0,
    "STL": 16.0,
    "v_exp": 16.0,
    "v_log": 16.0,
    "v_rcp": 16.0,
    "ds_": 16.0,
    "scratch_": 64.0,
    "v_": 4.0,
}
"""Cycles for which an instruction of a warp keeps a scheduler or the unit behind it, by what its name begins with; all
others take one. The first that fits counts."""

ALONE = 0.35
"""Share of the shorter of matrix and other work that is not hidden, with two warp groups or programs to take turns."""

START = 2000.0
"""Cycles that a program takes besides its tiles: loading its rows, storing its results."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one kernel is expected to take.

    Attributes:
        seconds: for all programs.
        matrix_cycles: of the matrix units, for one tile.
        other_cycles: of the schedulers, for one tile.
        programs: at once on a multiprocessor.
        others: instructions of the loop that are not for matrix units, for each warp.
        problem: why the kernel is out of the question; empty if it is not.
    """

    seconds: float
    matrix_cycles: float
    other_cycles: float
    programs: int
    others: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel does at the lengths in hand.

    Attributes:
        tiles: of pairs that all its programs visit.
        programs: number of them.
        products: multiplications of matrices for each tile: 2 for outputs, 3 for gradients of queries, 4 for those of
            keys and values.
        rows: what is known of the lengths of rows and the order of programs.
    """

    tiles: float
    programs: float
    products: int = 2
    rows: Rows = UNKNOWN_ROWS


def estimate(report: KernelReport, loop: Loop | None, work: Work) -> Estimate:
    """Estimate the time of a compiled kernel, of which `tuning.disassembly.main_loop` gives the loop."""
    machine = MACHINES[report.target]
    programs = programs_at_once(report)
    matrix = _matrix_cycles(report, machine, work.products)
    other = 0.0 if loop is None else other_cycles(loop) * report.tiles.warps / machine.schedulers
    others = 0 if loop is None else loop.others
    problem = _problem(report, programs)
    if problem or loop is None:
        return Estimate(float("inf"), matrix, other, programs, others, problem or "no loop with matrix units")
    takes_turns = programs > 1 or report.tiles.warps > 4
    each = max(matrix, other) + (ALONE if takes_turns else 1.0) * min(matrix, other)
    rounds = max(1.0, work.programs / machine.multiprocessors)
    cycles = work.tiles / machine.multiprocessors * each + rounds * START / programs
    cycles *= imbalance(work.rows, machine.multiprocessors * programs, START / (each * programs))
    return Estimate(cycles / machine.clock, matrix, other, programs, others)


def other_cycles(loop: Loop) -> float:
    """Return the cycles of a scheduler that one warp's turn of a loop takes, matrix units left out."""
    return sum(count * _cycles(name) for name, count in loop.mix.items())


def programs_at_once(report: KernelReport) -> int:
    """Return how many programs a multiprocessor has room for."""
    machine = MACHINES[report.target]
    threads = report.tiles.warps * ARCHITECTURES[report.target][2]
    registers = -(-report.registers // 8) * 8 * threads
    room = [machine.registers // max(1, registers), machine.threads // threads]
    if report.shared:
        room.append(machine.shared // (report.shared + 1024))
    return min(room)


def _cycles(name: str) -> float:
    if name.startswith(MATRIX):
        return 0.0
    return next((cycles for beginning, cycles in CYCLES.items() if name.startswith(beginning)), 1.0)


def _matrix_cycles(report: KernelReport, machine: Machine, products: int) -> float:
    pairs = report.tiles.query * report.tiles.key
    rate = machine.matrix if report.dtype != "float32" else machine.matrix / 16
    return 2.0 * pairs * report.head_size * products / rate


def _problem(report: KernelReport, programs: int) -> str:
    if not report.fits:
        return f"{report.shared / 1024:.0f} KiB of shared memory, of {report.shared_limit / 1024:.0f}"
    if report.spills and report.dtype != "float32":
        return f"{report.spills} bytes spilled"
    if report.dtype != "float32" and not report.matrix_instructions and not report.joined:
        return "no matrix instructions"
    return "" if programs else "no multiprocessor has so many registers"
