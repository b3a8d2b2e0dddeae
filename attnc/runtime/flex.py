"""What the functions of a generated FlexAttention module do: bind tensors, build the block mask, call FlexAttention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from attnc.runtime.block_mask import BlockSets, MaskMod, build_block_mask
from attnc.runtime.blocks import bind_tables
from attnc.runtime.checks import check_call, check_inputs, check_scale, kind_of
from attnc.runtime.pairs import Sizes
from attnc.runtime.program import Program, TensorArgument

Tables = Mapping[str, Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's: `(score, b, h, q_idx, kv_idx) -> score`."""


@dataclass(frozen=True, slots=True)
class FlexOperation:
    """One attention of a generated module.

    Attributes:
        tensors: what callers give.
        sets: what is known of the blocks of its mask.
        mask_mod: makes the function for given sizes and tensors.
        score_mod: the same for the score, and for a scale that the call gives; None where the score stays as it is.
        scale: the factor on the dot product; None for `1 / sqrt(D)`, 1 where the function of the score has it.
        masked: whether some pair may be masked.
        bound_tables: tables that the bounds of the mask's blocks and the alignment read.
        mask_tables: tables that the mask and the alignment read.
        score_tables: tables that the score and the alignment read.
    """

    name: str
    tensors: tuple[TensorArgument, ...]
    sets: BlockSets
    mask_mod: Callable[[Sizes, Tables], MaskMod]
    score_mod: Callable[[Sizes, Tables, float | None], ScoreMod] | None
    scale: Callable[[Sizes], float] | None
    masked: bool
    scales_in_score: bool
    bound_tables: tuple[str, ...]
    mask_tables: tuple[str, ...]
    score_tables: tuple[str, ...]

    def make_mask_mod(
        self, queries: int, keys: int, batch: int, heads: int, device: torch.device | str | None,
        inputs: Mapping[str, object], **more: int,
    ) -> MaskMod:  # fmt: skip
        """Return the mask as FlexAttention's function of a pair."""
        sizes, tables, _ = self._bind(self.mask_tables, (queries, keys, batch, heads), more, device, inputs)
        return self.mask_mod(sizes, tables)

    def make_score_mod(
        self, queries: int, keys: int, batch: int, heads: int, device: torch.device | str | None,
        inputs: Mapping[str, object], scale: float | None, **more: int,
    ) -> ScoreMod:  # fmt: skip
        """Return the score as FlexAttention's function of a pair and its scaled dot product."""
        sizes, tables, _ = self._bind(self.score_tables, (queries, keys, batch, heads), more, device, inputs)
        return same_score if self.score_mod is None else self.score_mod(sizes, tables, check_scale(scale))

    def block_mask(
        self, queries: int, keys: int, batch: int, heads: int, device: torch.device | str | None,
        block_size: int | tuple[int, int], inputs: Mapping[str, object], **more: int,
    ) -> BlockMask:  # fmt: skip
        """Return the mask's blocks."""
        sizes, tables, place = self._bind(self.mask_tables, (queries, keys, batch, heads), more, device, inputs)
        return self._build(sizes, tables, place, _check_block_size(block_size))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        inputs: Mapping[str, object],
        scale: float | None,
        return_lse: bool,
        block_mask: BlockMask | None,
        compiled: bool | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Check the arguments and call FlexAttention."""
        program = self._signature(self.tensors)
        sizes = check_call(program, query, key, value, return_lse, None)
        factor = check_scale(scale)
        given = check_inputs(program, inputs, sizes, query.device, query.dtype)
        tables = self._on_device(bind_tables(program, given, sizes), query.device)
        if block_mask is None and self.masked:
            block_mask = self._build(sizes, tables, query.device, (128, 128))
        score_mod = None if self.score_mod is None else self.score_mod(sizes, tables, factor)
        if self.scales_in_score:
            factor = 1.0
        elif factor is None and self.scale is not None:
            factor = self.scale(sizes)
        if compiled is None:
            compiled = query.device.type != "cpu"
        function = _compiled() if compiled and not torch.compiler.is_compiling() else flex.flex_attention
        options: dict[str, Any] = {} if not return_lse else _lse_options()
        result = function(
            query,
            key,
            value,
            score_mod=score_mod,
            block_mask=block_mask,
            scale=factor,
            enable_gqa=sizes.g > 1,
            **options,
        )
        if not return_lse:
            return result  # type: ignore[no-any-return]
        out, extra = result
        return out, getattr(extra, "lse", extra)

    def _build(self, sizes: Sizes, tables: Tables, device: torch.device, block_size: tuple[int, int]) -> BlockMask:
        sets = self.sets
        return build_block_mask(sets, self.mask_mod(sizes, tables), sizes, tables, device, block_size)

    def _bind(
        self, names: tuple[str, ...], lengths: tuple[int, int, int, int], more: Mapping[str, int],
        device: torch.device | str | None, inputs: Mapping[str, object],
    ) -> tuple[Sizes, Tables, torch.device]:  # fmt: skip
        for name, size in (*zip("NMBH", lengths, strict=True), *more.items()):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} is {kind_of(size)}, expected an int")
            if size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        queries, keys, batch, heads = lengths
        head_size, group = more.get("D", 1), more.get("g", 1)
        if heads % group:
            raise ValueError(f"g is {group}, expected a divisor of the {heads} heads")
        sizes = Sizes(batch, heads, queries, keys, head_size, group, head_size)
        place = _place(device, inputs)
        program = self._signature(tuple(argument for argument in self.tensors if argument.name in names))
        given = check_inputs(program, inputs, sizes, place, torch.float32)
        return sizes, self._on_device(bind_tables(program, given, sizes), place), place

    def _signature(self, tensors: tuple[TensorArgument, ...]) -> Program:
        names = {argument.name for argument in tensors}
        bounds = tuple(name for name in self.bound_tables if name in names)
        # a program without passes: what the checks of a call read
        return Program(self.name, "", "", tensors, "softmax", self.sets.shift, (), bound_tables=bounds)

    def _on_device(self, tables: dict[str, Tensor], device: torch.device) -> Tables:
        """Return the tables with scalars beside the others."""
        return {name: table.to(device) if table.dim() == 0 else table for name, table in tables.items()}


def _place(device: torch.device | str | None, inputs: Mapping[str, object]) -> torch.device:
    """Return the device that is asked for, that of the tensors, or the one that FlexAttention would choose."""
    if device is not None:
        return torch.empty(0, device=device).device
    found = next((given for given in inputs.values() if isinstance(given, Tensor) and given.dim()), None)
    if found is not None:
        return found.device
    return torch.empty(0, device=torch.accelerator.current_accelerator() or "cpu").device


def _check_block_size(block_size: object) -> tuple[int, int]:
    pair = (block_size, block_size) if isinstance(block_size, int) else block_size
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"block_size is {kind_of(block_size)}, expected an int or two")
    for size in pair:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"block_size has {kind_of(size)} in it, expected an int")
        if size < 1:
            raise ValueError(f"block_size has {size} in it, expected at least 1")
    return pair[0], pair[1]


_COMPILED: list[Any] = []


def _compiled() -> Any:
    """Return FlexAttention compiled, which keeps what it has compiled for later calls."""
    if not _COMPILED:
        _COMPILED.append(torch.compile(flex.flex_attention, dynamic=False))
    return _COMPILED[0]


def _lse_options() -> dict[str, Any]:
    request = getattr(flex, "AuxRequest", None)  # older versions of torch have the flag alone
    return {"return_lse": True} if request is None else {"return_aux": request(lse=True)}


def same_score(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """Return the score as it is."""
    return score


def shifted_mask(mask_mod: Callable[..., Tensor], sizes: Sizes) -> MaskMod:
    """Return a mask whose last query stands at the last key."""
    shift = sizes.M - sizes.N
    if shift == 0:
        return mask_mod

    def shifted(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return mask_mod(b, h, q_idx, kv_idx, shift=shift)

    return shifted


def shifted_score(score_mod: Callable[..., Tensor], sizes: Sizes) -> ScoreMod:
    """Return a score whose last query stands at the last key."""
    shift = sizes.M - sizes.N
    if shift == 0:
        return score_mod

    def shifted(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score_mod(score, b, h, q_idx, kv_idx, shift=shift)

    return shifted


def read(table: Tensor, *index: Tensor | int) -> Tensor:
    """Return an element of a table; 0 (or false) where the index is outside."""
    if table.numel() == 0:
        return table.new_zeros(())
    places: list[Tensor | int] = []
    inside: Tensor | bool = True
    for size, at in zip(table.shape, index, strict=True):
        inside = inside & ((at >= 0) & (at < size))
        places.append(at.clamp(0, size - 1) if isinstance(at, Tensor) else min(max(at, 0), size - 1))
    value = table[tuple(places)]
    if isinstance(inside, bool):
        return value if inside else torch.zeros_like(value)
    return torch.where(inside, value, torch.zeros_like(value))


def any_of(count: int, body: Callable[[int], Any]) -> Any:
    """Tell where the body holds for some `t < count`."""
    result = body(0) if count else False
    for t in range(1, count):
        result = result | body(t)
    return result


def all_of(count: int, body: Callable[[int], Any]) -> Any:
    """Tell where the body holds for every `t < count`."""
    result = body(0) if count else True
    for t in range(1, count):
        result = result & body(t)
    return result


def sum_of(count: int, body: Callable[[int], Any]) -> Any:
    """Add the body up over `t < count`."""
    result = body(0) if count else 0
    for t in range(1, count):
        result = result + body(t)
    return result


def hash_of(*values: Tensor | int) -> Tensor | int:
    """Return the language's `hash`, see `pairs.splitmix`; positions may come in 32 bits here."""
    x: Any = 0
    for value in values:
        wide = value.to(torch.int64) if isinstance(value, Tensor) else value
        x = _mixed(_signed(x + wide + (0x9E3779B97F4A7C15 - 2**64)))
    return (x >> 1) & (2**63 - 1)  # type: ignore[no-any-return]


def _mixed(x: Any) -> Any:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = x ^ ((x >> shift) & (2 ** (64 - shift) - 1))
        x = _signed(x * _signed(factor))
    return x


def _signed(x: Any) -> Any:
    """Wrap a Python number around as int64 does; a tensor does so by itself."""
    return (x + 2**63) % 2**64 - 2**63 if isinstance(x, int) else x
