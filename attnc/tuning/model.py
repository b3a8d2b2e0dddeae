"""What a compiled kernel is expected to take: an estimate from its loop's instructions, and nothing that was measured.

One tile of pairs takes a multiprocessor's matrix units a known time, and its schedulers the time of all other
instructions of the loop. Both go on at the same time where several warp groups or programs are there to take turns, and
one after the other where there is one. Programs that fit at once follow from registers, shared memory and threads.

The time of matrix units is that of the instructions that stand in the loop, not of the pairs alone: warps that compute
the same product again, or rows that are fewer than an instruction's, count. A wgmma reads its operands from shared
memory, 128 bytes a cycle: `64 x 16` and `n x 16` numbers, while it takes `64 * 16 * n` multiply-adds. With `n = 32`
that reading takes 24 cycles and the products 16, from `n = 64` on the products take as long or longer. What a tile
walks, `rows x (head + value size)` numbers, comes from the level-2 cache, once for each program: a tile of `own` and
`walked` rows has `2 * products * own * walked * head` operations for `walked * 2 * head` numbers, so that `own` alone
decides how many operations there are for a byte, and 32 rows are too few on every device. It comes ahead of its use
where loops have stages, and is waited for where they have none. Main memory sends each tensor once, which is the same
for all candidates, as long as the keys and values of the heads in progress stay in the cache.

Rates per cycle are those of NVIDIA's programming guide and white papers and AMD's instruction set reference; latencies
are left out. The order of candidates means something, the differences between close ones do not.
"""

from __future__ import annotations

import re
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
        warp_matrix: the same of products that one warp starts alone, where those are slower.
        schedulers: of a multiprocessor, each of which issues an instruction of a warp in a cycle.
        registers: 32-bit ones of a multiprocessor.
        shared: bytes of shared memory of a multiprocessor.
        threads: most of a multiprocessor.
        cache: bytes that the level-2 cache sends one multiprocessor in a cycle while it sends to all.
        matrix_rows: rows of a matrix for which its products take as long as for fewer.
    """

    multiprocessors: int
    clock: float
    matrix: int
    warp_matrix: int
    schedulers: int
    registers: int
    shared: int
    threads: int
    cache: float
    matrix_rows: int = 1


MACHINES = {
    "sm_80": Machine(108, 1.41e9, 2048, 2048, 4, 65536, 164 << 10, 2048, 47.0),
    "sm_86": Machine(84, 1.70e9, 1024, 1024, 4, 65536, 100 << 10, 1536, 36.0),
    "sm_90": Machine(132, 1.75e9, 4096, 2560, 4, 65536, 228 << 10, 2048, 39.0),
    "sm_100": Machine(148, 1.85e9, 8192, 2560, 4, 65536, 228 << 10, 2048, 39.0, matrix_rows=128),
    "gfx942": Machine(304, 2.1e9, 2048, 2048, 4, 131072, 64 << 10, 2048, 54.0),
}
"""Dense products, boost clocks, of the A100, the A40, the H100, the B200 and the MI300X.

The A100's cache sends 5120 bytes a cycle, the MI300X's 2048 in each of its eight dies. The H100's is taken to be as
wide as the A100's, the B200's to be so for as many multiprocessors, and the A40's to have three fifths of it.
"""

SHARED_RATE = 128.0
"""Bytes of shared memory that a multiprocessor reads in a cycle."""

SHAPES = {
    "HGMMA": re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)"),
    "HMMA": re.compile(r"HMMA\.(\d\d)(8)(\d+)"),
    "v_mfma": re.compile(r"v_mfma_f32_(\d+)x(\d+)x(\d+)"),
}
"""Rows, columns and depth of an instruction's product, by what its name begins with."""

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

OF_KEYS = 4
"""Products of a kernel of gradients of keys and values, whose own rows are keys."""

ALONE = 0.35
"""Share of the shorter of matrix and other work that is not hidden, with two warp groups or programs to take turns."""

START = 2000.0
"""Cycles that a tile of rows takes besides its tiles of keys: starting a program, loading rows, storing results."""

STARTED = 500.0
"""Cycles of those until a device has started a program where another one has ended. They are a guess; persistent
programs, which are started once, load rows and store results for each tile of them all the same."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one kernel is expected to take.

    Attributes:
        seconds: for all programs.
        matrix_cycles: of the matrix units, for one tile.
        other_cycles: of the schedulers, for one tile.
        cache_cycles: in which what a tile walks comes from the level-2 cache.
        programs: at once on a multiprocessor.
        others: instructions of the loop that are not for matrix units, for each warp.
        problem: why the kernel is out of the question; empty if it is not.
    """

    seconds: float
    matrix_cycles: float
    other_cycles: float
    cache_cycles: float
    programs: int
    others: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel does at the lengths in hand.

    Attributes:
        tiles: of pairs that all its programs visit.
        programs: number of tiles of rows, each of which is a program's unless programs are persistent.
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
    problem = _problem(report, programs) or ("no loop with matrix units" if loop is None else "")
    if problem or loop is None:
        return Estimate(float("inf"), 0.0, 0.0, 0.0, programs, 0, problem)
    tiles = report.tiles
    own, walked = (tiles.key, tiles.query) if work.products == OF_KEYS else (tiles.query, tiles.key)
    matrix = _matrix_cycles(report, loop, machine, work.products, own)
    other = other_cycles(loop) * tiles.warps / machine.schedulers
    row = 2 * report.head_size * (4 if report.dtype == "float32" else 2) / machine.cache
    dealt = tiles.persistent > 0
    at_once = min(programs, tiles.persistent) if dealt else programs
    takes_turns = at_once > 1 or tiles.warps > 4
    each = max(matrix, other) + (ALONE if takes_turns else 1.0) * min(matrix, other)
    each = max(each, walked * row) if tiles.stages > 1 else each + walked * row
    rounds = max(1.0, work.programs / machine.multiprocessors)
    start = (START - STARTED if dealt else START) / at_once
    cycles = work.tiles / machine.multiprocessors * each + rounds * (start + own * row)
    cycles *= imbalance(work.rows, machine.multiprocessors * at_once, start / each, dealt=dealt)
    return Estimate(cycles / machine.clock, matrix, other, walked * row, programs, loop.others)


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


def _matrix_cycles(report: KernelReport, loop: Loop, machine: Machine, products: int, own: int) -> float:
    """Return the cycles of a tile's products: by the instructions of the loop where those tell their shapes."""
    if report.dtype != "float32":
        found = [(_product_cycles(name, machine), count) for name, count in loop.mix.items() if name.startswith(MATRIX)]
        if found and all(cycles for cycles, _ in found):
            return sum(cycles * count for cycles, count in found) * report.tiles.warps
    pairs = report.tiles.query * report.tiles.key * max(1.0, machine.matrix_rows / own)
    rate = machine.matrix if report.dtype != "float32" else machine.matrix / 16
    return 2.0 * pairs * report.head_size * products / rate


def _product_cycles(name: str, machine: Machine) -> float:
    """Return the cycles of a multiprocessor that an instruction takes, for each warp that issues it; 0 if unknown."""
    for beginning, pattern in SHAPES.items():
        if shape := pattern.match(name):
            rows, columns, depth = map(int, shape.groups())
            operations = 2.0 * rows * columns * depth
            if beginning == "HGMMA":  # four warps issue it together
                return max(operations / machine.matrix, 2 * depth * (rows + columns) / SHARED_RATE) / 4
            return operations / (machine.warp_matrix if beginning == "HMMA" else machine.matrix)
    return 0.0


def _problem(report: KernelReport, programs: int) -> str:
    if not report.fits:
        return f"{report.shared / 1024:.0f} KiB of shared memory, of {report.shared_limit / 1024:.0f}"
    if report.spills and report.dtype != "float32":
        return f"{report.spills} bytes spilled"
    if report.dtype != "float32" and not report.matrix_instructions and not report.joined:
        return "no matrix instructions"
    return "" if programs else "no multiprocessor has so many registers"
