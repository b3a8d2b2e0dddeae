"""Running a `mask_mod` or `score_mod` once on scalars that remember how they were computed.

The function is called with tensors that hold no value: each torch operator on them gives another such tensor, whose
expression in the pattern language is known. Operators on captured tensors alone run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from attnc.flex.axes import read_of
from attnc.flex.errors import NotTraceableError, depends_on_value, unsupported
from attnc.flex.forms import constant
from attnc.flex.operators import Applied, pointwise, type_of
from attnc.flex.shapes import STRUCTURAL, structural
from attnc.ir.nodes import Expr, Index, IndexName

_NEW = {
    "new_ones", "new_zeros", "new_full", "new_empty", "ones_like", "zeros_like", "full_like", "empty_like",
}  # fmt: skip
"""Operators that take only shape and dtype from their first operand."""

_SAME = {"clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous", "positive", "view_of"}
"""Operators that change nothing."""

_VALUES = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "unique"}
"""Operators whose result Python looks at."""


class Traced(Tensor):
    """A tensor without a value that knows its expression.

    Elements of a tensor with dimensions are told apart by axis variables, see `axes.axis`.
    """

    expr: Expr

    @staticmethod
    def __new__(cls: type[Traced], expr: Expr, shape: Sequence[int], dtype: torch.dtype) -> Traced:
        """Make one."""
        device = torch.device("cpu")
        tensor: Traced = Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=dtype, device=device)
        tensor.expr = expr
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        """Say what it stands for, so that a `print` in the function works."""
        from attnc.ir.show import show

        return f"traced({show(self.expr)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse: a traced tensor has left its trace."""
        raise unsupported("a position that is used after its function has returned")


@dataclass(slots=True)
class Tables:
    """The captured tensors that a trace has met.

    Attributes:
        known: name and tensor of everything that the functions can reach.
        used: by name, in the order in which they were met.
    """

    known: Sequence[tuple[str, Tensor]]
    reserve: Callable[[str], str]
    used: dict[str, Tensor] = field(default_factory=dict)
    _derived: dict[int, tuple[Tensor, str]] = field(default_factory=dict)

    def name(self, tensor: Tensor) -> str:
        """Return the name of a tensor, which becomes an input."""
        for name, found in self.used.items():
            if found is tensor:
                return name
        name = self.reserve(self.hint(tensor) or "table")
        self.used[name] = tensor
        return name

    def hint(self, tensor: Tensor) -> str | None:
        """Return what the author calls a tensor, or what it was computed from; None if that is unknown."""
        for name, found in self.known:
            if found is tensor:
                return name
        if id(tensor) in self._derived:
            return self._derived[id(tensor)][1]
        return None

    def derive(self, result: object, operands: Sequence[Tensor]) -> None:
        """Remember what a tensor was computed from."""
        hints = dict.fromkeys(hint for operand in operands if (hint := self.hint(operand)) is not None)
        if isinstance(result, Tensor) and len(hints) == 1 and self.hint(result) is None:
            self._derived[id(result)] = (result, next(iter(hints)))


class _Indexing(TorchFunctionMode):
    """Let `table[q_idx]` be an operator, as FlexAttention does: plain torch would ask for the index's value."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__getitem__:
            table, index = args
            places = list(index) if isinstance(index, tuple) else [index]
            if any(isinstance(place, Traced) for place in places):
                return torch.ops.aten.index(table, [_place(place) for place in places])
        return func(*args, **(kwargs or {}))


def _place(place: object) -> Tensor | None:
    if isinstance(place, Tensor):
        return place
    if isinstance(place, int):
        return torch.tensor(int(place))
    if isinstance(place, slice) and place == slice(None):
        return None
    raise unsupported("an index that mixes a position with anything but positions, integers and `:`")


class _Tracing(TorchDispatchMode):
    """Turns every operator on a traced tensor into an expression."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tables = tables

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotTraceableError(
                "flex-random",
                f"`{name}` draws random numbers, a different pattern at every evaluation",
                "draw them outside and capture the tensor, or use the language's `hash` of the positions",
            )
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        traced = any(isinstance(tensor, Traced) for tensor in tensors)
        if not traced and not self._is_symbolic(name, tensors):
            result = func(*args, **kwargs)
            self.tables.derive(result, tensors)
            return result
        if name in _VALUES:
            raise depends_on_value(_python_name(name))
        return self._apply(func, name, args, kwargs)

    def _is_symbolic(self, name: str, tensors: Sequence[Tensor]) -> bool:
        """Tell whether to follow an operator on captured tensors: views keep their name, gradients their path."""
        if len(tensors) != 1 or self.tables.hint(tensors[0]) is None or name not in STRUCTURAL:
            return False
        return name != "index" or tensors[0].requires_grad

    def _apply(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = _on_meta(func, args, kwargs)
        if name in _NEW:
            kwargs["device"] = "cpu"
            return func(*tree_map(_stand_in, args), **kwargs)
        if not isinstance(result, Tensor):
            raise unsupported(_python_name(name))
        shape, dtype = tuple(result.shape), result.dtype
        target = args[0] if name.endswith("_") and not name.endswith("__") else None
        if target is not None and not isinstance(target, Traced):
            raise unsupported("a write into a captured tensor")
        if target is not None and tuple(target.shape) != shape:
            raise unsupported("an in-place operator that changes the shape")
        expr = self._expression(name, args, kwargs, shape, dtype)
        if target is not None:
            target.expr = expr
            return target
        return Traced(expr, shape, dtype)

    def _expression(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
    ) -> Expr:
        if name in _SAME:
            return self._operand(args[0])
        if name in STRUCTURAL:
            return structural(name, args, kwargs, shape, self._operand)
        compared = self._compared(args)
        expressions = tuple(None if arg is None else self._operand(arg) for arg in _operands(name, args, kwargs))
        expr = pointwise(Applied(name, expressions, kwargs, compared, dtype))
        if expr is None:
            raise unsupported(_python_name(name))
        return expr

    def _compared(self, args: Sequence[Any]) -> Any:
        numbers = [arg for arg in args if isinstance(arg, Tensor | bool | int | float)]
        dtypes = [_stand_in(arg) if isinstance(arg, Tensor) else arg for arg in numbers[:2]]
        if len(dtypes) == 2:
            return type_of(torch.result_type(*dtypes))
        return type_of(dtypes[0].dtype) if dtypes and isinstance(dtypes[0], Tensor) else None

    def _operand(self, value: Any) -> Expr:
        if isinstance(value, Traced):
            return value.expr
        if isinstance(value, Tensor):
            if value.dim() == 0 and self.tables.hint(value) is None:
                return constant(value.item())
            return read_of(self.tables.name(value), tuple(value.shape), type_of(value.dtype))
        if isinstance(value, bool | int | float):
            return constant(value)
        raise unsupported(f"an operand of type {type(value).__name__}")


def _operands(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return an operator's operands: its arguments but for options."""
    if name.rstrip("_") == "clamp":
        return (args[0], *(args[at] if len(args) > at else kwargs.get(key) for at, key in ((1, "min"), (2, "max"))))
    if name == "_to_copy":
        return args[:1]
    return args


def _stand_in(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def _on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return shape and dtype of what an operator gives, by torch's own rules; None where it has none for them."""
    if func._schema.name in (f"aten::{name}" for name in _VALUES):
        return None
    options = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else kwargs
    metas = tree_map(_stand_in, (args, options))
    return func(*metas[0], **metas[1])


def _python_name(name: str) -> str:
    """Return how users write an operator."""
    if name in ("_local_scalar_dense", "is_nonzero"):
        return "`if`, `while`, `and`, `or`, `not`, `int()`, `float()`, `math` or `.item()`"
    return f"`{name.strip('_')}`"


def trace(function: Callable[..., Any], tables: Tables, *leading: Traced) -> Any:
    """Call a function with the four positions, after `leading`, and return what it returns.

    Raises:
        NotTraceableError: it does what no pattern can say.
    """
    names = (IndexName.BATCH, IndexName.HEAD, IndexName.QUERY, IndexName.KEY)
    positions = [Traced(Index(name), (), torch.int64) for name in names]
    with _Tracing(tables), _Indexing():
        return function(*leading, *positions)


def scalar_expression(result: Any) -> tuple[Expr, torch.dtype]:
    """Return expression and dtype of what a function returned.

    Raises:
        NotTraceableError: it is no scalar tensor and no number.
    """
    if isinstance(result, Traced) and result.dim() == 0:
        return result.expr, result.dtype
    if isinstance(result, Tensor) and result.dim() == 0:
        return constant(result.item()), result.dtype
    if isinstance(result, bool | int | float):
        return constant(result), torch.tensor(result).dtype
    kind = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
    raise NotTraceableError(
        "flex-not-a-scalar",
        f"it returns {kind}, and not one value for one pair",
        "FlexAttention calls it with scalar positions: index or reduce what has dimensions",
    )
