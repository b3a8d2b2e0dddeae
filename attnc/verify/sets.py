"""Brute force over masks: what the set analysis claims, held against every single pair."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from attnc.algebra.counting import count_pairs
from attnc.algebra.key_intervals import Coverage
from attnc.algebra.summaries import summary_source
from attnc.algebra.walking import passes_test, positions, row_tiles, walk_tiles
from attnc.bench.cases import Data
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Expr, Index, IndexName
from attnc.ir.program import ORIGINAL_KEYS, AlignKind, Attention
from attnc.ir.shortening import covered
from attnc.plan.kernel_plan import Pass, Plan
from attnc.reference import evaluate_tensor, pair_environment
from attnc.runtime.summaries import summarize
from attnc.verify.outcome import Mismatch
from attnc.verify.trials import Trial

TILES = ((128, 128), (64, 32), (16, 16), (48, 80))
"""Query and key tiles that are walked: a kernel's, smaller ones, and one that divides nothing."""


def check_tiles(plan: Plan, trial: Trial) -> None:
    """Walk every interval list at several tile sizes; what it computes must be the mask, pair by pair.

    Raises:
        Mismatch: naming the first pair that is wrong.
    """
    data = trial.pair_data(plan.attention)
    mask = _dense(plan.attention, plan.attention.mask, trial, data)
    lists = _tables(plan, trial, data)
    residuals = {
        interval.residual: _dense(plan.attention, interval.residual, trial, data)
        for one in plan.passes
        for interval in one.tiles.intervals
    }
    for query_tile, key_tile in TILES:
        if any(query_tile > one.tiles.query_tile or key_tile > one.tiles.key_tile for one in plan.passes):
            continue
        for there in itertools.product(range(trial.shape.batch), range(trial.shape.heads)):
            found = torch.zeros(trial.shape.queries, trial.shape.keys, dtype=torch.int64)
            for one in plan.passes:
                found += _walked(plan, one, residuals, trial, lists, there, query_tile, key_tile)
            where = f"tiles of {query_tile} x {key_tile}, b = {there[0]}, h = {there[1]}"
            _compare(found, mask[there], where)


def _walked(
    plan: Plan,
    one: Pass,
    residuals: dict[Expr, torch.Tensor],
    trial: Trial,
    lists: dict[str, Any],
    there: tuple[int, int],
    query_tile: int,
    key_tile: int,
) -> torch.Tensor:
    """Return the pairs that a walk over the interval list of a pass takes part in."""
    shape = trial.shape
    indices = {IndexName.BATCH: there[0], IndexName.HEAD: there[1]}
    shift = int(evaluate(plan.attention.align.shift, Environment(indices, shape.sizes(), lists)))
    env = Environment({**indices, IndexName.SHIFT: shift}, shape.sizes(), lists)
    found = torch.zeros(shape.queries, shape.keys, dtype=torch.bool)
    for here in row_tiles(env, one.layout, query_tile):
        queries, keys = positions(here, one.layout)
        rows = torch.tensor([query - shift for query in queries if query is not None], dtype=torch.int64)
        for visit in walk_tiles(one.tiles, here, key_tile):
            full = visit.interval.coverage is Coverage.FULL
            where = f"{one.layout}, rows {rows.tolist()}"
            if visit.begin < 0 or visit.end > -(-len(keys) // key_tile):
                raise Mismatch(f"key tiles {visit.begin} .. {visit.end - 1} lie outside the keys, {where}")
            if full and visit.end * key_tile > len(keys):
                raise Mismatch(f"a full tile reaches past the last key, {where}")
            residual = residuals[visit.interval.residual][there]
            for tile in range(visit.begin, visit.end):
                if passes_test(visit.interval, here, one.layout, tile, key_tile):
                    real = [key for key in keys[tile * key_tile : (tile + 1) * key_tile] if key is not None]
                    pairs = (rows[:, None], torch.tensor(real, dtype=torch.int64))
                    found[pairs] = residual[pairs]
    return found


def _compare(found: torch.Tensor, right: torch.Tensor, where: str) -> None:
    wrong = (found != right).nonzero()
    if len(wrong):
        row, key = wrong[0].tolist()
        said = ("left out", "allowed", "allowed by several passes")[min(int(found[row, key]), 2)]
        raise Mismatch(f"r = {row}, j = {key} is {said}, {where}")


def check_facts(plan: Plan, trial: Trial) -> None:
    """Hold every proven fact against the mask at one size.

    Raises:
        Mismatch: a fact that was proven does not hold.
    """
    attention, facts, shape = plan.attention, plan.facts, trial.shape
    if attention.align.kind is AlignKind.END and shape.queries > shape.keys:
        return
    data = trial.pair_data(attention)
    if attention.shorten is not None and shape.queries > int(data.get(ORIGINAL_KEYS, shape.queries)):
        return
    mask = _dense(attention, attention.mask, trial, data)
    env = pair_environment(attention, shape.sizes(), data)
    positions, keys = env.indices[IndexName.QUERY], env.indices[IndexName.KEY]
    if attention.shorten is not None:
        keys = evaluate_tensor(covered(attention.shorten, Index(IndexName.KEY))[1], env)
    claims = {
        "causal": (facts.causal, ~(mask & (keys > positions)).any()),
        "nonempty": (facts.nonempty, mask.any(-1).all()),
        "everything": (facts.everything, mask.all()),
        "exactly causal": (facts.exactly_causal, (mask == (keys <= positions)).all()),
        "contiguous": (facts.contiguous, _contiguous(mask)),
    }
    if shape.queries == shape.keys and attention.align.kind is not AlignKind.AT:
        claims["symmetric"] = (facts.symmetric, (mask == mask.transpose(-1, -2)).all())
    for name, (claimed, holds) in claims.items():
        if claimed and not bool(holds):
            raise Mismatch(f"`{name}` was proven and does not hold")


def _contiguous(mask: torch.Tensor) -> torch.Tensor:
    """Tell whether each row's allowed keys are one interval: at most one step up."""
    before = torch.nn.functional.pad(mask, (1, 0))[..., :-1]
    return (mask & ~before).sum(-1).max() <= 1


def check_counts(plan: Plan, trial: Trial) -> None:
    """Hold the exact count of pairs against a sum.

    Raises:
        Mismatch: it is another number.
    """
    shape = trial.shape
    counted = count_pairs(
        plan.attention, shape.queries, shape.keys, shape.heads, group=shape.group, head_size=shape.head_size
    )
    if counted is None:
        return
    summed = int(_dense(plan.attention, plan.attention.mask, trial, trial.pair_data(plan.attention)).sum())
    if counted * shape.heads * shape.batch != summed:
        raise Mismatch(f"{counted} pairs a head were counted, {summed / shape.heads / shape.batch} are allowed")


def _dense(attention: Attention, expr: Expr, trial: Trial, data: Data) -> torch.Tensor:
    """Evaluate a condition at every pair."""
    shape = trial.shape
    env = pair_environment(attention, shape.sizes(), data)
    return evaluate_tensor(expr, env).expand(shape.batch, shape.heads, shape.queries, shape.keys)


def _tables(plan: Plan, trial: Trial, data: Data) -> dict[str, Any]:
    """Return the data as nested lists, dimensions of size 1 that broadcast expanded, and what is summarised of it."""
    env = pair_environment(plan.attention, trial.shape.sizes(), data)
    found = dict(env.tables)
    for name in plan.summaries:
        table, kind = summary_source(name) or (name, "")
        found[name] = summarize(env.tables[table], kind)
    return {name: table.tolist() for name, table in found.items()}
