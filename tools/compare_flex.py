"""Compare the inner loop of our kernels with that of FlexAttention's, compiled by the same Triton.

    python tools/compare_flex.py --markdown docs/results/instructions.md      # prints the table without --markdown

FlexAttention's kernel is the template of the installed PyTorch, filled in as its compiler does for causal attention:
no score function, and the options that are its defaults. Both are compiled ahead of time with the same tiles, once ours
and once those that PyTorch takes on an H100; no GPU is needed. What is counted are the instructions of a warp for a
tile of which every pair is allowed, without those of matrix units, and the registers of the whole kernel.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import jinja2
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnc.compiler import import_compiled, plan_source
from attnc.files import write_text
from attnc.runtime.aot import ARCHITECTURES, SHARED_LIMITS, KernelReport, compile_kernel, nvidia_resources
from attnc.runtime.tiles import Tiles
from attnc.source import SourceFile
from attnc.tuning.disassembly import main_loop, matrix_loops

PATTERNS = {
    "causal": "attention causal { mask causal }",
    "window": "attention window { mask causal and i - j < 256 }",
    "sinks": "attention sinks { mask causal and (i - j < 256 or j < 4) }",
}
"""What is compared with FlexAttention's kernel, whose loop over full blocks is the same for all of them."""

FLEX_TILES = {64: Tiles(128, 128, 4, 3), 128: Tiles(128, 64, 8, 3)}
"""By head size: what PyTorch 2.13 takes for 16-bit types on an H100."""

LENGTH, HEADS, BLOCK = 8192, 16, 128

PARAMETERS = {
    "Q": "*bf16",
    "K": "*bf16",
    "V": "*bf16",
    "LSE": "*fp32",
    "MAX": "*fp32",
    "KV_NUM_BLKS": "*i32",
    "KV_IDX": "*i32",
    "FULL_KV_NUM_BLKS": "*i32",
    "FULL_KV_IDX": "*i32",
    "OUT": "*bf16",
}
"""Of FlexAttention's kernel, and their types."""

PREFIX = "arg_"


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison."""

    target: str
    head_size: int
    tiles: Tiles


def main() -> None:
    """Compile what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=("sm_90", "sm_80"), choices=[*_nvidia()])
    parser.add_argument("--head-sizes", nargs="*", type=int, default=(64, 128))
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    lines = [
        "| target | head size | tiles | kernel | registers | spilled bytes | instructions a full tile | of Flex's |",
        "|---|---:|---|---|---:|---:|---:|---:|",
    ]
    for target in options.targets:
        for head_size in options.head_sizes:
            for tiles in tiles_of(target, head_size):
                lines += _rows(Case(target, head_size, tiles))
                print("\n".join(lines[-1 - len(PATTERNS) :]), flush=True)
    if options.markdown:
        write_text(options.markdown, _page(lines))


def tiles_of(target: str, head_size: int) -> Iterator[Tiles]:
    """Yield the tiles that are compared: ours for causal attention, and those of PyTorch with either way of reading."""
    ours = compile_kernel(_module(PATTERNS["causal"]), target, torch.bfloat16, head_size).tiles
    every = [ours, FLEX_TILES[head_size]]
    if target == "sm_90":
        every.append(replace(FLEX_TILES[head_size], descriptors=True))
    yield from dict.fromkeys(replace(tiles, chunk=0) for tiles in every)


def full_tile_instructions(case: Case, pattern: str) -> tuple[KernelReport, int]:
    """Compile our kernel of a pattern; return it and the instructions of a full tile that are not for matrix units."""
    report = compile_kernel(_module(pattern), case.target, torch.bfloat16, case.head_size, tiles=case.tiles)
    loop = main_loop(report)
    assert loop is not None
    return report, loop.others


@cache
def _module(pattern: str) -> ModuleType:
    return import_compiled(plan_source(SourceFile("<string>", pattern)))


def flex_instructions(case: Case) -> tuple[KernelReport, int]:
    """Return the same of FlexAttention's kernel: of its loops over blocks, the second one tests no mask."""
    report = flex_report(case)
    return report, matrix_loops(report)[1].others


def _rows(case: Case) -> Sequence[str]:
    flex, theirs = flex_instructions(case)
    found = [("FlexAttention", flex, theirs)]
    found += [(name, *full_tile_instructions(case, pattern)) for name, pattern in PATTERNS.items()]
    tiles = case.tiles
    shape = f"{tiles.query} x {tiles.key}, {tiles.warps} warps, {tiles.stages} stages"
    shape += ", descriptors" if tiles.descriptors else ""
    return [
        f"| {case.target} | {case.head_size} | {shape} | {name} | {report.registers} | {report.spills} | {count} "
        f"| {count / theirs:.2f} |"
        for name, report, count in found
    ]


def _page(lines: Sequence[str]) -> str:
    return (
        "# Instructions of a full tile, beside FlexAttention's\n\n"
        f"Triton {triton.__version__}, PyTorch {torch.__version__}, bfloat16, no GPU present. Written by\n\n"
        "    python tools/compare_flex.py --markdown docs/results/instructions.md\n\n"
        "Instructions of a warp in the loop over tiles that tests no mask, without those of matrix units.\n"
        "FlexAttention's kernel is PyTorch's template of causal attention for equal lengths, multiples of 128,\n"
        "by the same compiler and with the same tiles.\n\n" + "\n".join(lines) + "\n"
    )


def _nvidia() -> Iterator[str]:
    return (target for target, (backend, _, _) in ARCHITECTURES.items() if backend == "cuda")


# -- FlexAttention's kernel


def flex_report(case: Case) -> KernelReport:
    """Compile FlexAttention's kernel of causal attention.

    Raises:
        FileNotFoundError: the installed PyTorch has its templates elsewhere.
    """
    tiles = case.tiles
    compiled = _compile(_source(case), case)
    registers, spills = nvidia_resources(compiled.asm["cubin"])
    return KernelReport(
        kernel="flex",
        identity="",
        target=case.target,
        dtype="bfloat16",
        head_size=case.head_size,
        registers=registers,
        spills=spills,
        tiles=tiles,
        shared=compiled.metadata.shared,
        shared_limit=SHARED_LIMITS[case.target] * 1024,
        matrix_instructions=1,
        shares=1,
        joined=0,
        assembly=compiled.asm["ptx"],
        binary=compiled.asm["cubin"],
    )


def _compile(source: str, case: Case) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flex.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("flex", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        signature = {PREFIX + name: kind for name, kind in PARAMETERS.items()}
        aligned = {(number,): [["tt.divisibility", 16]] for number in range(len(signature))}
        kernel = ASTSource(module.flex, signature, {}, aligned)
        options = {"enable_fp_fusion": True, "num_warps": case.tiles.warps, "num_stages": case.tiles.stages}
        return triton.compile(kernel, target=GPUTarget(*ARCHITECTURES[case.target]), options=options)


def _source(case: Case) -> str:
    """Fill PyTorch's template in, as its compiler does."""
    folder = Path(torch.__file__).parent / "_inductor" / "kernel" / "flex" / "templates"
    names = ("flex_attention", "utilities", "common")
    template = "\n".join((folder / f"{name}.py.jinja").read_text() for name in names)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["indent_except_first"] = lambda text, depth=1: text.replace("\n", "\n" + "    " * depth)
    options = _options(case)
    blocks, row = LENGTH // BLOCK, HEADS * LENGTH * case.head_size
    sizes = {"Q": (1, HEADS, LENGTH), "K": (1, HEADS, LENGTH), "KV_NUM_BLKS": (1, 1, blocks)}
    strides: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("Q", "K", "V"), (row, LENGTH * case.head_size, case.head_size, 1)
    )
    strides |= dict.fromkeys(("KV_NUM_BLKS", "FULL_KV_NUM_BLKS"), (blocks, blocks, 1))
    strides |= dict.fromkeys(("KV_IDX", "FULL_KV_IDX"), (blocks * blocks, blocks * blocks, blocks, 1))
    arguments = ", ".join(PREFIX + name for name in PARAMETERS)

    def stride(name: str, axis: int | None = None) -> str:
        return ", ".join(map(str, strides[name])) if axis is None else str(strides[name][axis])

    def define(*names: str) -> str:
        known = "\n".join(f"{name} = {PREFIX}{name}" for name in PARAMETERS)
        return f"@triton.jit\ndef flex({arguments}):\n" + textwrap.indent(f"{options}\n{known}", "    ")

    def modify(subgraph_number: int, **more: object) -> str:
        return "mask_mod_output = m >= n" if subgraph_number else "post_mod_scores = qk"

    def store(places: Sequence[str], value: str, mask: str, **more: object) -> str:
        index = " + ".join(f"{step} * {place}" for step, place in zip(strides["Q"], places, strict=True))
        return f"tl.store(OUT + {index}, {value}.to(tl.bfloat16), {mask})"

    text = environment.from_string(template).render(
        def_kernel=define,
        size=lambda name, axis: str(sizes[name][axis]),
        stride=stride,
        gen_argdefs=lambda: arguments,
        gen_defines=lambda: options,
        modification=modify,
        store_output=store,
        USE_TMA=case.tiles.descriptors,
        HAS_FULL_BLOCKS=True,
    )
    return f"import triton\nimport triton.language as tl\n{text}"


def _options(case: Case) -> str:
    """Return the constants of the kernel, as lines of code: PyTorch's defaults where a call sets nothing."""
    constants = {
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "OUTPUT_LOGSUMEXP": True,
        "OUTPUT_MAX": False,
        "FLOAT32_PRECISION": "ieee",
        "IS_DIVISIBLE": True,
        "SM_SCALE": case.head_size**-0.5,
        "GQA_SHARED_HEADS": 1,
        "HAS_FULL_BLOCKS": True,
        "QK_HEAD_DIM": case.head_size,
        "QK_HEAD_DIM_ROUNDED": case.head_size,
        "V_HEAD_DIM": case.head_size,
        "V_HEAD_DIM_ROUNDED": case.head_size,
        "SAFE_HEAD_DIM": True,
        "USE_TMA": case.tiles.descriptors,
        "BLOCK_M": case.tiles.query,
        "BLOCK_N": case.tiles.key,
        "SPARSE_Q_BLOCK_SIZE": BLOCK,
        "SPARSE_KV_BLOCK_SIZE": BLOCK,
    }
    lines = [f"{name}: tl.constexpr = {value!r}" for name, value in constants.items()]
    return "\n".join([*lines, "INDEX_DTYPE: tl.constexpr = tl.int32"])


if __name__ == "__main__":
    main()
