"""Patterns, tensors for them, and the oracle, for the tests of generated modules."""

import hashlib
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnc.codegen.render import render_module
from attnc.plan.choose import plan_attention
from attnc.reference.dense import reference
from attnc.runtime.load import load_module
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

FOLDER = Path(tempfile.mkdtemp(prefix="attnc-tests-"))

PATTERNS = {
    "full": "attention full { mask true }",
    "causal": "attention causal_self { mask causal }",
    "window": "attention window_9 { mask causal and i - j < 9 }",
    "wide": "attention wide { mask window(40) }",
    "streaming": "attention streaming { mask causal and (i - j < 30 or sinks(3)) }",
    "longformer": "attention longformer { mask window(13) or globals(2) }",
    "strided": "attention strided { mask causal and (i - j < 16 or (i - j) % 16 == 0) }",
    "fixed": "attention fixed { mask causal and (i // 16 == j // 16 or j % 16 >= 14) }",
    "dilated": "attention dilated_window { mask causal and dilated(8, 3) }",
    "bigbird": "attention bigbird { mask abs(i // 8 - j // 8) <= 1 or globals(4) or random_blocks(8, 2, 7) }",
    "grid": "attention grid { mask grid_near(10, 2) }",
    "start": "attention at_start { align start\n mask j <= i }",
    "at": "attention at_place { input pos: int[B]\n align at(pos[b])\n mask causal and i - j < 20 }",
    "padded": "attention padded { input length: int[B]\n mask j < length[b] }",
    "heads": "attention heads { mask causal and i - j < 8 * (h + 1) }",
    "packed": "attention packed { input doc: int[B, M] sorted\n mask causal and same(doc)\n"
    " learned slope: float[H] = exp2(-8 * (h + 1) / H)\n score s + slope[h] * (j - i) }",
    "selected": "attention selected { input top: int[B, H, (N + 7) // 8, 2]\n"
    " mask causal and any(t < 2, j // 8 == top[b, h, r // 8, t]) }",
    "alibi": "attention alibi_fixed { mask causal\n score s + alibi }",
    "relative": "attention relative { learned bias: float[H, 21] = 0.0\n"
    " score s + bias[h, clamp(i - j, -10, 10) + 10] }",
    "gemma": "attention gemma { mask causal and i - j < 33\n score softcap(s, 3.0) }",
    "negative": "attention negative { mask window(20)\n score 0.5 - 2.0 * s }",
    "row_term": "attention row_term { learned u: float[H] = 1.0\n mask causal\n score s + u[h] * i }",
    "sink": "attention sinks_learned { learned sink: float[H] = 0.0\n mask window(10)\n"
    " normalize softmax(sink = sink[h] + 0.1 * i) }",
    "empty_sink": "attention empty_sink { learned sink: float[H] = 0.0\n mask j < i - 3\n"
    " normalize softmax(sink = sink[h]) }",
    "tempered": "attention tempered { input beta: float\n scale beta / sqrt(D) }",
    "scaled": "attention scaled { learned t: float[H] = 1.0\n mask causal\n scale t[h] * (1 + 0.1 * (i % 3)) }",
    "sigmoid": "attention gated { learned c: float[H] = 0.0\n mask causal\n normalize sigmoid(bias = c[h] - log(M)) }",
    "relu": "attention rectified { mask window(30)\n normalize relu(power = 2) }",
    "rows": "attention by_rows { mask causal\n score exp(s)\n normalize rows }",
    "none": "attention raw { input w: float[B, M]\n mask causal\n weight w[b, j]\n normalize none }",
    "weighted": "attention weighted { input w: float[B, M]\n mask window(30)\n weight abs(w[b, j]) + 0.1 }",
    "somewhere": "attention somewhere { learned t: float[H] = 0.0\n mask causal\n"
    " score log(s - 1) if s > 2 else s * t[h] }",
    "table": "attention table { input bias: float[N, M]\n mask causal\n score s + bias[i, j] }",
    "powers": "attention powers { mask causal and (i - j < 3 or any(t < 9, i - j == int(exp2(t)))) }",
    "gappy": "attention gappy { mask i % 7 != 3 and j <= i and j % 5 != 2 }",
    "nothing": "attention nothing { mask i < 0 }",
}
"""One of everything that the language offers, at sizes that tests can afford."""

WITHOUT_LSE = frozenset({"sigmoid", "relu", "rows", "none"})

FLOAT_INPUTS = {
    "slope": lambda n: (n["H"],),
    "bias": lambda n: (n["H"], 21) if n["pattern"] == "relative" else (n["N"], n["M"]),
    "u": lambda n: (n["H"],),
    "sink": lambda n: (n["H"],),
    "t": lambda n: (n["H"],),
    "c": lambda n: (n["H"],),
    "w": lambda n: (n["B"], n["M"]),
    "beta": lambda n: (),
}


@cache
def plans_of(text):
    """Take a pattern's text as far as its plans."""
    program = check_program(parse_source(SourceFile("test.attn", text)))
    return tuple(plan_attention(attention) for attention in program.attentions)


@cache
def attention_of(text):
    """Return the first attention as the checker leaves it, before any simplification."""
    return check_program(parse_source(SourceFile("test.attn", text))).attentions[0]


@cache
def module_of(text):
    """Compile a pattern's text and import the module."""
    return module_of_plans(plans_of(text), text)


def program_in(text, name):
    """Return the program of an attention of a pattern."""
    return vars(module_of(text))[f"_{name}_program"]


def module_of_plans(plans, text="", **options):
    """Render plans and import the module."""
    source = render_module(plans, source=SourceFile("test.attn", text), **options)
    path = FOLDER / f"m_{hashlib.sha256(source.encode()).hexdigest()[:16]}.py"
    path.write_text(source)
    return load_module(path)


def function_of(name):
    """Return the compiled function of one of `PATTERNS`."""
    text = PATTERNS[name]
    return getattr(module_of(text), attention_of(text).name)


def tensors(B=2, H=4, G=2, N=64, M=64, D=16, E=16, dtype=torch.float64, seed=0, grad=True):
    """Return random query, key and value."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((B, H, N, D), (B, G, M, D), (B, G, M, E))
    made = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_(grad) for tensor in made]


def inputs_for(name, query, key, grad=True, seed=1):
    """Return random inputs and learned tensors of one of `PATTERNS`."""
    draw = torch.Generator().manual_seed(seed)
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    sizes = {"B": batch, "H": heads, "N": queries, "M": keys, "pattern": name}
    made = {}
    for tensor in attention_of(PATTERNS[name]).tensors:
        match tensor.name:
            case "pos":
                made["pos"] = torch.tensor([keys - queries, -2, 5][:batch])
            case "length":
                made["length"] = torch.tensor([keys // 2, keys + 3, 0][:batch])
            case "doc":
                made["doc"] = torch.randint(0, 4, (batch, keys), generator=draw).sort(-1).values
            case "top":
                made["top"] = torch.randint(0, keys // 8 + 1, (batch, heads, (queries + 7) // 8, 2), generator=draw)
            case other:
                values = torch.randn(FLOAT_INPUTS[other](sizes), generator=draw, dtype=torch.float64)
                made[other] = values.to(query.dtype).requires_grad_(grad)
    return made


def differentiable(query, key, value, inputs):
    """Return everything that receives a gradient."""
    return [query, key, value, *(tensor for tensor in inputs.values() if tensor.is_floating_point())]


def oracle(name, query, key, value, inputs, return_lse, dtype=torch.float64):
    """Compute one of `PATTERNS` densely."""
    attention = attention_of(PATTERNS[name])
    return reference(attention, query, key, value, inputs, return_lse=return_lse, dtype=dtype)


def outputs_and_gradients(function, leaves, return_lse):
    """Call, and return outputs and the gradients of all leaves for fixed gradients of the outputs."""
    results = function()
    results = results if return_lse else (results,)
    draw = torch.Generator().manual_seed(3)
    grads = [torch.randn(result.shape, generator=draw, dtype=torch.float64).to(result.dtype) for result in results]
    if return_lse:
        grads[1] = torch.where(torch.isinf(results[1]), 0, grads[1])
    grads = [grad for grad, result in zip(grads, results, strict=True) if result.requires_grad]
    followed = [result for result in results if result.requires_grad]
    found = torch.autograd.grad(followed, leaves, grads, allow_unused=True) if followed else [None] * len(leaves)
    found = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves, strict=True)]
    return [*(result.detach() for result in results), *found]


class LargestStorage(TorchDispatchMode):
    """Remembers the largest storage, in elements, that any operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // max(leaf.element_size(), 1))
        return result
