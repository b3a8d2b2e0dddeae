"""Time one step of decoding behind a cache, with the products around latents in both orders, and whole sequences.

    python tools/time_decoding.py --markdown docs/results/decoding.md
    python tools/time_decoding.py --clock processor

The layer is like that of `examples/mla.attn` without its feed-forward network. Beside it stands one with dense
projections, whose cache has keys and values of all heads. All are called in turn, in rounds that alternate their order,
and the least time counts: other work on the machine can only add to it. `--clock processor` counts the time of one
thread on the processor, which is hardly longer where the machine is busy. `taken` is what the cost model takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import attnc
from attnc.bench.machine import describe
from attnc.runtime.structures.caches import LayerCache
from attnc.runtime.structures.latents import products_in_order

WIDTH, HEADS = 1024, 16
RANKS = (64, 128)
CACHED = (256, 1024, 4096, 16384)
SEQUENCES = (256, 1024, 2048)
BATCHES = (1, 4)
ROUNDS, SECONDS = 9, 0.05
CLOCKS = {"wall": "Milliseconds", "processor": "Milliseconds of one thread on the processor"}

CLOCK: list[Callable[[], float]] = [time.perf_counter]
"""What times are taken from: the last one."""

HEADING = "| rank | batch | tokens in the cache | absorb | expand | dense | expand / absorb | taken |"
RULE = "|---" * 8 + "|"

PATTERN = """attention causal_attention {
    mask causal
}
layer latent(width: int = 1024, rank: int = 128) {
    norm rms
    heads 16
    key low_rank(rank)
    value low_rank(rank)
    attend causal_attention
}
layer plain(width: int = 1024) {
    norm rms
    heads 16
    attend causal_attention
}
"""


def main() -> None:
    """Measure what the command line asks for and print a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--cached", type=int, nargs="+", default=CACHED)
    parser.add_argument("--sequences", type=int, nargs="*", default=SEQUENCES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="of the CPU's times")
    parser.add_argument("--markdown", type=Path, help="write the page to this file as well")
    options = parser.parse_args()
    if options.clock == "processor":
        torch.set_num_threads(1)
        CLOCK.append(time.process_time)
    text = report(options)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


def report(options: argparse.Namespace) -> str:
    """Measure everything and lay it out as Markdown."""
    device = torch.device(options.device)
    lines = [
        "# Decoding behind a cache",
        "",
        f"{CLOCKS[options.clock]} of a layer of width {WIDTH} with {HEADS} heads of {WIDTH // HEADS}",
        "and causal attention, float32, without gradients and a feed-forward network: the least of rounds in which",
        "they alternate. `absorb` and `expand` are the orders of the products around latents, `dense` is a layer whose",
        "cache has the keys and values of all heads.",
        f"Written by `python tools/time_decoding.py --clock {options.clock}`.",
        "",
        ", ".join(f"{name} {fact}" for name, fact in describe(device).items()) + ".",
        "",
        "## One token more",
        "",
        HEADING,
        RULE,
    ]
    modules = {rank: attnc.loads(PATTERN, rank=rank) for rank in options.ranks}
    with torch.no_grad():
        for rank, module in modules.items():
            for batch in options.batches:
                lines += [line(module, rank, batch, 1, count, device) for count in options.cached]
        lines += ["", "## Whole sequences", "", HEADING.replace("tokens in the cache", "tokens"), RULE]
        for rank, module in modules.items():
            lines += [line(module, rank, 1, count, 0, device) for count in options.sequences]
    return "\n".join(lines) + "\n"


def line(module: ModuleType, rank: int, batch: int, queries: int, cached: int, device: torch.device) -> str:
    """Measure calls of some lengths and return a row of the table."""
    torch.manual_seed(0)
    latent, plain = (kind(device=device) for kind in (module.Latent, module.Plain))
    x = torch.randn(batch, queries, WIDTH, device=device)
    latents, heads = (cache_of(shape, batch, cached, device) for shape in ((rank,), (HEADS, WIDTH // HEADS)))
    ways = {
        "absorb": in_order("absorb", latent, x, latents),
        "expand": in_order("expand", latent, x, latents),
        "dense": lambda: plain(x, cache=heads),
    }
    absorb, expand, dense = (1e3 * seconds for seconds in alternate(tuple(ways.values()), device))
    taken = "absorb" if module._latent_key_chain.absorbs(queries, queries + cached) else "expand"
    numbers = f"{absorb:.2f} | {expand:.2f} | {dense:.2f} | {expand / absorb:.1f}"
    return f"| {rank} | {batch} | {cached or queries} | {numbers} | {taken} |"


def cache_of(sizes: tuple[int, ...], batch: int, tokens: int, device: torch.device) -> LayerCache | None:
    """Return a cache of random numbers; None for no tokens."""
    if not tokens:
        return None
    key, value = (torch.randn(batch, *sizes[:-1], tokens, sizes[-1], device=device) for _ in range(2))
    return LayerCache(key, value)


def in_order(order: str, layer: nn.Module, x: Tensor, cache: LayerCache | None) -> Callable[[], Tensor]:
    """Return a call of a layer with its products in an order."""

    def call() -> Tensor:
        with products_in_order(order):
            out: Tensor = layer(x, cache=cache)
        return out

    return call


def alternate(ways: tuple[Callable[[], Tensor], ...], device: torch.device) -> list[float]:
    """Return the least seconds of calls that take turns."""
    taken: list[list[float]] = [[] for _ in ways]
    for number in range(ROUNDS):
        for place in range(len(ways)) if number % 2 else reversed(range(len(ways))):
            taken[place].append(seconds(ways[place], device))
    return [min(times) for times in taken]


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Return the seconds of a call, over as many as take `SECONDS`."""
    call()
    count, total = 0, 0.0
    start = CLOCK[-1]()
    while total < SECONDS:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
        total = CLOCK[-1]() - start
    return total / count


if __name__ == "__main__":
    main()
