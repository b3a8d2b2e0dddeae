"""What the functions of a generated module do: check the arguments, then call the operator or the dense reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from attnc.runtime.autocast import lower_precision
from attnc.runtime.blocks import bind_tables, dropped_terms
from attnc.runtime.checks import (
    INTEGERS,
    check_call,
    check_dropout,
    check_inputs,
    check_query_key,
    check_scale,
    check_sorted,
    kind_of,
)
from attnc.runtime.composite import composite_attention, needs_composite
from attnc.runtime.dense import dense_attention, dense_mask, dense_weights
from attnc.runtime.direct import attend_directly, is_plain
from attnc.runtime.dropout import Dropout
from attnc.runtime.ops import NAMESPACE, register
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.program import Program, TensorArgument
from attnc.runtime.transforms import refuse_batched


class Operation:
    """One attention of a generated module."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operator = register(program)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: Mapping[str, object],
        scale: float | None,
        return_lse: bool,
        precision: str | None,
        dropout_p: float,
        seed: Tensor | int | None,
        checked: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Check the arguments and compute; with `checked`, look at the values of sorted inputs as well."""
        program = self.program
        query, key, value = lower_precision(query, key, value)
        sizes = check_call(program, query, key, value, return_lse, precision)
        factor = check_scale(scale)
        probability, seed_tensor = check_dropout(dropout_p, seed, query.device)
        tensors = check_inputs(program, inputs, sizes, query.device, query.dtype)
        if checked:
            refuse_batched(program.name, tensors)
            check_sorted(program, tensors)
        if needs_composite((query, key, value, *tensors)):
            dropout = Dropout.of(probability, seed_tensor)
            found = composite_attention(program, query, key, value, tensors, sizes, factor, dropout)
            return found if return_lse else found[0]
        differentiable = _needs_gradient(query, key, value, tensors)
        options, with_state = (factor, precision, probability, seed_tensor), return_lse or differentiable
        if is_plain((query, key, value, *tensors)):
            backward, given = self._operator("_backward"), (query, key, value)
            out, state = attend_directly(program, backward, given, tensors, options, with_state, differentiable)
        else:
            out, state = self._operator()(query, key, value, tensors, *options, with_state)
        if not return_lse:
            return out
        lse = state if program.kept == "lse" else _log_sum_exp(state)
        if program.dropped is not None:  # the operator gives the log-sum-exp of the scores that it computes
            terms = dropped_terms(program, tensors, sizes, lse)
            lse = torch.where(lse == -torch.inf, lse, lse + terms)
        return out, lse

    def _operator(self, suffix: str = "") -> Any:
        return getattr(getattr(torch.ops, NAMESPACE), self.operator + suffix)

    def reference(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: Mapping[str, object],
        scale: float | None,
        return_lse: bool,
        precision: str | None,
        dropout_p: float,
        seed: Tensor | int | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute densely; differentiable by autograd on any device."""
        query, key, value = lower_precision(query, key, value)
        sizes = check_call(self.program, query, key, value, return_lse, precision)
        factor = check_scale(scale)
        dropout = Dropout.of(*check_dropout(dropout_p, seed, query.device))
        tensors = check_inputs(self.program, inputs, sizes, query.device, query.dtype)
        out, lse = dense_attention(self.program, query, key, value, tensors, sizes, factor, dropout)
        return (out, lse) if return_lse else out

    def mask(
        self,
        queries: int,
        keys: int,
        batch: int,
        heads: int,
        device: torch.device | str | None,
        inputs: Mapping[str, object],
        *,
        D: int = 1,  # noqa: N803
        g: int = 1,
    ) -> Tensor:
        """Return which pairs are allowed, bool `[B, H, N, M]`; `D` and `g` are given where the mask depends on them."""
        for name, size in (("N", queries), ("M", keys), ("B", batch), ("H", heads), ("D", D), ("g", g)):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} is {kind_of(size)}, expected an int")
            if size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        place = torch.device("cpu" if device is None else device)
        place = torch.empty(0, device=place).device
        if heads % g:
            raise ValueError(f"g is {g}, expected a divisor of the {heads} heads")
        sizes = Sizes(batch, heads, queries, keys, D, g, 1)
        needed = self.program.mask_tables
        given = [argument for argument in self.program.tensors if argument.name in needed]
        program = replace(self.program, tensors=tuple(given), summaries=())
        tables = bind_tables(program, check_inputs(program, inputs, sizes, place, torch.float64), sizes)
        return dense_mask(self.program, sizes, tables, place)

    def weights(
        self,
        query: Tensor,
        key: Tensor,
        rows: Sequence[int] | Tensor | int,
        inputs: Mapping[str, object],
        scale: float | None,
    ) -> Tensor:
        """Return the normalised weights of some query rows, `[B, H, len(rows), M]`."""
        sizes = check_query_key(query, key)
        factor = check_scale(scale)
        tensors = check_inputs(self.program, inputs, sizes, query.device, query.dtype)
        chosen = check_rows(rows, sizes.N, query.device)
        weights, _, _ = dense_weights(self.program, query[:, :, chosen], key, tensors, sizes, factor, chosen)
        return weights.reshape(sizes.B, sizes.H, chosen.numel(), sizes.M)

    def initial(self, name: str, **given: Any) -> Tensor:
        """Return the initial value of a learned tensor."""
        return initial_value(self.program.tensors, name, **given)


def initial_value(
    tensors: Sequence[TensorArgument],
    name: str,
    *,
    H: int = 1,  # noqa: N803
    D: int = 1,  # noqa: N803
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the initial value of one of some learned tensors."""
    for size_name, size in (("H", H), ("D", D)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{size_name} is {kind_of(size)}, expected an int")
        if size < 1:
            raise ValueError(f"{size_name} is {size}, expected at least 1")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype is {kind_of(dtype)}, expected a torch.dtype or None")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {str(dtype).removeprefix('torch.')}, expected a floating-point one")
    argument = next(argument for argument in tensors if argument.name == name)
    sizes = Sizes(1, H, 1, 1, D, 1, 1)
    lengths = [length(sizes) for length in argument.dims if length is not None]
    at = Pairs(sizes, {}, torch.float64, torch.device("cpu"))
    places = [
        torch.arange(length, device="cpu").view(-1, *(1,) * (len(lengths) - axis - 1))
        for axis, length in enumerate(lengths)
    ]
    at.d = tuple(places)
    at.h = next((place for place, label in zip(places, argument.labels, strict=True) if label == "H"), None)
    assert argument.initial is not None
    values = argument.initial(at).expand(lengths).clone()
    place = torch.get_default_device() if device is None else device
    return values.to(device=place, dtype=dtype or torch.get_default_dtype())


def _log_sum_exp(state: Tensor) -> Tensor:
    """Return `peak + log(total)` of rows; their gradient goes to the peak alone."""
    peak, total = state[0], state[1].detach()
    alive = total != 0
    return torch.where(alive, peak + torch.log(torch.where(alive, total, 1.0)), -torch.inf)


def _needs_gradient(query: Tensor, key: Tensor, value: Tensor, tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value, *tensors))


def check_rows(rows: Sequence[int] | Tensor | int, queries: int, device: torch.device) -> Tensor:
    """Return the numbers of query rows as int64, those from the end counted from the front."""
    wanted = "expected row numbers: a sequence of ints or an int tensor of one dimension"
    if not isinstance(rows, Tensor):
        listed = [rows] if isinstance(rows, int) else rows
        if isinstance(listed, str) or not isinstance(listed, Iterable):
            raise TypeError(f"rows is {kind_of(rows)}, {wanted}")
        listed = list(listed)
        for row in listed:
            if isinstance(row, bool) or not isinstance(row, SupportsIndex):
                raise TypeError(f"rows has {kind_of(row)} in it, {wanted}")
        chosen = torch.tensor([int(row) for row in listed], dtype=torch.int64, device=device)
    else:
        chosen = rows.to(device)
    if chosen.dtype not in INTEGERS or chosen.dim() != 1:
        raise TypeError(f"rows is {str(chosen.dtype).removeprefix('torch.')} {tuple(chosen.shape)}, {wanted}")
    chosen = chosen.long()
    if chosen.numel() and not (-queries <= int(chosen.min()) and int(chosen.max()) < queries):
        raise ValueError(f"rows is expected to lie between 0 and {queries - 1}, got {chosen.tolist()}")
    return chosen % queries
