"""What a layer means: dense matrices, sequences walked position by position, everything in one precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from attnc.ir.matrices import LayerSizes, Matrix, layer_matrices, layer_sizes
from attnc.ir.nodes import Const, IndexName, SizeName
from attnc.ir.program import ORIGINAL_KEYS, AlignKind, Attention, Layer
from attnc.reference.dense import Inputs, pair_environment, reference
from attnc.reference.tensors import TensorEnvironment, evaluate_tensor

State = Mapping[str, Tensor]
"""The state dict of a layer."""


def layer_reference(
    layer: Layer,
    state: State,
    x: Tensor,
    context: Tensor | None = None,
    inputs: Inputs | None = None,
    *,
    causal: frozenset[str] = frozenset(),
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Compute a layer densely and eagerly; differentiable by autograd.

    Args:
        layer: all of whose parameters have values.
        state: the parameters, by their names in the state dict.
        x: (B, N, width).
        context: (B, M, width); None for `x`.
        inputs: of the attention.
        causal: names of projections whose kernels read no later position.
        dtype: what everything is computed in.
    """
    sizes = layer_sizes(layer)
    assert sizes is not None
    assert layer.attend is not None
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    matrices = {matrix.name: matrix for matrix in layer_matrices(layer, sizes)}
    x = x.to(dtype)

    def project(name: str, features: Tensor) -> Tensor:
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        return _project(matrices[name], own, features, causal=name in causal)

    normed = _norm(layer, x, state.get("attention_norm.weight"))
    source = normed if context is None else _norm(layer, context.to(dtype), state.get("attention_norm.weight"))
    heads = {"query": sizes.heads, "key": sizes.kv_heads, "value": sizes.kv_heads}
    query, key, value = (
        torch.unflatten(project(name, normed if name == "query" else source), 2, (count, -1)).transpose(1, 2)
        for name, count in heads.items()
    )
    learned = {one.name: state[f"attend.{one.name}"] for one in layer.attend.learned}
    given = {**dict(inputs or {}), **learned}
    if isinstance(layer.theta, Const):
        at_queries = _query_positions(layer.attend, sizes, x, source, given)
        query = _rotate(query, at_queries, float(layer.theta.value))
        key = _rotate(key, torch.arange(key.shape[2]) * matrices["key"].stride, float(layer.theta.value))
    attended = reference(layer.attend, query, key, value, given, dtype=dtype)
    assert isinstance(attended, Tensor)
    y = x + project("output", attended.transpose(1, 2).flatten(2))
    if layer.feedforward is None:
        return y
    normed = _norm(layer, y, state.get("feedforward_norm.weight"))
    if layer.feedforward.form == "gelu":
        return y + project("down", functional.gelu(project("up", normed)))
    return y + project("down", functional.silu(project("gate", normed)) * project("up", normed))


def dense_matrix(matrix: Matrix, state: State) -> Tensor:
    """Return the matrix of a structure (the pointwise one of a convolution) from its free parameters."""
    rows, columns, structure = matrix.rows, matrix.columns, matrix.projection.structure
    some = next(iter(state.values()))
    dense = some.new_zeros(rows, columns)
    match structure:
        case "low_rank":
            return state["up"] @ state["down"]
        case "block_diagonal":
            return _block_diagonal(dense, state["blocks"])
        case "monarch":
            return _monarch(matrix, state)
        case "banded":
            reach = matrix.number("width") * max(rows, columns)
            i, j = torch.arange(rows)[:, None], torch.arange(columns)
            index = ((i * columns - j * rows).abs() < reach).nonzero()
        case "masked":
            at = {IndexName.QUERY: torch.arange(rows)[:, None], IndexName.KEY: torch.arange(columns)}
            allowed = evaluate_tensor(matrix.expr("condition"), TensorEnvironment(indices=at))
            index = allowed.expand(rows, columns).nonzero()
        case _:
            return state["weight"]
    return dense.index_put((index[:, 0], index[:, 1]), state["values"])


def _block_diagonal(dense: Tensor, blocks: Tensor) -> Tensor:
    count, rows, columns = blocks.shape
    i, j = torch.arange(rows)[:, None], torch.arange(columns)
    for number in range(count):
        dense = dense.index_put((i + number * rows, j + number * columns), blocks[number])
    return dense


def _monarch(matrix: Matrix, state: State) -> Tensor:
    """Join each group of inputs with each block of outputs by the numbers of the middle layer that both have."""
    first, second = state["first"], state["second"]
    blocks, middle, _ = first.shape
    parts = []
    for block in range(blocks):
        for group in range(blocks):
            shared = [m for m in range(group * middle, (group + 1) * middle) if m % blocks == block]
            left = second[block][:, [m // blocks for m in shared]]
            parts.append(left @ first[group][[m % middle for m in shared]])
    spread = torch.unflatten(torch.stack(parts), 0, (blocks, blocks))  # block, group, output, input
    return spread.permute(2, 0, 1, 3).reshape(matrix.rows, matrix.columns)


def _project(matrix: Matrix, state: State, x: Tensor, *, causal: bool) -> Tensor:
    dense = dense_matrix(matrix, state)
    match matrix.projection.structure:
        case "conv":
            return _convolve(matrix, state["kernel"], x, causal=causal) @ dense.transpose(0, 1)
        case "conv2d":
            return _convolve_grid(matrix, state["kernel"], x) @ dense.transpose(0, 1)
        case _:
            return x @ dense.transpose(0, 1)


def _convolve(matrix: Matrix, kernel: Tensor, x: Tensor, *, causal: bool) -> Tensor:
    size = matrix.number("kernel")
    after = 0 if causal else (size - 1) // 2
    outputs = []
    for centre in range(0, x.shape[1], matrix.stride):
        taps = [(tap, centre + after - (size - 1) + tap) for tap in range(size)]
        terms = [x[:, place] * kernel[:, tap] for tap, place in taps if 0 <= place < x.shape[1]]
        outputs.append(sum(terms, torch.zeros_like(x[:, 0])))
    return torch.stack(outputs, 1)


def _convolve_grid(matrix: Matrix, kernel: Tensor, x: Tensor) -> Tensor:
    width, size, stride = (matrix.number(name) for name in ("width", "kernel", "stride"))
    height, outputs = x.shape[1] // width, []
    for row in range(0, height, stride):
        for column in range(0, width, stride):
            total = torch.zeros_like(x[:, 0])
            for down in range(size):
                for across in range(size):
                    i, j = row + down - size // 2, column + across - size // 2
                    if 0 <= i < height and 0 <= j < width:
                        total = total + x[:, i * width + j] * kernel[:, down, across]
            outputs.append(total)
    return torch.stack(outputs, 1)


def _norm(layer: Layer, x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x
    if layer.norm == "layer":
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn pairs of features as complex numbers."""
    half = x.shape[-1] // 2
    speeds = torch.tensor([theta ** (-2 * t / x.shape[-1]) for t in range(half)], dtype=torch.float64)
    turns = torch.polar(torch.ones(half, dtype=torch.float64), positions[..., None] * speeds)
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * turns
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def _query_positions(attention: Attention, sizes: LayerSizes, x: Tensor, source: Tensor, inputs: Inputs) -> Tensor:
    queries, keys = x.shape[1], source.shape[1]
    if attention.align.kind is not AlignKind.AT:
        return torch.arange(queries) + (keys - queries if attention.align.kind is AlignKind.END else 0)
    shape = {
        SizeName.BATCH: x.shape[0],
        SizeName.HEADS: sizes.heads,
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.HEAD_SIZE: sizes.head_size,
        SizeName.GROUP: sizes.heads // sizes.kv_heads,
    }
    known = {**inputs, ORIGINAL_KEYS: torch.tensor(keys)}
    given = {one.name: known[one.name] for one in attention.tensors}
    found = pair_environment(attention, shape, given).indices[IndexName.QUERY]
    return found.expand(x.shape[0], sizes.heads, queries, 1)[..., 0]
