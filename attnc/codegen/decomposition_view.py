"""What surrounds the pairs of an attention, as the runtime's description of it."""

from __future__ import annotations

from collections.abc import Callable

from attnc.algebra.separable import split_score
from attnc.codegen.expr_torch import quoted
from attnc.codegen.formulas import Field, Formulas
from attnc.codegen.layout import Bracket, call, sequence
from attnc.ir.program import AlignKind, Attention, Deferred, Tensor
from attnc.plan.kernel_plan import LinearForm, Plan
from attnc.plan.linear import lengths_read


def decomposition(plan: Plan, formulas: Formulas, describe: Callable[[Tensor], Bracket]) -> Bracket | None:
    """Write the surroundings of a plan's pairs; None where there are none.

    Args:
        plan: of the attention.
        formulas: takes its expressions.
        describe: writes what the runtime knows of a tensor.
    """
    declared = plan.declared
    if declared is None:
        return None
    fields: list[Field] = []
    if declared.shorten is not None:
        fields.append(("shorten", _shortening(declared.shorten)))
    own = own_tensors(plan)
    if own:
        fields.append(("own", sequence([describe(tensor) for tensor in own])))
    if declared.prepare:
        fields.append(("prepare", sequence([_preparation(one) for one in declared.prepare])))
    if declared.feature is not None:
        fields.append(("feature", _feature(declared.feature)))
    if declared_feature(plan) == "favor" and declared.scale is not None:
        fields.append(("scale", formulas.name("feature_scale", declared.scale)))
    if plan.linear is not None:
        fields.append(("linear", _linear(plan.linear, declared, formulas)))
    if declared.decompose is not None and has_landmarks(declared):
        fields.append(("landmarks", str(int(declared.decompose.number("landmarks")))))
    if split_score(declared.score) is None:
        fields.append(("scores_multiply", "False"))
    return call("Decomposition", *fields)


def own_tensors(plan: Plan) -> tuple[Tensor, ...]:
    """Return the tensors that are used before pairs are weighed, and not by them."""
    known = {tensor.name for tensor in plan.attention.tensors}
    return tuple(one for one in plan.operation.tensors if not one.hidden and one.name not in known)


def _shortening(one: Deferred) -> Bracket:
    names = {"mean_pool": "window", "project": "rank"}
    fields: list[Field] = [("form", quoted(one.form))]
    fields.append(("window", str(int(one.number(names.get(one.form, "kernel"))))))
    for name in ("stride", "width", "length"):
        if any(own == name for own, _ in one.arguments):
            fields.append((name, str(int(one.number(name)))))
    return call("Shortening", *fields)


def has_landmarks(attention: Attention) -> bool:
    """Tell whether an attention is approximated through landmarks."""
    return attention.decompose is not None and attention.decompose.form == "nystrom"


def declared_feature(plan: Plan) -> str | None:
    """Return which feature map an attention has; None if it has none."""
    declared = plan.declared
    return None if declared is None or declared.feature is None else declared.feature.form


def _preparation(one: Deferred) -> Bracket:
    fields: list[Field] = [("form", quoted(one.form))]
    if one.form == "rotary":
        fields.append(("theta", repr(float(one.number("theta")))))
    return call("Preparation", *fields)


def _feature(one: Deferred) -> Bracket:
    fields: list[Field] = [("form", quoted(one.form))]
    if one.form == "favor":
        fields += [("features", str(int(one.number("features")))), ("seed", str(int(one.number("seed"))))]
    return call("FeatureMap", *fields)


def _linear(form: LinearForm, declared: Attention, formulas: Formulas) -> Bracket:
    fields: list[Field] = [("chunk", str(form.chunk))]
    if form.asked:
        fields.append(("asked", "True"))
    if declared.align.kind is not AlignKind.END:
        fields.append(("at_end", "False"))
    lengths = lengths_read(form.weights, declared)
    if lengths:
        fields.append(("lengths", quoted(lengths)))
    weights = form.weights
    parts = {
        "query_factor": weights.query_factor,
        "key_factor": weights.key_factor,
        "query_exponent": weights.query_exponent,
        "key_exponent": weights.key_exponent,
    }
    fields += [(name, formulas.name(name, expr)) for name, expr in parts.items() if expr is not None]
    return call("Linear", *fields)
