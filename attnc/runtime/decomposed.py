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
from attnc.runtime.decomposed_checks import (
    check_carried,
    check_feature_seed,
    check_original,
    check_state,
    check_turns,
)
from attnc.runtime.decomposition import CallPlaces, Decomposition
from attnc.runtime.direct import is_plain
from attnc.runtime.dispatch import Operation, check_rows, initial_value
from attnc.runtime.features import EXPONENTIAL_MAPS, FeatureMap, Features, map_features
from attnc.runtime.linear import Linear, Side, State, attend_causally, attend_to_all, is_cheaper
from attnc.runtime.pairs import Sizes
from attnc.runtime.preparation import prepare
from attnc.runtime.program import Formula, Program
from attnc.runtime.shorten import nystrom

MOST_SPREAD = 60.0
"""Between the logarithms of the greatest and the least key that float32 holds beside each other, with some to spare."""


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
        factor = check_scale(scale)
        inputs, key, value = self._shortened(query, key, value, inputs, return_lse, precision)
        probability, _ = check_dropout(dropout_p, seed, query.device)
        if key.shape[2] == 0:
            return self._nothing(query, value, inputs, return_lse)
        call = self._checked(query, key, value, inputs, return_lse, precision, feature_seed, state)
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
        factor = check_scale(scale)
        inputs, key, value = self._shortened(query, key, value, inputs, return_lse, precision)
        probability, _ = check_dropout(dropout_p, seed, query.device)
        if key.shape[2] == 0:
            return self._nothing(query, value, inputs, return_lse)
        call = self._checked(query, key, value, inputs, return_lse, precision, feature_seed, None)
        if self.decomposition.landmarks:
            return self._approximated(call, query, key, value, factor, probability, return_lse)
        query, key, scale, restore = self._for_pairs(call, query, key, factor, exact=True)
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
        check_turns(self.decomposition, check_query_key(query, key).D)
        factor, kind = check_scale(scale), query.dtype
        inputs, key, _ = self._shortened(query, key, key, inputs, False, None)
        if self.decomposition.landmarks:
            raise ValueError(f"rows: `decompose nystrom` never forms the weights of {self.program.name}")
        if key.shape[2] == 0:
            chosen = check_rows(rows, query.shape[2], query.device)
            return query.new_zeros((*query.shape[:2], chosen.numel(), 0))
        sizes = check_query_key(query, key)
        tensors = check_inputs(self.program, inputs, sizes, query.device, query.dtype)
        seed = check_feature_seed(feature_seed)
        call = CallPlaces(self.program, sizes, tuple(tensors), query.device, query.dtype, 0, seed)
        query, key, scale, restore = self._for_pairs(call, query, key, factor, exact=True)
        found = super().weights(query, key, rows, inputs, scale)
        if restore is not None:
            chosen = check_rows(rows, sizes.N, query.device)
            restore = restore[:, :, chosen] if restore.shape[2] > 1 else restore
        scaled: Tensor = _restored(found, restore, kind)
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
            given["K"] = check_original(K, keys, shorten)
        return super().mask(queries, keys, batch, heads, device, given, D=D, g=g)

    def feature_seed(self, seed: object) -> int | None:
        """Return a seed of random features for modules to keep. Raises TypeError or ValueError if it is none."""
        return check_feature_seed(seed)

    def initial(self, name: str, **given: Any) -> Tensor:
        """Return the initial value of a learned tensor."""
        return initial_value((*self.program.tensors, *self.decomposition.own), name, **given)

    def _shortened(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: Mapping[str, object],
        return_lse: bool,
        precision: str | None,
    ) -> tuple[Mapping[str, object], Tensor, Tensor]:
        """Shorten keys and values, and add what the pairs can no longer see of them to the inputs."""
        shorten = self.decomposition.shorten
        sizes = check_call(self.program, query, key, value, return_lse, precision)
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

    def _nothing(self, query: Tensor, value: Tensor, inputs: Mapping[str, object], return_lse: bool) -> Any:
        """Return what queries without keys get: zeros, and the sink for the log of what divides them."""
        out = query[..., :0].sum(-1, keepdim=True).expand(*query.shape[:3], value.shape[3])
        if not return_lse:
            return out
        batch, heads, length, size = query.shape
        wide = compute_dtype(query.dtype)
        if self.program.sink is None:
            return out, query.new_full((batch, heads, length), -torch.inf, dtype=wide)
        sizes = Sizes(batch, heads, length, 0, size, heads // value.shape[1], value.shape[3])
        tensors = tuple(check_inputs(self.program, inputs, sizes, query.device, query.dtype))
        call = CallPlaces(self.program, sizes, tensors, query.device, query.dtype)
        lse = call.by_head(self.program.sink(call.at_queries(wide)), length)
        return out, lse.expand(batch, heads, length).to(wide)

    def _has_exponents(self) -> bool:
        """Tell whether features are kept apart from the logarithms of their sizes."""
        feature = self.decomposition.feature
        return feature is not None and feature.form in EXPONENTIAL_MAPS

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
        check_turns(self.decomposition, sizes.D)
        before = 0 if state is None else check_state(state, self.program, self.decomposition, sizes, query)
        seed = check_feature_seed(feature_seed)
        return CallPlaces(self.program, sizes, tensors, query.device, query.dtype, before, seed)

    def _linear(self, call: CallPlaces, probability: float, state: State | None, return_state: bool) -> Linear | None:
        """Return the form without pairs where it is to be taken."""
        linear, sizes, feature = self.decomposition.linear, call.sizes, self.decomposition.feature
        carried = state is not None or return_state
        if not isinstance(return_state, bool):
            raise TypeError(f"return_state is {kind_of(return_state)}, expected a bool")
        if carried:
            name = "state" if state is not None else "return_state"
            check_carried(name, self.program, self.decomposition, sizes, probability)
            return linear
        if linear is None or probability or (linear.is_causal and linear.at_end and sizes.N > sizes.M):
            return None
        features = sizes.D if feature is None else feature.size(sizes.D)
        if features > LARGEST_HEAD and call.device.type != "cpu":
            return linear  # kernels of pairs take no more
        if linear.is_causal and self._has_exponents():
            return linear  # of one factor for all keys, early rows would keep nothing beside much greater later keys
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
            query, key = (rows.to(compute_dtype(rows.dtype)) for rows in (query, key))
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
        self, call: CallPlaces, query: Tensor, key: Tensor, scale: float | None, *, exact: bool = False
    ) -> tuple[Tensor, Tensor, float | None, Tensor | None]:
        """Return queries and keys whose products are weighed, the scale to weigh them with, and what restores results.

        All keys share one factor, which is taken out of sums of scores that are multiples of products. Where masks
        leave a row keys alone that are far below it, float32 has no numbers for them: such calls are computed in
        float64, if that shows without waiting for a device, and so is what is `exact`.
        """
        feature = self.decomposition.feature
        queries, keys = self._mapped(call, query, key, scale, None)
        kind = queries.values.dtype if feature is not None and _needs_range(feature, query.dtype) else query.dtype
        scale = None if feature is not None and feature.form == "favor" else scale
        own, other = queries.exponent, keys.exponent
        rows, columns = queries.values, keys.values
        if own is None or other is None:
            return rows.to(kind), columns.to(kind), scale, None
        if self.program.normalize not in ("rows", "none") or not self.decomposition.scores_multiply:
            parts = ((rows, own), (columns, other))
            rows, columns = (part * log.exp().unsqueeze(-1).to(part.dtype) for part, log in parts)
            return rows.to(kind), columns.to(kind), scale, None
        peak = other.amax(-1, keepdim=True)
        if exact or self._needs_double(other, peak):
            kind = torch.float64
        columns = columns.to(kind) * (other - peak).exp().unsqueeze(-1).to(kind)
        restore = None
        if self.program.normalize == "none":
            heads = query.shape[1] // key.shape[1]
            restore = (own + peak.repeat_interleave(heads, 1)).exp().unsqueeze(-1)
        return rows.to(kind), columns.to(kind), scale, restore

    def _needs_double(self, exponents: Tensor, peak: Tensor) -> bool:
        """Tell whether keys are so far apart that float32 would lose the least of them beside the greatest."""
        if self.program.mask is None or exponents.device.type != "cpu" or not is_plain((exponents,)):
            return False
        return bool((peak - exponents.detach()).amax() > MOST_SPREAD)

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


def _needs_range(feature: FeatureMap, dtype: torch.dtype) -> bool:
    """Tell whether features are too small or too large for a dtype."""
    return dtype is torch.float16 and feature.form in (*EXPONENTIAL_MAPS, "square")


def _restored(found: Any, restore: Tensor | None, dtype: torch.dtype) -> Any:
    """Multiply by what was taken out of the sums, and return to the dtype of the call."""
    if isinstance(found, tuple):
        return _restored(found[0], restore, dtype), *found[1:]
    return (found if restore is None else found * restore.to(found.dtype)).to(dtype)
