"""Products by bilinear schemes: a bounded run of `tools/time_schemes.py`, into its file for one thread."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import time_schemes
import torch

from attnc.files import write_text
from attnc.runtime.bilinear import BilinearScheme, scheme_matmul
from attnc.schemes import float_rows
from results.efficiency import share_of_products
from results.store import Store, write_json

NAME = "schemes"

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "clock": "processor",
    "rounds": 2,
    "sizes": [512, 768, 1024, 1536, 2048, 3072, 4096],
    "levels": {"strassen": [1, 2, 3], "winograd": [1, 2, 3], "strassen_twice": [1]},
    "profiled": 2048,
}

QUICK = SETTINGS | {"rounds": 1, "sizes": [128, 256], "levels": {"strassen": [1]}, "profiled": 256}

ONE_THREAD, TWO_THREADS = "strassen_one_thread", "strassen"
"""Files of `time_schemes`: the first is what is measured here."""


def settings(*, quick: bool) -> dict[str, Any]:
    """Return what is measured."""
    return QUICK if quick else SETTINGS


def measure(store: Store) -> None:
    """Fill the rows in, and the rates that the cost model takes."""
    chosen = store.data["settings"]
    device, dtype = torch.device("cpu"), getattr(torch, chosen["dtype"])
    time_schemes.CLOCK.append(time.process_time)
    try:
        for size in chosen["sizes"]:
            for name, levels in chosen["levels"].items():
                for key, found, _ in time_schemes.cases([size], [name], levels):
                    store.add(
                        key,
                        lambda found=found, size=size: time_schemes.measure(  # type: ignore[misc]
                            found, size, device, dtype, chosen["rounds"]
                        ),
                    )
        store.add("rates", lambda: time_schemes.measure_rates(device, dtype))
        store.add("products", lambda: measure_shares(chosen))
    finally:
        time_schemes.CLOCK.pop()


def measure_shares(chosen: dict[str, Any]) -> dict[str, float]:
    """Return the part of the time that products of blocks take, by the levels of Strassen's scheme."""
    size = chosen["profiled"]
    a, b, _ = time_schemes.factors(size, torch.device("cpu"), getattr(torch, chosen["dtype"]))
    found = {}
    for levels in chosen["levels"]["strassen"]:
        leveled = time_schemes.load("strassen", levels)
        rows = (leveled.scheme.m, leveled.scheme.k, leveled.scheme.n, *float_rows(leveled.scheme))
        scheme = BilinearScheme(*rows)

        def call(scheme: BilinearScheme = scheme, levels: int = levels) -> object:
            return scheme_matmul(a, b, scheme, levels)

        call()
        found[f"{levels}"] = statistics.median(share_of_products(call) for _ in range(3))
    return {"size": size} | found


def publish(store: Store, folder: Path) -> None:
    """Take the rows up into the file of earlier runs: the least times of all runs on a machine count."""
    path = folder / f"{ONE_THREAD}.json"
    chosen = store.data["settings"]
    data: dict[str, Any] = {"rates": [], "rows": {}, "machine": store.data["machine"]}
    data |= {name: chosen[name] for name in ("dtype", "clock")}
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        data = earlier if time_schemes.is_same(earlier, data) else data
    data["load"] = max(data.get("load", 0.0), store.data["load"])
    for key, row in store.rows.items():
        if key == "products":
            data[key] = row
        elif key == "rates":
            time_schemes.add_rates(data, row)
        else:
            time_schemes.add(data, key, row)
    write_json(path, data)
    write_text(path.with_suffix(".md"), time_schemes.page(data))
