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
        mix: how often each instruction stands in it, by its name with all modifiers.
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
    names, jumps = _of_binary(report.binary) if ARCHITECTURES[report.target][0] == "cuda" else _of_text(report.assembly)
    found = [(first, last) for first, last in jumps if any(_is_matrix(name) for name in names[first : last + 1])]
    inner = [
        (first, last)
        for first, last in sorted(set(found))
        if not any((first, last) != other and first <= other[0] and other[1] <= last for other in found)
    ]
    return tuple(Loop(Counter(names[first : last + 1])) for first, last in inner)


def main_loop(report: KernelReport) -> Loop | None:
    """Return the loop over tiles that tests no mask, or tests least: the one with the fewest other instructions.

    Loops that copy tiles ahead come first: the walk for values that are not finite does not. None where there is no
    loop, as in a kernel that joins sums.
    """
    loops = matrix_loops(report)
    ahead = [loop for loop in loops if loop.count(*COPIES)]
    return min(ahead or loops, key=lambda loop: loop.others, default=None)


def _is_matrix(name: str) -> bool:
    return name.startswith(MATRIX)


def _of_binary(binary: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the names of all instructions for an NVIDIA device, and from where to where jumps go backward."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    code = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);")
    jump = re.compile(r"`\((\.L_\w+)\)")
    return _read(text, label=re.compile(r"\s*(\.L_\w+):"), code=code, jumps=("BRA",), jump=jump)


def _of_text(assembly: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the same of AMD assembly."""
    code = re.compile(r"^\t([a-z]\w+)(.*)")
    jump = re.compile(r"(\.LBB\w+)")
    return _read(assembly, label=re.compile(r"(\.LBB\w+):"), code=code, jumps=("s_cbranch", "s_branch"), jump=jump)


def _read(
    text: str, *, label: re.Pattern[str], code: re.Pattern[str], jumps: tuple[str, ...], jump: re.Pattern[str]
) -> tuple[list[str], list[tuple[int, int]]]:
    names: list[str] = []
    labels: dict[str, int] = {}
    found: list[tuple[str, int]] = []
    for line in text.splitlines():
        if at := label.match(line):
            labels[at[1]] = len(names)
        elif line_of_code := code.search(line):
            name, operands = line_of_code.groups()
            if name.startswith(jumps) and (target := jump.search(operands)):
                found.append((target[1], len(names)))
            names.append(name)
    return names, [(labels[to], at) for to, at in found if labels.get(to, at + 1) <= at]
