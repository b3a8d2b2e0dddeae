"""Arithmetic and comparisons of piecewise affine numbers, with the language's rounding."""

from __future__ import annotations

from collections.abc import Callable

import islpy as isl

from attnc.ir.nodes import BinaryOp

ByConstant = Callable[[isl.PwAff, isl.Val], isl.PwAff]


def compared(op: BinaryOp, left: isl.PwAff, right: isl.PwAff) -> isl.Set:
    """Return where a comparison of two exact numbers holds."""
    match op:
        case BinaryOp.LT:
            return left.lt_set(right)
        case BinaryOp.LE:
            return left.le_set(right)
        case BinaryOp.GT:
            return left.gt_set(right)
        case BinaryOp.GE:
            return left.ge_set(right)
        case BinaryOp.EQ:
            return left.eq_set(right)
        case BinaryOp.NE:
            return left.ne_set(right)
        case _:
            raise ValueError(op)


def arithmetic(op: BinaryOp, left: isl.PwAff, right: isl.PwAff) -> isl.PwAff | None:
    """Apply an operator to two exact numbers; None where the result is not piecewise affine."""
    match op:
        case BinaryOp.ADD:
            return left.add(right).coalesce()
        case BinaryOp.SUB:
            return left.sub(right).coalesce()
        case BinaryOp.MUL:
            scaled = _by_constant_cases(right, left, isl.PwAff.scale_val)
            return scaled if scaled is not None else _by_constant_cases(left, right, isl.PwAff.scale_val)
        case BinaryOp.FLOORDIV:
            return _by_constant_cases(right, left, _floor_division)
        case BinaryOp.MOD:
            return _by_constant_cases(right, left, _modulus)
        case _:
            return None


def _by_constant_cases(selector: isl.PwAff, value: isl.PwAff, apply: ByConstant) -> isl.PwAff | None:
    """Apply an operation whose second operand must be constant on each piece of `selector`; None if it is not."""
    result = None
    for domain, aff in selector.coalesce().get_pieces():
        if not aff.is_cst():
            return None
        piece = apply(value, aff.get_constant_val()).intersect_domain(domain)
        result = piece if result is None else result.union_add(piece)
    return result


def _floor_division(value: isl.PwAff, divisor: isl.Val) -> isl.PwAff:
    if divisor.is_zero():
        return value.scale_val(divisor)
    return value.scale_val(divisor.inv()).floor()


def _modulus(value: isl.PwAff, divisor: isl.Val) -> isl.PwAff:
    if divisor.is_zero():
        return value.scale_val(divisor)
    return value.sub(_floor_division(value, divisor).scale_val(divisor))
