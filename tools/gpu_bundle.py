"""Write the GPU bundle: standalone modules of the examples, data recipes, and a script that checks and times them.

    python tools/gpu_bundle.py --out build/gpu

The bundle needs torch, triton and numpy on the machine with the GPU, and nothing of this package.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from attnc.algebra.counting import count_pairs
from attnc.bench import flex
from attnc.bench.cases import make_data, square
from attnc.compiler import plan_source, render
from attnc.files import read_pattern
from attnc.ir.nodes import Score, Size
from attnc.ir.program import NormalizeKind, Tensor
from attnc.ir.walk import walk
from attnc.plan.kernel_plan import Form, Plan

ROOT = Path(__file__).resolve().parent.parent

RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("bert", "length"): {"kind": "lengths", "low": 0.5},
    ("cross", "length"): {"kind": "lengths", "low": 0.5},
    ("prefix_lm", "prompt"): {"kind": "lengths", "low": 0.25},
    ("tempered", "beta"): {"kind": "number", "value": 1.5},
    ("packed", "doc"): {"kind": "documents", "mean": 512},
}
"""How the script makes each input of the examples."""

PRIORITIES = ["streaming", "gpt", "longformer", "packed", "gemma", "sink_softmax", "prefix_lm", "bert"]
"""What is measured first; the rest follows in the order of their names."""

TIMED = [(8192, 64), (16384, 128), (65536, 128)]
"""Lengths and head sizes at which `run.py` times examples: the pairs are counted, and FlexAttention's functions
written, for these."""

HEADS = 16


def main() -> None:
    """Write the bundle to the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", nargs="*", help="names of the example files, without .attn")
    options = parser.parse_args()
    size = write_bundle(options.out, options.only)
    print(f"{options.out}: {size / 2**20:.1f} MiB; run it with: python {options.out}/run.py --out results")


def write_bundle(out: Path, only: list[str] | None = None) -> int:
    """Write all files of the bundle to `out`, which is emptied first, and return their size in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    manifest: list[dict[str, Any]] = []
    modifiers = flex_prelude()
    for path in sorted((ROOT / "examples").glob("*.attn")):
        if only and path.stem not in only:
            continue
        compiled = plan_source(read_pattern(path))
        (out / f"{path.stem}.py").write_text(render(compiled, standalone=True))
        for plan in compiled.plans:
            manifest.append(describe(plan, path.stem))
            for length, head_size in TIMED:
                modifiers += flex_source(plan, length, head_size)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (out / "flex_modifiers.py").write_text("\n".join(modifiers) + "\n")
    shutil.copyfile(ROOT / "tools" / "gpu" / "run.py", out / "run.py")
    return sum(file.stat().st_size for file in out.iterdir())


def describe(plan: Plan, module: str) -> dict[str, Any]:
    """Return the manifest's entry of one attention."""
    attention = plan.attention
    library = plan.passes[0].library if plan.passes[0].form is Form.LIBRARY else None
    pairs = {str(n): count_pairs(attention, n, n, HEADS) for n, _ in TIMED}
    rank = PRIORITIES.index(module) if module in PRIORITIES else len(PRIORITIES)
    return {
        "name": attention.name,
        "module": module,
        "cls": "".join(word.capitalize() for word in attention.name.split("_")),
        "inputs": [{"name": t.name, **RECIPES[attention.name, t.name]} for t in attention.inputs],
        "learned": [{"name": t.name, "sizes": sizes_of(t)} for t in attention.learned],
        "pairs": {n: None if count is None else float(count) for n, count in pairs.items()},
        "plain": library.value if library is not None and attention.scale is None else None,
        "score": not isinstance(attention.score, Score) or attention.weight is not None or attention.scale is not None,
        "softmax": attention.normalize.kind is NormalizeKind.SOFTMAX and attention.normalize.sink is None,
        "priority": rank,
    }


def sizes_of(tensor: Tensor) -> list[str]:
    """Return the sizes in a tensor's dimensions, which its module's constructor takes."""
    return sorted({node.name.value for dim in tensor.dims if dim for node in walk(dim) if isinstance(node, Size)})


def flex_prelude() -> list[str]:
    """Return the first lines of `flex_modifiers.py`: what the functions below them may call."""
    hash_parts = [inspect.getsource(part).rstrip() for part in (flex._signed, flex._wide, flex._mix)]
    lines = ["from __future__ import annotations", "import torch", "_WORD = 2**64", *hash_parts]
    return ["\n\n".join([*lines, "mix, wide = _mix, _wide", "MODIFIERS = {}"]), ""]


def flex_source(plan: Plan, length: int, head_size: int) -> list[str]:
    """Return the lines that give `run.py` the mask and score functions of FlexAttention at one size, if it has any."""
    attention = plan.attention
    if attention.normalize.kind is not NormalizeKind.SOFTMAX or attention.normalize.sink or attention.weight:
        return []
    shape = square(length, heads=HEADS, head_size=head_size)
    data = make_data(attention, shape, seed=0)
    try:
        made = flex.flex_functions(attention, shape, data, torch.device("cpu"))
    except flex.NotExpressible:
        return []
    name = f"make_{attention.name}_{length}"
    body = [f"    {line}" if line else "" for line in made.source.splitlines()]
    taken = [f"    t_{t.name} = torch.as_tensor(data[{t.name!r}], device=device)" for t in attention.tensors]
    mask = "mask_mod" if made.mask_mod is not None else "None"
    score = "score_mod" if made.score_mod is not None else "None"
    return [
        "",
        f"def {name}(data, device):",
        *taken,
        *body,
        f"    return {mask}, {score}",
        "",
        f"MODIFIERS[{attention.name!r}, {length}] = {name}",
    ]


if __name__ == "__main__":
    main()
