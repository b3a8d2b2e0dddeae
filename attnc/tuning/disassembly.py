"""Loops of compiled kernels, and how many instructions of which kind they have."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attnc.runtime.aot import ARCHITECTURES, KernelReport

MATRIX = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "v_mfma")
"""What instructions of matrix units begin with."""

COPIES = ("LDGSTS", "UTMALDG")
"""What copies to shared memory ahead of their use begin with: by addresses, and by descriptors."""


@dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop over tiles.

    Attributes:
        mix: how often each instruction stands on the way through it that does the least besides all products: what a
            tile takes that tests no mask. By names with all modifiers.
    """

    mix: Mapping[str, int]

    @property
    def instructions(self) -> int:
        """All of them."""
        return sum(self.mix.values())

    @property
    def others(self) -> int:
        """Those that are not for matrix units."""
        return self.instructions - self.count(*MATRIX)

    def count(self, *beginnings: str) -> int:
        """Return how many have names that begin so."""
        return sum(number for name, number in self.mix.items() if name.startswith(beginnings))


def matrix_loops(report: KernelReport) -> tuple[Loop, ...]:
    """Return the innermost loops of a kernel that multiply matrices, in the order of the code.

    Raises:
        OSError: the disassembler that comes with Triton cannot be run.
    """
    code = _of_binary(report.binary) if ARCHITECTURES[report.target][0] == "cuda" else _of_text(report.assembly)
    names = code.names
    backward = [(to, at) for at, (to, _) in code.jumps.items() if to <= at]
    found = [(first, last) for first, last in backward if any(_is_matrix(name) for name in names[first : last + 1])]
    inner = [
        (first, last)
        for first, last in sorted(set(found))
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in found)
    ]
    return tuple(Loop(Counter(names[at] for at in _least_way(code, first, last))) for first, last in inner)


def main_loop(report: KernelReport) -> Loop | None:
    """Return the loop over tiles that tests no mask, or tests least: the one with the fewest other instructions.

    Loops that copy tiles ahead come first: the walk for values that are not finite does not. None where there is no
    loop, as in a kernel that joins sums.
    """
    loops = matrix_loops(report)
    ahead = [loop for loop in loops if loop.count(*COPIES)]
    return min(ahead or loops, key=lambda loop: loop.others, default=None)


@dataclass(frozen=True, slots=True)
class _Code:
    """A kernel's instructions.

    Attributes:
        names: in the order of the code.
        jumps: by place, where each leads, and whether it is taken in any case.
    """

    names: list[str]
    jumps: Mapping[int, tuple[int, bool]]


def _least_way(code: _Code, first: int, last: int) -> list[int]:
    """Return the places of the instructions of a loop that are executed where most products and least else are."""
    best: dict[int, tuple[int, int]] = {last: (0, 1)}
    after: dict[int, int] = {}
    for at in range(last - 1, first - 1, -1):
        to, always = code.jumps.get(at, (at, False))
        nexts = [*([] if always else [at + 1]), *([to] if at < to <= last else [])]
        known = [(best[one], one) for one in nexts if one in best]
        if known:
            (products, count), after[at] = min(known)
            best[at] = (products - _is_matrix(code.names[at]), count + 1)
    if first not in best:
        return list(range(first, last + 1))
    way = [first]
    while way[-1] != last:
        way.append(after[way[-1]])
    return way


def _is_matrix(name: str) -> bool:
    return name.startswith(MATRIX)


def _of_binary(binary: bytes) -> _Code:
    """Return the instructions for an NVIDIA device."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    code = re.compile(r"/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+\s+)?)([A-Z][\w.]*)(.*);")
    jump, condition = re.compile(r"`\((\.L_\w+)\)"), re.compile(r"@|\bU?P\d")
    return _read(text, label=re.compile(r"\s*(\.L_\w+):"), code=code, jumps=("BRA",), jump=jump, condition=condition)


def _of_text(assembly: str) -> _Code:
    """Return the same of AMD assembly."""
    code = re.compile(r"^\t()([a-z]\w+)(.*)")
    label, jump, condition = re.compile(r"(\.LBB\w+):"), re.compile(r"(\.LBB\w+)"), re.compile("s_cbranch")
    return _read(assembly, label=label, code=code, jumps=("s_cbranch", "s_branch"), jump=jump, condition=condition)


def _read(
    text: str,
    *,
    label: re.Pattern[str],
    code: re.Pattern[str],
    jumps: tuple[str, ...],
    jump: re.Pattern[str],
    condition: re.Pattern[str],
) -> _Code:
    """Read a listing.

    Args:
        text: of the listing.
        label: matches a line that names the next instruction.
        code: finds what stands before an instruction, its name, and its operands.
        jumps: what the names of jumps begin with.
        jump: finds the label in their operands.
        condition: finds in a whole jump whether it has a condition.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    found: dict[int, tuple[str, bool]] = {}
    for line in text.splitlines():
        if at := label.match(line):
            labels[at[1]] = len(names)
        elif line_of_code := code.search(line):
            before, name, operands = line_of_code.groups()
            if name.startswith(jumps) and (target := jump.search(operands)):
                found[len(names)] = target[1], condition.search(f"{before}{name}{operands}") is None
            names.append(name)
    return _Code(names, {at: (labels[to], always) for at, (to, always) in found.items() if to in labels})
