"""Lines, names and arguments of a kernel that is being written."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from attnc.ir.nodes import IndexName
from attnc.source import Span

LINE_WIDTH = 100
"""Widest line of generated code."""

INDENT = "    "
LONGEST_STEM = 20
"""Names of the user's are cut to this length inside a kernel, so that lines stay within `LINE_WIDTH`."""

MATH_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
        clamp_position floor_div floor_mod checked_div checked_mod floor_div_float floor_mod_float float_to_int
        hash_mix tanh sin cos power read_scalar load_tile tile_source read_tile gather_tile dot_rows weighted_exp2
        is_spoiled finite_part nonfinite_code nonfinite_sum draw_rows keeps_pair take_turn count_deals dealt_tile
        """,
    )
)
"""Functions of `runtime.kernel_math` and `runtime.kernel_loads` that kernels call."""

RESERVED = MATH_FUNCTIONS | frozenset(
    re.findall(
        r"\w+",
        """
        batch head kv_head row_idx q_idx kv_idx q_lo q_hi kv_lo kv_hi shift row_lo tile tile_m tiles begin end pid
        B H N M D g q k v s p qk acc m_i l_i m_new m_safe alpha lse out inverse spoiled column reach rows chunk
        seen codes query key value keys values inputs scale precision launch tl triton torch float int bool
        range min max abs None True False query_ptr key_ptr value_ptr out_ptr lse_ptr query_base key_base value_base
        out_base lse_base qk_scale q_stride_b q_stride_h q_stride_n k_stride_b k_stride_h k_stride_n v_stride_b
        v_stride_h v_stride_n o_stride_b o_stride_h o_stride_n first_column v_dim offsets inside part places real rest
        kinds v_ptr call read_tables start_launch finish_launch BLOCK_M BLOCK_N CHUNK_N CHUNK_V BLOCK_D BLOCK_V
        HEAD_SIZE VALUE_SIZE PRECISION WIDE_TABLES SCALE_GIVEN DESCRIPTORS index_type Tiles launchable
        residue classes first_row first_local local_row row_count kv_local kv_place RowOrder GridRows next_launch
        keep_sums kept_out_ptr kept_m_ptr kept_l_ptr first_kept m_kept l_kept earlier taken
        SHARES JOINED share wait first_slot number slots within acc_part m_part l_part beta
        DROPOUT seed_ptr drop_below keep_scale draws dropped_keys kept took_part
        part_out_ptr part_m_ptr part_l_ptr launch_steps step row_start row_end row_tile sequence turn take_turn FUSED
        PERSISTENT deal head_query head_keys head_values head_out kept_out kept_m kept_l factor_of_dot
        first_row_of_head
        """,
    )
)
"""Names with a meaning of their own in every kernel and launcher."""

GRADIENT_NAMES = frozenset(
    re.findall(
        r"\w+",
        """
        do dp dq dk dv ds dx df di grad_scale sums member kv_heads q_row q_local q_place q_row_lo
        grad_out_ptr grad_query_ptr grad_key_ptr grad_value_ptr delta_ptr total_ptr do_ptr inverse_l
        do_stride_b do_stride_h do_stride_n dq_stride_b dq_stride_h dq_stride_n dk_stride_b dk_stride_h dk_stride_n
        dv_stride_b dv_stride_h dv_stride_n start_gradients cut_gradients finish_gradients d_dim
        q_ptr k_part vectors
        kept_p first_program slots slot first_slot pair_offsets pair_places strip_rows_ptr strip_keys_ptr
        strip_heads_ptr pairs spoiled_q spoiled_k spoiled_v q_rows k_rows v_rows do_rows
        sum_places k_ptr nothing queries out_grads
        """,
    )
)
"""Names with a meaning of their own in kernels of gradients."""

INDEX_NAMES = {
    IndexName.BATCH: "batch",
    IndexName.HEAD: "head",
    IndexName.QUERY: "q_idx",
    IndexName.KEY: "kv_idx",
    IndexName.ROW: "row_idx",
    IndexName.SHIFT: "shift",
    IndexName.QUERY_LOW: "q_lo",
    IndexName.QUERY_HIGH: "q_hi",
    IndexName.KEY_LOW: "kv_lo",
    IndexName.KEY_HIGH: "kv_hi",
    IndexName.CLASS: "residue",
    IndexName.LOCAL_QUERY: "local_row",
}
"""What kernels call coordinates; bounds of tiles count in the order of their loop, `residue` is the class there."""

COMPARISON, OR, AND, SUM, PRODUCT, UNARY, ATOM = range(7)
"""How tightly operators bind in Python."""


class Shape(IntEnum):
    """What a value has one of: program, query row, key, or pair."""

    SCALAR = 0
    ROW = 1
    KEY = 2
    PAIR = 3

    def join(self, other: Shape) -> Shape:
        """Return the shape of an operation on both: a row and a key make a pair."""
        return Shape(self | other)


SUFFIX = {Shape.SCALAR: "", Shape.ROW: "_row", Shape.KEY: "_key", Shape.PAIR: "_pair"}


def extent(shape: Shape, aliases: Mapping[str, str]) -> str:
    """Return the dimensions of a value.

    `aliases` may have other names: for the keys that a walk takes at once, and for both in kernels whose rows are keys.
    """
    rows, keys = aliases.get("BLOCK_M", "BLOCK_M"), aliases.get("BLOCK_N", "BLOCK_N")
    match shape:
        case Shape.SCALAR:
            return "[]"
        case Shape.ROW:
            return f"[{rows}]"
        case Shape.KEY:
            return f"[{keys}]"
        case Shape.PAIR:
            return f"[{rows}, {keys}]"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Source text of a value.

    Attributes:
        binding: how tightly its outermost operator binds; `ATOM` for names and calls.
        shape: what there is one of.
        depth: number of the innermost block that it needs, 0 before all loops.
        bits: width of an int, 0 where the caller's tensor decides or it is no int.
        constant: whether it is a literal.
    """

    text: str
    binding: int
    shape: Shape = Shape.SCALAR
    depth: int = 0
    bits: int = 0
    constant: bool = False

    @property
    def simple(self) -> bool:
        """Whether it is a name or a literal."""
        return self.constant or self.text.isidentifier()


@dataclass(slots=True)
class Block:
    """Statements that are executed together, and the text of each value that was written at their depth."""

    lines: list[str] = field(default_factory=list)
    written: dict[object, Fragment] = field(default_factory=dict)


class Names:
    """Hands out names. Those of a loop's own values are free again in the next loop, and there alone.

    Names that are `also` reserved are never handed out.
    """

    def __init__(self, also: frozenset[str] = frozenset()) -> None:
        self._taken: set[str] = set(RESERVED) | also | set(keyword.kwlist) | set(keyword.softkwlist)
        self._local: set[str] = set()
        self._former: set[str] = set()

    def fresh(self, stem: str, depth: int = 0) -> str:
        """Return `stem`, or `stem_1`, `stem_2`, ... if that is taken, and take it.

        Args:
            stem: the beginning of an identifier.
            depth: 0 for values of the whole kernel, more for those of the loop that is being written.
        """
        stem = stem[:LONGEST_STEM]
        for count in itertools.count():
            name = f"{stem}_{count}" if count else stem
            if name not in self._taken or (depth > 0 and name in self._former and name not in self._local):
                break
        self._taken.add(name)
        if depth > 0:
            self._local.add(name)
        return name

    def end_loop(self) -> None:
        """Free the names of the loop that has been written."""
        self._former |= self._local
        self._local = set()


def place(span: Span | None) -> str:
    """Return `streaming.attn:3`, on one line whatever the file is called; empty without a span."""
    if span is None:
        return ""
    name = span.source.name.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{''.join(c if c.isprintable() else '?' for c in name)}:{span.line}"


def places(spans: Iterable[Span | None]) -> str:
    """Return the distinct places of some spans, comma-separated, in the order of their lines."""
    found = {(span.source.name, span.line): span for span in spans if span is not None}
    return ", ".join(place(found[key]) for key in sorted(found))


def with_comment(line: str, comment: str, depth: int) -> list[str]:
    """Put a comment beside a line, or above it where the line would become too wide.

    Args:
        line: a statement.
        comment: without its `#`; empty for none.
        depth: number of indents that the line will get.
    """
    if not comment:
        return [line]
    beside = f"{line}  # {comment}"
    if len(beside) + len(INDENT) * depth <= LINE_WIDTH:
        return [beside]
    return [f"# {comment}", line]
