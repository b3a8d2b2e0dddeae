"""In which form a projection is computed on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.plan.layer_plan import ProjectionPlan

ONLY_FORM = "the only form"
"""Why a projection is computed as it is, where there is no other way."""


@dataclass(frozen=True, slots=True)
class TakenForm:
    """The form of a projection.

    Attributes:
        name: as `runtime.structures.forms` calls it.
        reason: why it is taken.
    """

    name: str
    reason: str


def taken_form(one: ProjectionPlan, parameters: int, tokens: int) -> TakenForm:
    """Return the form that calls of about so many tokens take on this machine's device.

    Args:
        one: the projection.
        parameters: free ones.
        tokens: of a call.
    """
    import torch

    from attnc.runtime.structures.forms import ALONE, CHAINS, ON_CPU, OTHERS, measured_form
    from attnc.runtime.tuned import device_name
    from attnc.runtime.tuned_store import use_remembered_tiles

    structure = one.matrix.projection.structure
    if one.scheme is not None:
        return TakenForm(CHAINS[structure], "by a scheme")
    if structure in ALONE:
        return TakenForm(CHAINS[structure], ONLY_FORM)
    use_remembered_tiles()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    like = torch.empty(0, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    sizes = one.matrix.columns, one.matrix.rows
    found = measured_form(measured_name(one, parameters), like, sizes, tokens)
    if found in (CHAINS[structure], *OTHERS[structure]):
        return TakenForm(str(found), f"measured on {device_name(device, program=device.type != 'cuda')}")
    default = ON_CPU[structure] if device.type == "cpu" else CHAINS[structure]
    return TakenForm(default, "default: not measured")


def measured_name(one: ProjectionPlan, parameters: int) -> str:
    """Return what measurements know a projection by: the same as its module's `measured_as`."""
    from attnc.runtime.structures.forms import projection_name

    structure = one.matrix.projection.structure
    match structure:
        case "block_diagonal" | "monarch":
            return projection_name(structure, blocks=one.matrix.number("blocks"))
        case "conv":
            return projection_name(structure, kernel=one.matrix.number("kernel"), stride=one.matrix.stride)
        case "banded" | "masked":
            return projection_name(structure, entries=parameters)
        case _:
            return projection_name(structure)
