"""Write the GPU bundle: standalone modules of the examples and the benchmark standard, and what checks and times them.

    python tools/gpu_bundle.py --out build/gpu --rank 60

The bundle needs torch, triton and numpy on the machine with the GPU, and nothing of this package. With `--rank`, it
also carries configurations of the kernels of some patterns, which are ranked here, so many seconds for each pattern,
and measured there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_candidates import candidates, entry_of
from gpu_gluon import write_gluon

from attnc.algebra.counting import count_pairs
from attnc.bench import flex, measure
from attnc.bench.additive import ONE, ZERO, affine_score
from attnc.bench.cases import make_data, square, surroundings
from attnc.bench.names import Mode
from attnc.bench.requests import PATTERNS, BenchOptions, standard_request, suite_files
from attnc.bench.standard import TOKENS, StandardCase, cases
from attnc.bench.standard_row import Sizes
from attnc.bench.suite_run import Pattern
from attnc.blockwise import varies
from attnc.codegen.runtime_source import read_runtime
from attnc.compiler import Compiled, plan_source, render
from attnc.files import read_pattern
from attnc.ir.nodes import IndexName, Size
from attnc.ir.program import NormalizeKind, Tensor
from attnc.ir.walk import depends_on, walk
from attnc.plan.kernel_plan import Plan

ROOT = Path(__file__).resolve().parent.parent

RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("bert", "length"): {"kind": "lengths", "low": 0.5},
    ("cross", "length"): {"kind": "lengths", "low": 0.5},
    ("prefix_lm", "prompt"): {"kind": "lengths", "low": 0.25},
    ("tempered", "beta"): {"kind": "number", "value": 1.5},
    ("packed", "doc"): {"kind": "documents", "mean": 512},
    ("documents", "doc"): {"kind": "runs", "length": 512},
}
"""How the script makes each input."""

PRIORITIES = ["streaming", "gpt", "longformer", "packed", "gemma", "sink_softmax", "prefix_lm", "bert"]
"""What is checked first; the rest follows in the order of their names."""

TARGETS = ("causal", "window", "documents", "dilated_2", "dilated", "dilated_wide")
"""Patterns of which FlexAttention's times are wanted first, in both passes."""

FIRST = {"length": 16384, "head_size": 128, "dtype": "bfloat16"}
"""And at which sizes."""

NEARER = (4096, 65536, 1024, 131072, 8192, 32768, 2048)
"""Other lengths, in the order in which they are measured."""

LONG = (("window", 100_000), ("window", 1_000_000), ("sinks_window", 1_000_000), ("longformer", 1_000_000),
        ("dilated", 1_000_000), ("longformer", 100_000), ("window", 2_200_000))  # fmt: skip
"""Long sequences; the last one has more numbers than 32 bits can count."""

LONG_HEADS, MOST_HEADS = 4, 8

TUNED = ("window", "causal", "documents", "dilated")
"""Patterns whose kernels are tuned there."""

SPLIT = ROOT / "tools" / "gpu_patterns"
"""Patterns with a pass that a library may compute: that is checked and measured, without any candidates of kernels."""

TRIED = 128
"""Length at which the steps are tried on a machine without a GPU."""

HEADS = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A pattern of the bundle, planned."""

    key: str
    idea: str
    compiled: Compiled

    @property
    def file(self) -> str:
        """Where its module is in the bundle."""
        return f"{self.key}.py"


def main() -> None:
    """Write the bundle to the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", nargs="*", help="names of pattern files, without .attn")
    parser.add_argument(
        "--rank", type=float, help="carry configurations to tune, after so many seconds of ranking each"
    )
    options = parser.parse_args()
    size = write_bundle(options.out, options.only, options.rank)
    print(f"{options.out}: {size / 2**20:.1f} MiB; run it with: python {options.out}/run.py --out results")


def write_bundle(out: Path, only: list[str] | None = None, rank: float | None = None) -> int:
    """Write all files of the bundle to `out`, which is emptied first, and return their size in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    sources = all_sources(only)
    for source in sources:
        path = out / source.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(source.compiled, standalone=True))
    suite = [source for source in sources if source.key.startswith("standard/")]
    planned = suite_cases(suite)
    long = long_cases(suite)
    manifest = {
        "patterns": [describe(plan, source) for source in sources for plan in source.compiled.plans],
        "cases": planned,
        "pairs": {source.key: pairs_of(source, lengths_of(source, planned, long)) for source in suite},
        "long": long,
        "tuned": [] if rank is None else [candidates(one.key, one.compiled, FIRST, rank) for one in tuned_of(suite)],
    }
    known = {one["pattern"] for one in manifest["tuned"]}
    manifest["tuned"] += [entry_of(one.key, FIRST, {}) for one in sources if has_part(one) and one.key not in known]
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    modifiers = flex_prelude()
    for source in suite:
        for length in (*lengths_of(source, planned, long), TRIED):
            modifiers += flex_source(source, length)
    (out / "flex_modifiers.py").write_text("\n".join(modifiers) + "\n")
    shutil.copytree(ROOT / "tools" / "gpu", out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(Path(measure.__file__), out / "bundle" / "measure.py")
    write_gluon(out, only)
    (out / "causal_scan.py").write_text(runtime_text("scan"))
    (out / "projections.py").write_text(runtime_text("structures.factors"))
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def runtime_text(root: str) -> str:
    """Return a module of the runtime with all that it needs of others; it needs torch and Triton alone."""
    runtime = read_runtime((root,))
    return "\n".join(["from __future__ import annotations", "", *runtime.imports, "", "", runtime.text, ""])


def all_sources(only: Sequence[str] | None = None) -> list[Source]:
    """Plan the examples, the patterns of the suite, the dilation that it does not have, and splits; or some of them."""
    paths = [("examples", path, path.stem, {}) for path in sorted((ROOT / "examples").glob("*.attn"))]
    paths += [("standard", path, path.stem, {}) for path in suite_files("standard")]
    paths.append(("standard", PATTERNS / "dilated.attn", "dilated_2", {"gap": 2}))
    paths += [("split", path, path.stem, {}) for path in sorted(SPLIT.glob("*.attn"))]
    sources = []
    for folder, path, name, params in paths:
        if only and name not in only:
            continue
        file = read_pattern(path)
        idea = next((line.strip("# ") for line in file.text.splitlines() if line.startswith("#")), "")
        sources.append(Source(f"{folder}/{name}", idea, plan_source(file, params)))
    return sources


def describe(plan: Plan, source: Source) -> dict[str, Any]:
    """Return the manifest's entry of one attention."""
    attention = plan.operation
    score = affine_score(attention.score)
    additive = score is not None and score.factor == ONE and attention.weight is None and attention.scale is None
    additive = additive and not surroundings(attention)
    softmax = attention.normalize.kind is NormalizeKind.SOFTMAX and attention.normalize.sink is None
    softmax = softmax and surroundings(attention) != "decompose nystrom"
    is_plain = score is not None and additive and score.offset == ZERO and softmax
    flag = "causal" if plan.facts.exactly_causal else "full" if plan.facts.everything else None
    folder, _, stem = source.key.rpartition("/")
    several = len(source.compiled.plans) > 1
    return {
        "key": f"{folder}/{attention.name}" if several else source.key,
        "name": attention.name,
        "module": source.file,
        "cls": "".join(word.capitalize() for word in attention.name.split("_")),
        "idea": source.idea,
        "inputs": [{"name": t.name, **RECIPES[attention.name, t.name]} for t in attention.inputs if not t.hidden],
        "learned": [{"name": t.name, "sizes": sizes_of(t)} for t in attention.learned],
        "plain": flag if is_plain else None,
        "additive": additive,
        "softmax": softmax,
        "by_batch": varies(attention, IndexName.BATCH),
        "by_head": varies(attention, IndexName.HEAD),
        "bias_by_head": score is not None and depends_on(score.offset, IndexName.HEAD),
        "priority": PRIORITIES.index(stem) if stem in PRIORITIES else len(PRIORITIES),
    }


def sizes_of(tensor: Tensor) -> list[str]:
    """Return the sizes in a tensor's dimensions, which its module's constructor takes."""
    return sorted({node.name.value for dim in tensor.dims if dim for node in walk(dim) if isinstance(node, Size)})


# -- what is measured


def tuned_of(suite: Sequence[Source]) -> list[Source]:
    """Return the patterns whose kernels are tuned, in their order."""
    return [source for name in TUNED for source in suite if source.key == f"standard/{name}"]


def has_part(source: Source) -> bool:
    """Tell whether a file is one pattern, of which a library may compute a pass."""
    return len(source.compiled.plans) == 1 and source.compiled.plans[0].part is not None


def suite_cases(suite: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the cases of the benchmark standard on a GPU, those that decide on its targets first."""
    patterns = [Pattern(source.key, source.idea, lambda: source.compiled) for source in suite]  # noqa: B023
    named = [replace(one, name=one.name.removeprefix("standard/")) for one in patterns]
    made = cases(standard_request(BenchOptions()), named, "cuda", TOKENS["cuda"])
    ordered = sorted(made, key=_turn)
    return [
        {
            "pattern": f"standard/{case.pattern.name}",
            "small": case.small,
            "first": _turn(case)[0] == 0,
            "sizes": asdict(case.sizes),
        }
        for case in ordered
    ]


def _turn(case: StandardCase) -> tuple[int, ...]:
    """Return when a case comes: targets, short calls, the other patterns at their sizes, other lengths, all else."""
    name, sizes = case.pattern.name, case.sizes
    is_target = name in TARGETS
    turn = TARGETS.index(name) if is_target else len(TARGETS)
    mode = (Mode.FORWARD, Mode.BOTH, Mode.BACKWARD).index(sizes.mode)
    of_first = {field: getattr(sizes, field) for field in FIRST} == FIRST
    is_plain = sizes.heads == sizes.kv_heads and sizes.dtype == FIRST["dtype"]
    if of_first and is_plain and not case.small:
        return (0, mode, turn) if is_target else (2, mode, turn)
    if case.small:
        return (1 if is_plain and sizes.mode is Mode.FORWARD and sizes.head_size == 64 else 6, mode, sizes.length)
    later = NEARER.index(sizes.length) + 1 if sizes.length in NEARER else 0
    if is_plain and sizes.head_size == FIRST["head_size"]:
        return (3 if is_target else 5, later, mode, turn)
    if is_target and later == 0 and sizes.dtype == FIRST["dtype"]:
        return (4, mode, turn, sizes.head_size, sizes.kv_heads)
    return (7, later, mode, turn)


def long_cases(suite: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the long sequences."""
    known = {source.key for source in suite}
    found = []
    for name, length in LONG:
        if f"standard/{name}" in known:
            heads = MOST_HEADS if length > 2_000_000 else LONG_HEADS
            sizes = Sizes(length, 1, heads, heads, 128, "bfloat16", Mode.BOTH)
            found.append({"pattern": f"standard/{name}", "sizes": asdict(sizes)})
    return found


def lengths_of(source: Source, *groups: Sequence[dict[str, Any]]) -> list[int]:
    """Return the lengths at which a pattern is measured."""
    return sorted({one["sizes"]["length"] for group in groups for one in group if one["pattern"] == source.key})


def pairs_of(source: Source, lengths: Sequence[int]) -> dict[str, float]:
    """Count the allowed pairs of one head by length, where sets can; others are counted where they are measured."""
    attention = source.compiled.plans[0].attention
    counted = {str(length): count_pairs(attention, length, length, HEADS) for length in lengths}
    return {length: float(count) for length, count in counted.items() if count is not None}


# -- FlexAttention


def flex_prelude() -> list[str]:
    """Return the first lines of `flex_modifiers.py`: what the functions below them may call."""
    hash_parts = [inspect.getsource(part).rstrip() for part in (flex._signed, flex._wide, flex._mix)]
    lines = ["from __future__ import annotations", "import torch", "_WORD = 2**64", *hash_parts]
    return ["\n\n".join([*lines, "mix, wide = _mix, _wide", "MODIFIERS = {}"]), ""]


def flex_source(source: Source, length: int) -> list[str]:
    """Return the lines that give the bundle FlexAttention's mask and score functions at one length, if it has any."""
    attention = source.compiled.plans[0].attention
    if attention.normalize.kind is not NormalizeKind.SOFTMAX or attention.normalize.sink or attention.weight:
        return []
    shape = square(length, heads=HEADS)
    data = make_data(attention, shape, seed=0)
    try:
        made = flex.flex_functions(attention, shape, data, torch.device("cpu"))
    except flex.NotExpressible:
        return []
    name = f"make_{source.key.replace('/', '_')}_{length}"
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
        f"MODIFIERS[{source.key!r}, {length}] = {name}",
    ]


if __name__ == "__main__":
    main()
