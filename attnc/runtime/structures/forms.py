"""Forms in which the product of a projection is computed: the one that runs was measured, or is the default.

Every projection has a chain of torch operations, which can be differentiated as often as asked for. Its other forms
compute the same numbers and first derivatives; what asks for more, and whatever traces or transforms, gets the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.transforms import PLAIN_TENSORS, are_transforms_active, have_tangents
from attnc.runtime.tuned import ProjectionForm, find_tuned, versions_of_library

Chain = Callable[..., Tensor]
"""Computes (tokens, inputs) and the factors of a matrix to (tokens, outputs), by operations that autograd records."""

CHAINS = {
    "dense": "matmul",
    "low_rank": "2 matmuls",
    "block_diagonal": "bmm",
    "monarch": "2 bmms",
    "banded": "bmm of tiles",
    "masked": "bmm of tiles",
    "conv": "conv, matmul",
    "conv2d": "conv, matmul",
}
"""What the chain of each structure is called."""

ON_CPU = {
    "block_diagonal": "placed bmm",
    "monarch": "bmms of strips",
    "banded": "placed bmm of tiles",
    "masked": "placed bmm of tiles",
    "conv": "taps, matmul",
}
"""Forms that CPUs take where nothing was measured, in place of the chain: see `docs/results/structures.md`."""

OTHERS = {
    "block_diagonal": ("placed bmm", "kernel"),
    "monarch": ("bmms of strips", "kernel"),
    "banded": ("placed bmm of tiles",),
    "masked": ("placed bmm of tiles",),
    "conv": ("taps, matmul",),
}
"""The other forms of each structure."""

ALONE = frozenset({"dense", "low_rank", "conv2d"})
"""Structures that have a chain alone: it makes no copy that another order would save."""

TRACED_TOKENS = 4096
"""Tokens for which what `torch.compile` traces takes the form: it may not know their number."""


def _suits_always(x: Tensor, factors: Sequence[Tensor]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a product.

    Attributes:
        name: what `attnc explain` and entries of measurements call it.
        product: of (tokens, inputs) and the factors.
        gradients: of the inputs and of each factor, None for those that are not wanted: takes which are wanted, the
            gradient of the outputs, the inputs and the factors.
        traced: the same product as operations that `torch.compile` can see; None where it takes the chain.
        suits: tells whether it can compute a call.
    """

    name: str
    product: Chain
    gradients: Callable[..., tuple[Tensor | None, ...]]
    traced: Chain | None = None
    suits: Callable[[Tensor, Sequence[Tensor]], bool] = _suits_always


@dataclass(frozen=True, slots=True)
class FormTable:
    """The forms of a structure.

    Attributes:
        chain: what the chain is called.
        others: the other forms.
        on_cpu: the one that CPUs take where nothing was measured; GPUs take the chain.
    """

    chain: str
    others: tuple[Form, ...] = ()
    on_cpu: str = ""

    def default(self, device: str) -> str:
        """Return the form that a device of a type takes where nothing was measured."""
        return self.on_cpu if device == "cpu" and self.on_cpu else self.chain

    def names(self) -> tuple[str, ...]:
        """Return all forms, the chain first."""
        return self.chain, *(form.name for form in self.others)

    def named(self, name: str) -> Form | None:
        """Return a form; None for the chain, and for what is no form of this structure."""
        return next((form for form in self.others if form.name == name), None)


def projection_name(structure: str, **numbers: int) -> str:
    """Return what measurements know a structure by, whatever its sizes."""
    return " ".join(["projection", structure, *(f"{name}={number}" for name, number in numbers.items())])


def measured_form(name: str, like: Tensor, sizes: tuple[int, int], tokens: int) -> str | None:
    """Return the form that was measured to be best for such calls; None where nothing was.

    Args:
        name: see `projection_name`.
        like: on the device, of the type.
        sizes: inputs and outputs.
        tokens: about so many.
    """
    program = like.device.type != "cuda"
    versions = None if program else versions_of_library()
    found = find_tuned(name, like, sizes, (tokens, tokens), program=program, versions=versions)
    return found.name if isinstance(found, ProjectionForm) else None


TRACED: dict[str, FormTable] = {}
"""Structures with forms that `torch.compile` can see."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _traced_form(structure: str, name: str, device: str, dtype: str, shapes: tuple[tuple[int, ...], ...]) -> str:
    """Return the form of a call that is traced, which knows neither values nor the number of tokens."""
    sizes = shapes[0][0], shapes[0][1]
    x = torch.empty((0, sizes[0]), device=device, dtype=getattr(torch, dtype))
    factors = [torch.empty(shape, device="meta", dtype=x.dtype) for shape in shapes[1:]]
    table = TRACED[structure]
    form = table.named(measured_form(name, x, sizes, TRACED_TOKENS) or table.default(x.device.type))
    return "" if form is None or form.traced is None or not form.suits(x, factors) else form.name


def multiply_traced(
    structure: str, name: str, chain: Chain, sizes: tuple[int, int], x: Tensor, *factors: Tensor
) -> Tensor:
    """Do the same as `multiply_by_form` where `torch.compile` traces."""
    shapes = (sizes, *(tuple(one.shape) for one in factors))
    dtype = str(x.dtype).removeprefix("torch.")
    form = TRACED[structure].named(_traced_form(structure, name, str(x.device), dtype, shapes))
    traced = None if form is None else form.traced
    return chain(x, *factors) if traced is None else traced(x, *factors)


def forms_apply(structure: str, x: Tensor) -> bool:
    """Tell whether a structure has more forms than its chain for what is computed now."""
    if torch.compiler.is_compiling():
        return x.is_cuda and structure in TRACED
    return structure not in ALONE


def multiply_by_form(
    name: str, table: FormTable, chain: Chain, sizes: tuple[int, int, int], x: Tensor, *factors: Tensor
) -> Tensor:
    """Return a product by the form that was measured to be best, or the default one.

    Args:
        name: see `projection_name`.
        table: the forms.
        chain: that of torch operations.
        sizes: inputs, outputs and tokens.
        x: (tokens, inputs), or (batch, positions, inputs) where the structure mixes positions.
        factors: of the matrix.
    """
    if not _can_choose((x, *factors)):
        return chain(x, *factors)
    form = table.named(measured_form(name, x, sizes[:2], sizes[2]) or table.default(x.device.type))
    if form is None or not form.suits(x, factors):
        return chain(x, *factors)
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *factors)):
        return _ByForm.apply(form, chain, x, *factors)  # type: ignore[no-untyped-call, no-any-return]
    return form.product(x, *factors)


def _can_choose(tensors: tuple[Tensor, ...]) -> bool:
    """Tell whether plain tensors are computed here and now, so that memory can be written in any order."""
    if any(type(one) not in PLAIN_TENSORS or one.is_meta for one in tensors):
        return False
    return not (are_transforms_active() or have_tangents(tensors) or torch._C._get_tracing_state() is not None)


class _ByForm(torch.autograd.Function):
    """A product by a form; the second derivative is that of the chain."""

    @staticmethod
    def forward(ctx: Any, form: Form, chain: Chain, x: Tensor, *factors: Tensor) -> Tensor:
        ctx.form, ctx.chain = form, chain
        ctx.save_for_backward(x, *factors)
        return form.product(x, *factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wants = ctx.needs_input_grad[2:]
        given = ctx.saved_tensors
        batched = torch._C._functorch.is_legacy_batchedtensor(grad)
        if torch.is_grad_enabled() or batched:
            return None, None, *_chain_gradients(ctx.chain, wants, grad, given, again=torch.is_grad_enabled())
        return None, None, *ctx.form.gradients(wants, grad, *given)


def _chain_gradients(
    chain: Chain, wants: Sequence[bool], grad: Tensor, given: Sequence[Tensor], *, again: bool
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again."""
    with torch.enable_grad():
        leaves = [one if one.requires_grad else one.detach() for one in given]
        wanted = [one for one, is_wanted in zip(leaves, wants, strict=True) if is_wanted]
        found = iter(torch.autograd.grad(chain(*leaves), wanted, grad, create_graph=again))
    return [next(found) if is_wanted else None for is_wanted in wants]
