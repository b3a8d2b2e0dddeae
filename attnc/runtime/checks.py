"""The arguments of a call, before anything is computed: a wrong one is named, with what it is and what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnc.runtime.pairs import Sizes
from attnc.runtime.program import Program, TensorArgument

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
PRECISIONS = ("ieee", "tf32")
LONGEST_SEQUENCE = 2**30
"""Positions stay below this, so that kernels may compute them in 32 bits."""
LARGEST_HEAD = 256
"""Largest head size of a Triton kernel."""


HIDDEN_SIZES = ("K", "D")
"""Scalars that wrappers give: sizes of the arguments as the user gave them, which those of a call no longer show."""

LARGEST_LIMIT = 2**48
"""Scalar inputs that bound the work reach so far: far beyond any position, and far from what 64 bits hold."""


def check_call(
    program: Program,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    precision: str | None,
) -> Sizes:
    """Check everything but the factor on the dot product and the pattern's own tensors.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a tensor of the wrong shape, dtype or device, or an option that the pattern does not have.
    """
    sizes = check_query_key(query, key)
    _check_tensor("value", value, "(B, G, M, E)")
    if value.dtype != query.dtype:
        raise ValueError(f"value is {_dtype(value)}, but query is {_dtype(query)}: they must agree")
    _check_device("value", value, query)
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value has shape {_shape(value)}, expected ({key.shape[0]}, {key.shape[1]}, {key.shape[2]}, E): "
            f"batch, heads and length of key, which has shape {_shape(key)}"
        )
    if value.shape[3] == 0:
        raise ValueError(f"value has shape {_shape(value)}, expected a head size of at least 1")
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse is {kind_of(return_lse)}, expected a bool")
    if return_lse and not program.has_lse:
        raise ValueError(f"return_lse: `normalize {program.normalize}` has no log-sum-exp, only softmax has one")
    if not (precision is None or (isinstance(precision, str) and precision in PRECISIONS)):
        raise ValueError(f"precision is {precision!r}, expected 'ieee', 'tf32' or None")
    return Sizes(B=sizes.B, H=sizes.H, N=sizes.N, M=sizes.M, D=sizes.D, g=sizes.g, value_size=value.shape[3])


def check_query_key(query: Tensor, key: Tensor) -> Sizes:
    """Check query and key and return the sizes; the value's head size is taken to be theirs."""
    _check_tensor("query", query, "(B, H, N, D)")
    _check_tensor("key", key, "(B, G, M, D)")
    if query.dtype not in FLOATS:
        raise ValueError(f"query is {_dtype(query)}, expected float16, bfloat16, float32 or float64")
    if key.dtype != query.dtype:
        raise ValueError(f"key is {_dtype(key)}, but query is {_dtype(query)}: they must agree")
    _check_device("key", key, query)
    batch, heads, queries, head_size = query.shape
    for name, tensor in (("query", query), ("key", key)):
        for axis, what in enumerate(("a batch", "heads", "a length", "a head size")):
            if tensor.shape[axis] == 0:
                raise ValueError(
                    f"{name} has shape {_shape(tensor)}, expected {what} of at least 1 in dimension {axis}"
                )
    if key.shape[0] != batch:
        raise ValueError(f"key has batch size {key.shape[0]}, expected {batch} as query has")
    if heads % key.shape[1]:
        raise ValueError(f"key has {key.shape[1]} heads, expected a divisor of the {heads} heads of query")
    if key.shape[3] != head_size:
        raise ValueError(f"key has head size {key.shape[3]}, expected {head_size} as query has")
    for name, length in (("query", queries), ("key", key.shape[2])):
        if length >= LONGEST_SEQUENCE:
            raise ValueError(f"{name} has length {length}, expected less than 2**30")
    return Sizes(
        B=batch, H=heads, N=queries, M=key.shape[2], D=head_size, g=heads // key.shape[1], value_size=head_size
    )


def check_scale(scale: object) -> float | None:
    """Check the factor on the dot product and return it as a Python number."""
    number = _plain(scale)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"scale is {kind_of(scale)}, expected a number or None")
    return number if isinstance(number, float) else _as_float("scale", number)


def check_dropout(probability: object, seed: object, device: torch.device) -> tuple[float, Tensor | None]:
    """Check the probability of weights to be dropped, and return it with the seed as an int64 tensor on the device.

    A seed that is a tensor on the device already is taken as it is, without waiting for its value.

    Raises:
        TypeError: one is of the wrong type.
        ValueError: a probability outside of [0, 1), a seed that is missing or is no single int of 64 bits.
    """
    number = _plain(probability)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"dropout_p is {kind_of(probability)}, expected a number")
    if not 0.0 <= number < 1.0:
        raise ValueError(f"dropout_p is {number}, expected at least 0 and less than 1")
    wanted = "expected an int or an int tensor of one element"
    if seed is None:
        if number:
            raise ValueError(f"dropout_p is {number}, but there is no seed: {wanted}, which decides what is dropped")
        return float(number), None
    if isinstance(seed, Tensor):
        if seed.dtype not in INTEGERS:
            raise TypeError(f"seed is {_dtype(seed)}, {wanted}")
        if seed.numel() != 1:
            raise ValueError(f"seed has shape {_shape(seed)}, {wanted}")
        return float(number), seed.reshape(()).to(device=device, dtype=torch.int64)
    plain = _plain(seed)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise TypeError(f"seed is {kind_of(seed)}, {wanted}")
    if not -(2**63) <= plain < 2**63:
        raise ValueError(f"seed is {plain}, expected an int of 64 bits")
    return float(number), torch.tensor(plain, dtype=torch.int64, device=device)


def check_head_sizes(name: str, query: Tensor, value: Tensor) -> None:
    """Check that the head sizes are such that a Triton kernel takes.

    Raises:
        ValueError: one is too large.
    """
    for argument, tensor in (("query", query), ("value", value)):
        if tensor.shape[3] > LARGEST_HEAD:
            raise ValueError(
                f"{argument} has head size {tensor.shape[3]}, but the kernel of {name} takes up to {LARGEST_HEAD}: "
                f"larger heads run on the CPU, or densely by {name}_reference"
            )


def check_inputs(
    program: Program, given: Mapping[str, object], sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Check the pattern's own tensors and return them in order, scalars as 0-d tensors.

    Args:
        program: what they belong to.
        given: by name; names that are missing are errors, and those of hidden sizes take the place of the call's.
        sizes: of the call.
        device: where tensors with dimensions must be.
        dtype: of floats that are given as Python numbers.
    """
    hidden = {name: int(given[name]) for name in HIDDEN_SIZES if name in given}  # type: ignore[call-overload]
    sizes = replace(sizes, **hidden) if hidden else sizes
    checked = [_check_input(argument, given[argument.name], sizes, device, dtype) for argument in program.tensors]
    for argument in program.tensors:
        if argument.name in program.bound_tables:
            _check_limit(argument.name, given[argument.name])
    return checked


def check_sorted(program: Program, inputs: Sequence[Tensor]) -> None:
    """Hold inputs that are declared sorted against their values; waits for the device.

    Raises:
        ValueError: naming the first place where one decreases.
    """
    for argument, tensor in zip(program.tensors, inputs, strict=True):
        if not argument.sorted or not tensor.dim():
            continue
        wrong = (tensor[..., 1:] < tensor[..., :-1]).nonzero()
        if len(wrong):
            place = [int(index) for index in wrong[0]]
            before, after = (int(tensor[(*place[:-1], place[-1] + step)]) for step in (0, 1))
            raise ValueError(
                f"{argument.name} is declared sorted, but decreases from {before} to {after} "
                f"after index {tuple(place) if len(place) > 1 else place[0]}"
            )


def _check_limit(name: str, given: object) -> None:
    """Refuse numbers with which bounds of work could leave 64 bits, so that they never wrap around unseen."""
    number = _plain(given)
    if isinstance(number, int) and not -LARGEST_LIMIT <= number <= LARGEST_LIMIT:
        raise ValueError(
            f"{name} is {number}, expected at most 2**48 on either side of 0, since it bounds which keys are visited: "
            "2**48 stands for no limit as well"
        )


def _check_input(
    argument: TensorArgument, given: object, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Tensor:
    name = argument.name
    if not isinstance(given, Tensor):
        if argument.dims:
            raise TypeError(f"{name} is {kind_of(given)}, expected a tensor {_expected(argument, sizes)}")
        return _check_number(argument, given, dtype)
    _check_dense(name, given)
    if argument.type == "float" and not argument.dims and given.dtype in INTEGERS:
        given = given.to(torch.float64 if dtype is torch.float64 else torch.float32)  # as a Python int would be
    if not _fits(argument.type, given.dtype):
        raise ValueError(f"{name} is {_dtype(given)}, expected {_dtypes(argument.type)}")
    if argument.dims and given.device != device:
        raise ValueError(f"{name} is on {given.device}, but query is on {device}: they must agree")
    if given.dim() != len(argument.dims):
        raise ValueError(f"{name} has shape {_shape(given)}, expected {_expected(argument, sizes)}")
    for axis, length in enumerate(argument.dims):
        if length is None:
            continue
        wanted, got = length(sizes), given.shape[axis]
        if got != wanted and not (argument.broadcast[axis] and got == 1):
            raise ValueError(f"{name} has shape {_shape(given)}, expected {_expected(argument, sizes)}")
    return given


def _check_number(argument: TensorArgument, given: object, dtype: torch.dtype) -> Tensor:
    number = _plain(given)
    if argument.type == "bool" and isinstance(number, bool):
        return torch.tensor(number)
    if isinstance(number, bool) or argument.type == "bool":
        pass
    elif argument.type == "int" and isinstance(number, int):
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"{argument.name} is {number}, expected an integer of 64 bits")
        return torch.tensor(number, dtype=torch.int64)
    elif argument.type == "float" and isinstance(number, int | float):
        return torch.tensor(
            _as_float(argument.name, number), dtype=torch.float64 if dtype is torch.float64 else torch.float32
        )
    wanted = {"bool": "a bool", "int": "an int", "float": "a number"}[argument.type]
    raise TypeError(f"{argument.name} is {kind_of(given)}, expected {wanted} or a 0-d tensor")


def _plain(given: object) -> object:
    """Return NumPy's scalars, and arrays that hold one, as Python numbers; anything else as it is."""
    if isinstance(given, bool | int | float | Tensor) or getattr(given, "shape", None) != ():
        return given
    item = getattr(given, "item", None)
    return item() if callable(item) else given


def _check_tensor(name: str, tensor: object, layout: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {kind_of(tensor)}, expected a tensor {layout}")
    _check_dense(name, tensor)
    if tensor.dim() != 4:
        raise ValueError(f"{name} has shape {_shape(tensor)}, expected 4 dimensions {layout}")


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.is_nested:
        raise ValueError(f"{name} is a nested tensor, expected a dense one")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} is a {tensor.layout} tensor, expected a dense one")


def _check_device(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.device != query.device:
        raise ValueError(f"{name} is on {tensor.device}, but query is on {query.device}: they must agree")


def _fits(type_: str, dtype: torch.dtype) -> bool:
    if type_ == "bool":
        return dtype is torch.bool
    return dtype in (INTEGERS if type_ == "int" else FLOATS)


def _dtypes(type_: str) -> str:
    return {
        "bool": "bool",
        "int": "an integer dtype: int64, int32, int16, int8 or uint8",
        "float": "float16, bfloat16, float32 or float64",
    }[type_]


def _expected(argument: TensorArgument, sizes: Sizes) -> str:
    if not argument.dims:
        return "() (a scalar)"
    lengths = ", ".join("any" if length is None else str(length(sizes)) for length in argument.dims)
    comma = "," if len(argument.dims) == 1 else ""
    return f"({lengths}{comma}), which is [{', '.join(argument.labels)}]"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _as_float(name: str, number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        raise ValueError(f"{name} is a number of {int(number).bit_length()} bits, too large for a float64") from None


def kind_of(given: object) -> str:
    """Name the type of an argument, with an article, and with its library where that is neither Python nor torch."""
    if given is None:
        return "None"
    home, name = type(given).__module__.partition(".")[0], type(given).__name__
    name = name if home in ("builtins", "torch") else f"{home}.{name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
