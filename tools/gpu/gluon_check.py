"""Check and time the kernels in Gluon of this bundle on an sm_90; nothing else makes them more than opt-in.

    python build/gpu/gluon_check.py [--budget 60]

Every `gluon_*.py` beside this script is a module that stands alone. Output and log-sum-exp of each are compared with
the dense definition in float64, in orders of magnitude of the error that the dense computation itself has in the same
precision, and with memory of the output poisoned; then the kernel is timed beside the Triton kernel of the same
module. The last line that is printed is JSON: `rows`, and as `entries` what `attnc tune --import` takes of kernels
that were right everywhere and faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
DEVICE = "cuda"

CHECKED = [
    # batch, heads, heads of keys, queries, keys, head size
    (2, 4, 2, 257, 257, 64),
    (1, 4, 1, 300, 1000, 128),
    (1, 2, 2, 65, 65, 128),
    (2, 8, 2, 2048, 2048, 64),
    (1, 8, 8, 1500, 1500, 128),
]
TIMED = [(1, 16, 16, 16384, 16384, 128), (1, 16, 16, 8192, 8192, 64)]

Row = dict[str, Any]


def rows(folder: Path = HERE, *, budget: float = 60.0) -> Iterator[Row]:
    """Yield a row for each call of a kernel in Gluon that is checked or timed.

    Args:
        folder: has the modules.
        budget: seconds after which nothing more is started.
    """
    end = time.monotonic() + budget
    modules = [load(path) for path in sorted(folder.glob("gluon_*.py")) if path.name != Path(__file__).name]
    wrong: set[str] = set()
    for module in modules:
        for sizes in CHECKED:
            for dtype in (torch.bfloat16, torch.float16):
                if time.monotonic() < end:
                    row = attempt(checked, module, sizes, dtype)
                    wrong |= set() if row["ok"] else {module.__name__}
                    yield row
    for sizes in TIMED:
        for module in modules:
            if module.__name__ not in wrong and time.monotonic() < end:
                yield attempt(timed, module, sizes, torch.bfloat16)


def load(path: Path) -> ModuleType:
    """Import one module of the bundle."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def attempt(function: Any, module: ModuleType, sizes: tuple[int, ...], dtype: torch.dtype) -> Row:
    """Return the row of a call, or what went wrong; an error of the device ends the script."""
    row: Row = {"name": name_of(module), "step": function.__name__, "sizes": list(sizes), "dtype": str(dtype)[6:]}
    try:
        return row | function(module, sizes, dtype)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        return row | {"ok": False, "why": f"{type(error).__name__}: {error}"[:600]}


def name_of(module: ModuleType) -> str:
    """Return the name of the module's only attention."""
    return next(name.removeprefix("_").removesuffix("_program") for name in vars(module) if name.endswith("_program"))


def arguments(
    module: ModuleType, sizes: tuple[int, ...], dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Return query, key and value, and the inputs: sorted ids where ids are read, small numbers elsewhere."""
    batch, heads, groups, queries, keys, width = sizes
    generator = torch.Generator().manual_seed(11)
    shapes = [(batch, heads, queries, width), (batch, groups, keys, width), (batch, groups, keys, width)]
    query, key, value = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    known = module.Sizes(B=batch, H=heads, N=queries, M=keys, D=width, g=heads // groups, value_size=width)
    inputs = {}
    for tensor in vars(module)[f"_{name_of(module)}_program"].tensors:
        shape = [64 if dim is None else int(dim(known)) for dim in tensor.dims]
        if tensor.type == "float":
            inputs[tensor.name] = 0.1 * torch.randn(shape, generator=generator).to(DEVICE)
        else:
            inputs[tensor.name] = (torch.rand(shape, generator=generator) < 1 / 300).long().cumsum(-1).to(DEVICE)
    return (query, key, value), inputs


def checked(module: ModuleType, sizes: tuple[int, ...], dtype: torch.dtype) -> Row:
    """Compare one call: at most twice the error of the dense computation in the same precision."""
    tensors, inputs = arguments(module, sizes, dtype)
    name = name_of(module)
    dense = vars(module)[f"{name}_reference"]
    wide = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
    expected, expected_lse = dense(*(tensor.double() for tensor in tensors), return_lse=True, **wide)
    same = dense(*tensors, **inputs)
    out = torch.full_like(tensors[0], float("nan"))
    lse = torch.full(out.shape[:3], float("nan"), device=DEVICE)
    launches = launch(module, tensors, inputs, out, lse)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    floor = 4 * torch.finfo(dtype).eps * float(expected.abs().max().clamp(min=1e-6))
    allowed = 2 * float((same.double() - expected).abs().max()) + floor
    error = float((out.double() - expected).abs().max())
    lse_error = float((lse.double() - expected_lse)[expected_lse.isfinite()].abs().max())
    empty = bool((lse.isneginf() == expected_lse.isneginf()).all())
    ok = launches == 1 and empty and error <= allowed and lse_error <= 1e-3
    return {"ok": ok, "launches": launches, "error": error, "allowed": allowed, "lse_error": lse_error}


def launch(
    module: ModuleType,
    tensors: tuple[Tensor, Tensor, Tensor],
    inputs: dict[str, Tensor],
    out: Tensor,
    lse: Tensor,
) -> int:
    """Run the launcher of a module's attention with kernels in Gluon; return how many of these it launched."""
    made = vars(module)["gluon_launchable"]
    launched: list[Any] = []

    def counted(kernel: Any, described: Any) -> Any:
        launched.append(kernel)
        return made(kernel, described)

    vars(module)["gluon_launchable"] = counted
    try:
        with module.prefer_template("gluon"):
            vars(module)[f"_{name_of(module)}_launch"](*tensors, out, lse, tuple(inputs.values()), None, None)
    finally:
        vars(module)["gluon_launchable"] = made
    return len(launched)


def timed(module: ModuleType, sizes: tuple[int, ...], dtype: torch.dtype) -> Row:
    """Time one call with each kernel, in turns; and say what an entry for tuned tiles would be."""
    from triton.testing import do_bench

    tensors, inputs = arguments(module, sizes, dtype)
    out, lse = torch.empty_like(tensors[0]), torch.empty(tensors[0].shape[:3], device=DEVICE)
    given = tuple(inputs.values())
    start = vars(module)[f"_{name_of(module)}_launch"]
    seconds: dict[str, list[float]] = {"tl": [], "gluon": []}
    with module.prefer_template("tl"), module.watch_kernels() as asked:
        start(*tensors, out, lse, given, None, None)
    for turn in range(6):
        template = ("tl", "gluon")[turn % 2]
        with module.prefer_template(template):
            time_ms = do_bench(lambda: start(*tensors, out, lse, given, None, None), warmup=10, rep=40)
        seconds[template].append(float(time_ms) * 1e-3)
    best = {template: sorted(times)[len(times) // 2] for template, times in seconds.items()}
    entry = entry_of(module, f"{asked[0]} gluon", sizes, dtype, best)
    return {"ok": True, "seconds": best, "ratio": best["tl"] / best["gluon"], "entry": entry}


def entry_of(
    module: ModuleType, kernel: str, sizes: tuple[int, ...], dtype: torch.dtype, seconds: dict[str, float]
) -> Row:
    """Return what `attnc tune --import` takes of a kernel: with it, calls of about this length take the kernel."""
    import triton

    _, _, _, queries, keys, width = sizes
    table = vars(module)[f"_{name_of(module)}_gluon_tiles"]
    tiles = table["sm_90", 2, width][0]
    return {
        "kernel": kernel,
        "device": torch.cuda.get_device_name(),
        "versions": f"triton {triton.__version__}",
        "dtype": str(dtype).removeprefix("torch."),
        "head_size": width,
        "value_size": width,
        "queries": queries,
        "keys": keys,
        "tiles": {"query": tiles.query, "key": tiles.key, "warps": tiles.warps, "stages": tiles.stages},
        "seconds": seconds["gluon"],
        "default_seconds": seconds["tl"],
    }


def main() -> int:
    """Print a line for each row, and then all of them as JSON; exit code 1 if a kernel was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60.0)
    budget = parser.parse_args().budget
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        print(json.dumps({"rows": [], "entries": [], "why": "no sm_90"}))
        return 0
    found = []
    for row in rows(budget=budget):
        found.append(row)
        print({key: value for key, value in row.items() if key != "entry"}, flush=True)
    right = {row["name"] for row in found} - {row["name"] for row in found if not row["ok"]}
    entries = [row["entry"] for row in found if row["name"] in right and row.get("ratio", 0) > 1.02]
    print(json.dumps({"rows": [{key: row[key] for key in row if key != "entry"} for row in found], "entries": entries}))
    return 0 if len(right) == len({row["name"] for row in found}) else 1


if __name__ == "__main__":
    sys.exit(main())
