"""What a plan means in numbers: pairs, tiles, work and traffic at concrete sizes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from attnc.algebra.coordinates import IDENTITY
from attnc.algebra.count_formulas import TOO_MANY_STEPS, NoFormula, PairsFormula, pairs_formula
from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.algebra.facts import Facts
from attnc.algebra.windows import Dense
from attnc.explanation_counts import PassCost, Sizes, Tiles, call_sizes, count_pass, number, together
from attnc.explanation_forms import Price, feature_count, find_prices, surroundings
from attnc.explanation_gradients import Gradients, find_gradients
from attnc.explanation_plan import Costs, Prepass, Weighed, expected_costs, find_prepasses, weighed_choices
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import IndexName, SizeName
from attnc.ir.program import ORIGINAL_KEYS, Attention
from attnc.ir.shortening import shortened_count
from attnc.ir.types import Type
from attnc.ir.walk import tables
from attnc.plan.choose import with_known_sizes
from attnc.plan.kernel_plan import Form, Pass, Plan

MOST_EVALUATED = 1 << 32
"""Pairs, over heads, that are evaluated one by one where sets cannot count them; some ten seconds of work."""

ELEMENT_SIZE = 2
"""Bytes of an element of query, key, value and output: float16 or bfloat16."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Published peaks of a device: what no program exceeds.

    Attributes:
        flops: dense bfloat16 operations a second.
        bandwidth: bytes a second.
    """

    name: str
    flops: float
    bandwidth: float


MACHINES = (
    Machine("NVIDIA A100 SXM", 312e12, 2.04e12),
    Machine("NVIDIA H100 SXM", 989e12, 3.35e12),
    Machine("NVIDIA H200 SXM", 989e12, 4.8e12),
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan in numbers, for one batch entry.

    Attributes:
        whole: the plan with its variants for all lengths; `plan` is the one for this length.
        pairs: allowed pairs of one head, the mean over heads where they differ; None where data decides.
        density: their share of all pairs.
        tiles: of all passes together.
        flops: useful operations of the forward pass over all heads: two products of each allowed pair.
        bytes: least traffic of the forward pass over all heads: each argument read once, the output written once.
        notes: why something is None or a bound.
        formula: `pairs` as a function of the length, where the mask is affine and it could be found.
        choices: the ways to compute the mask that were weighed, the cheapest first; empty where there was no choice.
        costs: what the planner expects of the passes; None where it had no choice.
        prepasses: what is made of inputs before the passes.
        gradients: the backward pass.
        forms: the ways to compute the operation, the chosen one first; empty where there is one alone.
        surroundings: what is done to queries, keys and values first.
    """

    whole: Plan
    plan: Plan
    length: int
    heads: int
    head_size: int
    pairs: int | float | None
    density: float | None
    tiles: Tiles
    passes: tuple[PassCost, ...]
    flops: int | float | None
    bytes: int
    gradients: Gradients
    notes: tuple[str, ...] = ()
    formula: PairsFormula | None = None
    choices: tuple[Weighed, ...] = ()
    costs: Costs | None = None
    prepasses: tuple[Prepass, ...] = ()
    forms: tuple[Price, ...] = ()
    surroundings: tuple[str, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether no pairs are formed at this length, or those of chunks alone."""
        return bool(self.forms) and self.forms[0].form != "pairs"

    @property
    def waste(self) -> float | None:
        """Pairs computed for each allowed pair, or None."""
        computed = [one.pairs_computed for one in self.passes if one.pairs_computed is not None]
        if not self.pairs or self.is_linear or len(computed) < len(self.passes):
            return None
        return sum(computed) / self.pairs

    def seconds_on(self, machine: Machine) -> float | None:
        """Return the least time of a forward pass: the roofline over the pairs computed, never a measurement."""
        computed = [one.pairs_computed for one in self.passes]
        if any(pairs is None for pairs in computed):
            return None
        work = 4.0 * self.head_size * self.heads * sum(pairs for pairs in computed if pairs is not None)
        if self.forms and self.forms[0].flops is not None:
            work = float(self.forms[0].flops)
        return max(work / machine.flops, self.bytes / machine.bandwidth)

    def as_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints for this attention."""
        plan = self.plan
        return {
            "name": plan.attention.name,
            "facts": facts_as_json(plan.facts),
            "pairs": self.pairs,
            "pairs_formula": None if self.formula is None else _formula_as_json(self.formula),
            "density": self.density,
            "tiles": {
                "query": self.tiles.query,
                "key": self.tiles.key,
                "full": self.tiles.full,
                "partial": self.tiles.partial,
                "empty": self.tiles.empty,
            },
            "passes": [
                _pass_as_json(cost, self._long_rows(one), self._library_part(place))
                for place, (one, cost) in enumerate(zip(plan.passes, self.passes, strict=False))
            ],
            "plan": self._plan_as_json(),
            "prepasses": [one.as_json() for one in self.prepasses],
            "rules": [step.rule for step in plan.derivation],
            "flops": self.flops,
            "bytes": self.bytes,
            "gradients": self.gradients.as_json(),
            **({"forms": [one.as_json() for one in self.forms]} if self.forms else {}),
            **({"surroundings": list(self.surroundings)} if self.surroundings else {}),
        }

    def _long_rows(self, one: Pass) -> int:
        return self.plan.long_rows if one.layout.query == IDENTITY else 0

    def _library_part(self, place: int) -> Dense | None:
        part = self.plan.part
        return part.pairs if part is not None and part.number == place else None

    def _plan_as_json(self) -> dict[str, Any]:
        several = len(self.passes) > 1
        return {
            "variants": [
                {"up_to": limit, "layouts": [str(one.layout) for one in variant.passes]}
                for variant, limit in zip(self.whole.variants, self.whole.limits, strict=True)
            ],
            "weighed_at": self.plan.weighed_at if self.choices else None,
            "proven_disjoint": self.plan.proven_disjoint if several else None,
            "choices": [one.as_json() for one in self.choices],
        }


def _pass_as_json(one: PassCost, long_rows: int, part: Dense | None) -> dict[str, Any]:
    tiles = {"full": one.tiles.full, "partial": one.tiles.partial, "empty": one.tiles.empty}
    return {
        "layout": one.layout,
        "form": one.form,
        "pairs_computed": one.pairs_computed,
        "mask": one.mask,
        "pairs": one.pairs,
        "tiles": {"query": one.tiles.query, "key": one.tiles.key, **tiles},
        "long_rows": long_rows,
        "library_if_tuned": None if part is None else asdict(part),
    }


def _formula_as_json(formula: PairsFormula) -> dict[str, Any]:
    return {
        "text": f"{formula.text} with {formula.where}" if formula.where else formula.text,
        "range": formula.range_text(),
        "python": formula.code,
        "least": formula.least,
        "period": formula.period,
        "residue": formula.residue,
        "derived": formula.derived,
    }


def facts_as_json(facts: Facts) -> dict[str, bool | None]:
    """Return the facts that the interface promises."""
    return {
        "causal": facts.causal,
        "nonempty": facts.nonempty,
        "symmetric": facts.symmetric,
        "contiguous": facts.contiguous,
    }


def explain_plan(plan: Plan, *, length: int, heads: int, head_size: int) -> Explanation:
    """Count what a plan does for `length` queries and keys."""
    plan = with_known_sizes(plan, length, head_size)
    whole, plan = plan, plan.at(length)
    attention = plan.attention
    sizes = call_sizes(length, heads, head_size)
    if attention.shorten is not None:
        sizes[SizeName.KEYS] = shortened_count(attention.shorten, length)
    pairs, notes = _pairs(attention, sizes)
    formula = None if attention.shorten else pairs_formula(attention, length, heads, head_size=head_size)
    if isinstance(formula, NoFormula) and formula.reason == TOO_MANY_STEPS:
        notes.append(f"no formula for the allowed pairs: {formula.reason}")
    counted = [count_pass(attention, one, sizes) for one in plan.passes]
    passes = tuple(one for one, _ in counted)
    shown_pairs = None if pairs is None else number(pairs)
    traffic = _traffic(plan.operation, sizes, length)
    forms = find_prices(plan, shown_pairs, sizes, traffic, ELEMENT_SIZE)
    features = feature_count(plan.operation.feature, head_size)
    if forms and forms[0].chosen and forms[0].form != "pairs":
        passes = (_linear_pass(plan, forms[0].form, sizes, passes[0]),)
    if plan.quadratic_because:
        notes.append(f"no form that is linear in the length: {plan.quadratic_because}")
    notes += [note for _, note in counted if note]
    return Explanation(
        whole,
        plan,
        length,
        heads,
        head_size,
        shown_pairs,
        None if pairs is None else float(pairs / max(1, length * sizes[SizeName.KEYS])),
        together(passes),
        passes,
        forms[0].flops if forms else None if pairs is None else number(pairs * 2 * (features + head_size) * heads),
        forms[0].bytes if forms else traffic,
        _gradients_of(plan, forms, find_gradients(attention, shown_pairs, length, heads, head_size, ELEMENT_SIZE)),
        tuple(dict.fromkeys((*notes, *(note for one in plan.passes for note in one.tiles.notes)))),
        formula if isinstance(formula, PairsFormula) else None,
        weighed_choices(plan),
        expected_costs(plan),
        find_prepasses(attention, plan.passes, sizes),
        forms,
        surroundings(plan.operation, length),
    )


BACKWARD_SCANS = 3
"""Products or scans of the size of the forward one in a backward pass: for queries, keys and values."""


def _gradients_of(plan: Plan, forms: tuple[Price, ...], gradients: Gradients) -> Gradients:
    """Return the backward pass of the form that is taken."""
    if not forms or forms[0].form == "pairs":
        return gradients
    flops = None if plan.linear is None or forms[0].flops is None else BACKWARD_SCANS * forms[0].flops
    return replace(gradients, flops=flops)


def _linear_pass(plan: Plan, form: str, sizes: Sizes, like: PassCost) -> PassCost:
    """Describe the form that is taken as a pass; pairs are formed inside of chunks alone."""
    inside = 0
    if plan.linear is not None:
        inside = sizes[SizeName.QUERIES] * min(plan.linear.chunk, sizes[SizeName.KEYS])
    chunk = plan.linear.chunk if plan.linear is not None else 0
    form = Form.LINEAR.value if form == "nystrom" else form
    return replace(like, form=form, pairs_computed=inside, tiles=Tiles(chunk, chunk, None, None, None))


def _pairs(attention: Attention, sizes: Sizes) -> tuple[Fraction | None, list[str]]:
    if tables(attention.mask) or tables(attention.align.shift):
        return None, ["the data of a call decides how many pairs are allowed"]
    length, heads = sizes[SizeName.QUERIES], sizes[SizeName.HEADS]
    keys = sizes[SizeName.KEYS]
    if keys == 0:
        return Fraction(0), []
    found = count_pairs_by_sets(attention, length, keys, heads, head_size=sizes[SizeName.HEAD_SIZE])
    if found is not None:
        return found, []
    from attnc.blockwise import count_pairs, varies

    evaluated = length * keys * (heads if varies(attention, IndexName.HEAD) else 1)
    if evaluated > MOST_EVALUATED:
        return None, ["too many pairs to count: sets cannot, and evaluating each would take minutes; try a smaller -n"]
    return count_pairs(attention, sizes), []


def _traffic(attention: Attention, sizes: Sizes, length: int) -> int:
    """Return the bytes of query, key, value and output, and of the inputs and learned tensors whose size is known."""
    env = Environment(sizes=sizes, tables={ORIGINAL_KEYS: length})
    heads, head_size = sizes[SizeName.HEADS], sizes[SizeName.HEAD_SIZE]
    total = 4 * heads * length * head_size * ELEMENT_SIZE
    for tensor in attention.tensors:
        if tensor.hidden or None in tensor.dims:
            continue
        element = {Type.BOOL: 1, Type.INT: 8, Type.FLOAT: ELEMENT_SIZE}[tensor.type]
        total += math.prod(int(evaluate(dim, env)) for dim in tensor.dims if dim is not None) * element
    return total
