"""Attentions whose queries, keys and values are changed before pairs are weighed, or whose pairs are never formed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.autocast import lower_precision
from attnc.runtime.blocks import compute_dtype
from attnc.runtime.checks import (
    LARGEST_HEAD,
    check_call,
    check_dropout,
    check_inputs,
    check_query_key,
    check_scale,
    kind_of,
)
from attnc.runtime.decomposition import CallPlaces, Decomposition
from attnc.runtime.direct import is_plain
from attnc.runtime.dispatch import Operation, initial_value
from attnc.runtime.features import EXPONENTIAL_MAPS, FeatureMap, Features, map_features, prepare
from attnc.runtime.linear import Linear, Side, State, attend_causally, attend_to_all, is_cheaper
from attnc.runtime.pairs import Sizes
from attnc.runtime.program import Formula, Program
from attnc.runtime.shorten import Shortening, nystrom


class Decomposed(Operation):
    """One attention of a generated module that is more than the weighing of its pairs."""

    def __init__(self, program: Program, decomposition: Decomposition) -> None:
        super().__init__(program)
        self.decomposition = decomposition

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
        *,
        state: State | None = None,
        return_state: bool = False,
        feature_seed: int | None = None,
    ) -> Any:
        """Prepare, map, and weigh pairs or do without them, whichever takes less work at these lengths."""
        query, key, value = lower_precision(query, key, value)
        inputs, key, value = self._shortened(query, key, value, inputs)
        if key.shape[2] == 0:
            return _nothing(query, value, return_lse)
        call = self._checked(query, key, value, inputs, return_lse, precision, feature_seed, state)
        factor = check_scale(scale)
        probability, _ = check_dropout(dropout_p, seed, query.device)
        if self.decomposition.landmarks:
            return self._approximated(call, query, key, value, factor, probability, return_lse)
        linear = self._linear(call, probability, state, return_state)
        if linear is not None and not return_state and state is None and self._spreads(linear, (key, value)):
            linear = None
        if linear is None:
            query, key, scale, restore = self._for_pairs(call, query, key, factor)
            value, kind = value.to(query.dtype), value.dtype
            found = super().attend(query, key, value, inputs, scale, return_lse, precision, dropout_p, seed, checked)
            return _restored(found, restore, kind)
        return self._without_pairs(call, linear, (query, key, value), factor, state, return_state)

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
        *,
        feature_seed: int | None = None,
    ) -> Any:
        """Compute densely; differentiable by autograd on any device."""
        query, key, value = lower_precision(query, key, value)
        inputs, key, value = self._shortened(query, key, value, inputs)
        if key.shape[2] == 0:
            return _nothing(query, value, return_lse)
        call = self._checked(query, key, value, inputs, return_lse, precision, feature_seed, None)
        if self.decomposition.landmarks:
            return self._approximated(call, query, key, value, check_scale(scale), dropout_p, return_lse)
        query, key, scale, restore = self._for_pairs(call, query, key, check_scale(scale))
        value, kind = value.to(query.dtype), value.dtype
        found = super().reference(query, key, value, inputs, scale, return_lse, precision, dropout_p, seed)
        return _restored(found, restore, kind)

    def weights(
        self,
        query: Tensor,
        key: Tensor,
        rows: Sequence[int] | Tensor | int,
        inputs: Mapping[str, object],
        scale: float | None,
        *,
        feature_seed: int | None = None,
    ) -> Tensor:
        """Return the normalised weights of some query rows, `[B, H, len(rows), M]`."""
        check_query_key(query, key)
        inputs, key, _ = self._shortened(query, key, key, inputs)
        if self.decomposition.landmarks:
            raise ValueError(f"rows: `decompose nystrom` never forms the weights of {self.program.name}")
        if key.shape[2] == 0:
            count = torch.as_tensor(rows).numel()
            return query.new_zeros((*query.shape[:2], count, 0))
        sizes = check_query_key(query, key)
        tensors = check_inputs(self.program, inputs, sizes, query.device, query.dtype)
        call = CallPlaces(self.program, sizes, tuple(tensors), query.device, query.dtype, 0, _check_seed(feature_seed))
        query, key, scale, restore = self._for_pairs(call, query, key, check_scale(scale))
        found = super().weights(query, key, rows, inputs, scale)
        if restore is None:
            return found
        chosen = torch.as_tensor(rows, device=query.device).reshape(-1).long()
        scaled: Tensor = found * (restore[:, :, chosen] if restore.shape[2] > 1 else restore).to(found.dtype)
        return scaled

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
        K: int | None = None,  # noqa: N803
    ) -> Tensor:
        """Return which pairs are allowed, bool `[B, H, N, M]`; `M` counts keys that are shortened already."""
        shorten = self.decomposition.shorten
        given = {**inputs, "D": D}
        if shorten is not None:
            given["K"] = _check_original(K, keys, shorten)
        return super().mask(queries, keys, batch, heads, device, given, D=D, g=g)

    def initial(self, name: str, **given: Any) -> Tensor:
        """Return the initial value of a learned tensor."""
        return initial_value((*self.program.tensors, *self.decomposition.own), name, **given)

    def _shortened(
        self, query: Tensor, key: Tensor, value: Tensor, inputs: Mapping[str, object]
    ) -> tuple[Mapping[str, object], Tensor, Tensor]:
        """Shorten keys and values, and add what the pairs can no longer see of them to the inputs."""
        shorten = self.decomposition.shorten
        sizes = check_call(self.program, query, key, value, False, None)
        hidden = {**inputs, "D": sizes.D}
        if shorten is None:
            return hidden, key, value
        shorten.check(sizes.M, sizes.D, sizes.value_size)
        weights: list[Tensor | None] = [None, None]
        if shorten.learned is not None:
            own = replace(self.program, tensors=self.decomposition.own)
            weights = [*check_inputs(own, inputs, sizes, query.device, query.dtype)]
        key, value = shorten.apply(key, weights[0]), shorten.apply(value, weights[1])
        return {**hidden, "K": sizes.M}, key, value

    def _approximated(
        self,
        call: CallPlaces,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        dropout_p: float,
        return_lse: bool,
    ) -> Tensor:
        """Compute by landmarks."""
        if return_lse:
            raise ValueError("return_lse: `decompose nystrom` has no log-sum-exp")
        if dropout_p:
            raise ValueError("dropout_p: `decompose nystrom` never forms the weights that would be dropped")
        queries, keys = self._mapped(call, query, key, None, None)
        if scale is None:
            own = self.program.scale
            on_host = replace(call, device=torch.device("cpu"))  # it reads nothing: no number is fetched from a device
            scale = call.sizes.D**-0.5 if own is None else float(own(on_host.at_heads(torch.float64)))
        group = call.sizes.g
        right, values = (part.repeat_interleave(group, 1) if group > 1 else part for part in (keys.values, value))
        return nystrom(queries.values, right, values, self.decomposition.landmarks, scale)

    def _checked(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: Mapping[str, object],
        return_lse: bool,
        precision: str | None,
        feature_seed: int | None,
        state: State | None,
    ) -> CallPlaces:
        sizes = check_call(self.program, query, key, value, return_lse, precision)
        tensors = tuple(check_inputs(self.program, inputs, sizes, query.device, query.dtype))
        if any(step.form == "rotary" for step in self.decomposition.prepare) and sizes.D % 2:
            raise ValueError(f"query has head size {sizes.D}, expected an even one: `prepare rotary` turns pairs")
        before = 0 if state is None else self._check_state(state, sizes, query)
        return CallPlaces(self.program, sizes, tensors, query.device, query.dtype, before, _check_seed(feature_seed))

    def _check_state(self, state: object, sizes: Sizes, query: Tensor) -> int:
        """Hold a state against the call; return the positions that it stands for."""
        if not isinstance(state, State):
            raise TypeError(f"state is {kind_of(state)}, expected what an earlier call returned, or None")
        feature = self.decomposition.feature
        features = sizes.D if feature is None else feature.size(sizes.D)
        width = sizes.value_size + (self.program.normalize == "rows")
        wanted = (sizes.B, sizes.H, features, width)
        if tuple(state.memory.shape) != wanted:
            raise ValueError(f"state has a memory of shape {tuple(state.memory.shape)}, expected {wanted}")
        if state.memory.device != query.device:
            raise ValueError(f"state is on {state.memory.device}, but query is on {query.device}: they must agree")
        if sizes.N > sizes.M:
            raise ValueError(f"query has {sizes.N} rows, expected at most the {sizes.M} keys where a state is given")
        return state.length

    def _linear(self, call: CallPlaces, probability: float, state: State | None, return_state: bool) -> Linear | None:
        """Return the form without pairs where it is to be taken."""
        linear, sizes, feature = self.decomposition.linear, call.sizes, self.decomposition.feature
        carried = state is not None or return_state
        if not isinstance(return_state, bool):
            raise TypeError(f"return_state is {kind_of(return_state)}, expected a bool")
        if carried:
            name = "state" if state is not None else "return_state"
            if probability:
                raise ValueError(f"{name}: weights cannot be dropped where they are never formed; dropout_p must be 0")
            if feature is not None and feature.form == "cosformer":
                raise ValueError(f"{name}: the features of `cosformer` depend on the number of all keys")
            if sizes.N > sizes.M:
                raise ValueError(f"query has {sizes.N} rows, expected at most the {sizes.M} keys with {name}")
            return linear
        if linear is None or probability or (linear.is_causal and linear.at_end and sizes.N > sizes.M):
            return None
        features = sizes.D if feature is None else feature.size(sizes.D)
        if features > LARGEST_HEAD and call.device.type != "cpu":
            return linear  # kernels of pairs take no more
        if linear.asked or is_cheaper(sizes.N, sizes.M, features, sizes.value_size, linear):
            return linear
        return None

    def _mapped(
        self, call: CallPlaces, query: Tensor, key: Tensor, scale: float | None, shift: int | None
    ) -> tuple[Features, Features]:
        """Prepare queries and keys, and map them to features."""
        steps, feature = self.decomposition.prepare, self.decomposition.feature
        places = any(step.form == "rotary" for step in steps) or (feature is not None and feature.form == "cosformer")
        own = other = torch.zeros((), dtype=torch.int64, device=call.device)
        if places:
            at = call.at_queries(torch.float64, shift=shift)
            assert at.i is not None
            own = call.by_head(at.i, call.sizes.N)
            other = (torch.arange(call.sizes.M, device=call.device) + call.before).view(1, 1, -1)
        query, key = prepare(steps, query, own), prepare(steps, key, other)
        if feature is None:
            return Features(query), Features(key)
        if feature.form == "favor":
            root = call.sizes.D**0.25
            query, key = query * self._row_factor(call, scale, query, root), key / root
        keys = call.sizes.M
        return map_features(feature, query, own, keys, call.seed), map_features(feature, key, other, keys, call.seed)

    def _row_factor(self, call: CallPlaces, scale: float | None, query: Tensor, root: float) -> Tensor | float:
        """Return what queries are multiplied by under `favor`, whose keys are divided by the fourth root of `D`."""
        if scale is not None:
            return float(scale) * root
        if self.decomposition.scale is None:
            return 1.0 / root
        at = call.at_queries(query.dtype if query.dtype is torch.float64 else torch.float32)
        factor = call.by_head(self.decomposition.scale(at), call.sizes.N).unsqueeze(-1) * root
        return factor.to(query.dtype)

    def _for_pairs(
        self, call: CallPlaces, query: Tensor, key: Tensor, scale: float | None
    ) -> tuple[Tensor, Tensor, float | None, Tensor | None]:
        """Return queries and keys whose products are weighed, the scale to weigh them with, and what restores results.

        Exponentials of float16 are computed in float32.
        """
        feature = self.decomposition.feature
        kind = torch.float32 if feature is not None and _needs_range(feature, query.dtype) else query.dtype
        queries, keys = self._mapped(call, query, key, scale, None)
        scale = None if feature is not None and feature.form == "favor" else scale
        own, other = queries.exponent, keys.exponent
        rows, columns = queries.values, keys.values
        restore = None
        if own is not None and other is not None:
            # one factor for all keys of a head, so that it can be taken out of a sum
            linear = self.program.normalize in ("rows", "none")
            peak = other.amax(-1, keepdim=True) if linear else torch.zeros_like(other[..., :1])
            columns = columns * (other - peak).exp().unsqueeze(-1).to(columns.dtype)
            if not linear:
                rows = rows * own.exp().unsqueeze(-1).to(rows.dtype)
            elif self.program.normalize == "none":
                heads = query.shape[1] // key.shape[1]
                restore = (own + peak.repeat_interleave(heads, 1)).exp().unsqueeze(-1)
        return rows.to(kind), columns.to(kind), scale, restore

    def _without_pairs(
        self,
        call: CallPlaces,
        linear: Linear,
        tensors: tuple[Tensor, Tensor, Tensor],
        scale: float | None,
        state: State | None,
        return_state: bool,
    ) -> Any:
        query, key, value = tensors
        sizes, kind = call.sizes, value.dtype
        shift = sizes.M - sizes.N if linear.at_end else 0
        queries, keys = self._mapped(call, query, key, scale, shift if linear.is_causal else None)
        own = self._side(call, queries, linear.query_factor, linear.query_exponent, shift, of_key=False)
        own = self._scaled(call, own, scale, shift)
        other = self._side(call, keys, linear.key_factor, linear.key_exponent, shift, of_key=True)
        feature = self.decomposition.feature
        wide = torch.float32 if kind is torch.float16 or (feature is not None and _needs_range(feature, kind)) else kind
        own, other = Side(own.rows.to(wide), own.exponent), Side(other.rows.to(wide), other.exponent)
        rows = self.program.normalize == "rows"
        if not linear.is_causal:
            return attend_to_all(own, other, value.to(wide), rows=rows).to(kind)
        out, last = attend_causally(
            own, other, value.to(wide), rows=rows, chunk=linear.chunk, shift=shift, state=state, keep=return_state
        )
        return (out.to(kind), last) if return_state else out.to(kind)

    def _spreads(self, linear: Linear, tensors: tuple[Tensor, ...]) -> bool:
        """Tell whether numbers that are not finite would reach queries before them, in the products of a chunk.

        Only where that is known without waiting for a device; what they reach behind them is theirs to reach.
        """
        if not linear.is_causal or not is_plain(tensors) or any(tensor.device.type != "cpu" for tensor in tensors):
            return False
        sums = (tensor.detach().sum(dtype=compute_dtype(tensor.dtype)) for tensor in tensors)
        return not all(bool(torch.isfinite(total)) for total in sums)

    def _side(
        self,
        call: CallPlaces,
        features: Features,
        factor: Formula | None,
        exponent: Formula | None,
        shift: int,
        *,
        of_key: bool,
    ) -> Side:
        """Multiply features by the factors of their side."""
        length = call.sizes.M if of_key else call.sizes.N

        def value(formula: Formula, dtype: torch.dtype) -> Tensor:
            at = call.at_keys(dtype) if of_key else call.at_queries(dtype, shift=shift)
            return call.by_head(formula(at), length)

        rows, total = features.values, features.exponent
        if factor is not None:
            found = value(factor, torch.float64 if rows.dtype is torch.float64 else torch.float32)
            if found.shape[1] > rows.shape[1]:
                rows = rows.repeat_interleave(found.shape[1] // rows.shape[1], 1)
            rows = rows * found.unsqueeze(-1).to(rows.dtype)
        if exponent is not None and not (not of_key and self.program.normalize == "rows"):
            found = value(exponent, torch.float64)
            if total is not None and found.shape[1] > total.shape[1]:
                total = total.repeat_interleave(found.shape[1] // total.shape[1], 1)
            total = found if total is None else total + found
        if of_key and total is not None and total.shape[1] not in (1, call.sizes.H):
            total = total.repeat_interleave(call.sizes.H // total.shape[1], 1)
        return Side(rows, total)

    def _scaled(self, call: CallPlaces, own: Side, scale: float | None, shift: int) -> Side:
        """Multiply by the factor on the inner product, where it is not inside of the features."""
        feature = self.decomposition.feature
        if feature is not None and feature.form == "favor":
            return own
        if scale is not None:
            return Side(own.rows * float(scale), own.exponent)
        if feature is None and self.program.scale is None:
            return Side(own.rows * call.sizes.D**-0.5, own.exponent)
        if self.program.scale is None:
            return own
        dtype = torch.float64 if own.rows.dtype is torch.float64 else torch.float32
        found = call.by_head(self.program.scale(call.at_queries(dtype, shift=shift)), call.sizes.N)
        return Side(own.rows * found.unsqueeze(-1).to(own.rows.dtype), own.exponent)


def _nothing(query: Tensor, value: Tensor, return_lse: bool) -> Any:
    """Return what queries without keys get."""
    out = query[..., :0].sum(-1, keepdim=True).expand(*query.shape[:3], value.shape[3])
    wide = torch.float64 if query.dtype is torch.float64 else torch.float32
    return (out, query.new_full(query.shape[:3], -torch.inf, dtype=wide)) if return_lse else out


def _check_original(given: object, keys: int, shorten: Shortening) -> int:
    """Return the number of original keys, which must give so many shortened ones."""
    least = shorten.least(keys) if given is None else given
    if least is None:
        raise ValueError(f"M is {keys}, which `keys {shorten.form}` never gives")
    if isinstance(least, bool) or not isinstance(least, int):
        raise TypeError(f"K is {kind_of(given)}, expected an int or None")
    if shorten.count(least) != keys:
        raise ValueError(f"K is {least}, which gives {shorten.count(least)} keys, and M is {keys}")
    return least


def _needs_range(feature: FeatureMap, dtype: torch.dtype) -> bool:
    """Tell whether features are too small or too large for a dtype."""
    return dtype is torch.float16 and feature.form in EXPONENTIAL_MAPS


def _check_seed(seed: object) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"feature_seed is {kind_of(seed)}, expected an int or None")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"feature_seed is {seed}, expected an int of 64 bits")
    return seed


def _restored(found: Any, restore: Tensor | None, dtype: torch.dtype) -> Any:
    """Multiply by what was taken out of the sums, and return to the dtype of the call."""
    if isinstance(found, tuple):
        return _restored(found[0], restore, dtype), *found[1:]
    return (found if restore is None else found * restore.to(found.dtype)).to(dtype)
