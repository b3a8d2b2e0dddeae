"""Kinds of kernels of gradients, the names that they mention, and their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from attnc.codegen.expr_triton import Writer
from attnc.codegen.gradient_loops import GradientBody
from attnc.codegen.kernel_pieces import dropout_arguments, state_tensors
from attnc.codegen.loops import Loop
from attnc.codegen.positions import RowOrder
from attnc.codegen.reads_triton import Argument, Tables
from attnc.ir.program import Attention


class Kind(Enum):
    """What a kernel computes gradients of."""

    QUERIES = "query"
    KEYS = "key"
    PAIRS = "pair"
    """Of each pair, for tables."""


@dataclass(frozen=True, slots=True)
class ReadSum:
    """A read of a table whose gradient a kernel sums up for each of its rows.

    Attributes:
        number: of the read among all.
        name: of the sum.
        pointer: of where it goes.
    """

    number: int
    name: str
    pointer: str


def used_names(
    writer: Writer, loops: tuple[Loop[GradientBody], ...], rows: RowOrder | None, *, of_keys: bool, careful: bool
) -> frozenset[str]:
    """Return all fixed names that the kernel mentions, those of the template's own statements included."""
    used = {*writer.used, "N", "M", "H", "g", "value", "load_tile", "draw_rows", "keeps_pair", "shift"}
    used |= {"B", "take_turn"}
    if any(loop.order is not None for loop in loops) or rows is not None:
        used.add("gather_tile")
    if careful:
        used |= {"dot_rows", "is_spoiled", "finite_part", "nonfinite_code", "nonfinite_sum", "shift"}
    if any(loop.body.uses_dot for loop in loops):
        used.add("dot")
    if any(loop.body.factor for loop in loops):
        used.add("weighted_exp2")
    own_low, own_high = ("kv_lo", "kv_hi") if of_keys else ("q_lo", "q_hi")
    if rows is not None and rows.classes and used & {"residue", own_low, own_high}:
        used |= {"floor_div", "floor_mod", "shift"} | ({"first_local"} if used & {own_low, own_high} else set())
    return frozenset(used)


def gradient_parameters(
    kind: Kind,
    attention: Attention,
    used: frozenset[str],
    tables: Tables,
    reads: tuple[ReadSum, ...],
    state: str,
    *,
    careful: bool,
) -> tuple[Argument, ...]:
    """Return the kernel's parameters and what the launcher passes for them, in order."""
    tensors = {"query": "q", "key": "k", "value": "v", "grad_out": "do"}
    results = {
        Kind.QUERIES: {"grad_query": "dq"},
        Kind.KEYS: {"grad_key": "dk", "grad_value": "dv"},
        Kind.PAIRS: {},
    }[kind]
    values = [Argument(f"{tensor}_ptr", f"call.{tensor}") for tensor in (*tensors, *results)]
    values.extend(Argument(f"{one}_ptr", f"call.{one}") for one in state_tensors(state))
    if state:
        values.append(Argument("delta_ptr", "call.delta"))
    sums = "pairs" if kind is Kind.PAIRS else "sums"
    values.extend(Argument(one.pointer, f"{sums}[{one.number}]") for one in reads)
    if kind is Kind.PAIRS:
        values.extend(Argument(f"{name}_ptr", f"call.{name}") for name in ("strip_rows", "strip_keys", "strip_heads"))
        values.extend(Argument(name, f"call.{name}", specialize=False) for name in ("first_program", "slots"))
    values.extend(argument for table in tables.all for argument in table.arguments.values())
    for tensor, letter in (tensors | results).items():
        for axis, suffix in enumerate("bhn"):
            values.append(Argument(f"{letter}_stride_{suffix}", f"call.{tensor}.stride({axis})"))
    values.extend(Argument(size, f"call.{size}", specialize=False) for size in "NMHgBD" if size in used)
    values.append(Argument("turn", "call.turn", specialize=False))
    values.append(Argument("qk_scale", "call.qk_scale", specialize=False))
    if kind is not Kind.PAIRS:
        grad_scale = "call.key_scale" if kind is Kind.KEYS else "call.query_scale"
        values.append(Argument("grad_scale", grad_scale, specialize=False))
    constants = [
        ("HEAD_SIZE", "head_size"),
        ("VALUE_SIZE", "value_size"),
        ("BLOCK_M", "tiles.query"),
        ("BLOCK_N", "tiles.key"),
        ("BLOCK_D", "block_d"),
        ("BLOCK_V", "block_v"),
        ("PRECISION", "precision"),
    ]
    if careful:
        constants.extend([("CHUNK_N", "chunk_n"), ("CHUNK_V", "chunk_v")])
    if "dot" in used and attention.scale is not None:
        constants.append(("SCALE_GIVEN", "scale_given"))
    if "index_type" in used:
        constants.append(("WIDE_TABLES", "wide_tables"))
    values.extend(Argument(name, f"call.{source}", constant=True) for name, source in constants)
    values.extend(dropout_arguments("call"))
    return tuple(values)
