"""Wrong arguments: each message names the argument, what it is and what was expected."""

import numpy as np
import pytest
import torch
from patterns import PATTERNS, module_of

import attnc

MODULE = module_of(PATTERNS["packed"])


def arguments(**changes):
    given = {
        "query": torch.zeros(2, 4, 10, 8),
        "key": torch.zeros(2, 2, 12, 8),
        "value": torch.zeros(2, 2, 12, 6),
        "doc": torch.zeros(2, 12, dtype=torch.long),
        "slope": torch.zeros(4),
    }
    return {**given, **changes}


def test_right_arguments_pass():
    assert MODULE.packed(**arguments()).shape == (2, 4, 10, 6)
    assert MODULE.packed(**arguments(doc=torch.zeros(1, 12, dtype=torch.int32), slope=torch.zeros(1))) is not None


@pytest.mark.parametrize(
    ("changes", "kind", "parts"),
    [
        ({"query": [[1.0]]}, TypeError, ["query", "a list", "tensor (B, H, N, D)"]),
        ({"query": torch.zeros(4, 10, 8)}, ValueError, ["query", "(4, 10, 8)", "4 dimensions"]),
        ({"query": torch.zeros(2, 4, 10, 8, dtype=torch.long)}, ValueError, ["query", "int64", "float16"]),
        ({"query": torch.zeros(2, 4, 0, 8)}, ValueError, ["query", "(2, 4, 0, 8)", "at least 1"]),
        ({"key": torch.zeros(2, 2, 12, 8, dtype=torch.float64)}, ValueError, ["key", "float64", "float32"]),
        ({"key": torch.zeros(2, 2, 12, 8, device="meta")}, ValueError, ["key", "meta", "cpu"]),
        ({"key": torch.zeros(1, 2, 12, 8)}, ValueError, ["key", "batch size 1", "2"]),
        ({"key": torch.zeros(2, 3, 12, 8)}, ValueError, ["key", "3 heads", "divisor of the 4"]),
        ({"key": torch.zeros(2, 2, 12, 9)}, ValueError, ["key", "head size 9", "8"]),
        ({"key": torch.zeros(2, 2, 0, 8)}, ValueError, ["key", "(2, 2, 0, 8)", "at least 1"]),
        ({"value": torch.zeros(2, 2, 11, 6)}, ValueError, ["value", "(2, 2, 11, 6)", "(2, 2, 12, E)"]),
        ({"value": torch.zeros(2, 4, 12, 6)}, ValueError, ["value", "(2, 4, 12, 6)", "(2, 2, 12, E)"]),
        ({"value": torch.zeros(2, 2, 12, 6).half()}, ValueError, ["value", "float16", "float32"]),
        ({"value": None}, TypeError, ["value", "None", "tensor"]),
        ({"doc": torch.zeros(2, 11, dtype=torch.long)}, ValueError, ["doc", "(2, 11)", "(2, 12)", "[B, M]"]),
        ({"doc": torch.zeros(2, 12)}, ValueError, ["doc", "float32", "integer"]),
        ({"doc": 3}, TypeError, ["doc", "an int", "tensor (2, 12)"]),
        ({"doc": torch.zeros(12, dtype=torch.long)}, ValueError, ["doc", "(12,)", "(2, 12)"]),
        ({"doc": torch.zeros(2, 12, dtype=torch.long, device="meta")}, ValueError, ["doc", "meta", "cpu"]),
        ({"slope": torch.zeros(3)}, ValueError, ["slope", "(3,)", "(4,)", "[H]"]),
        ({"scale": "1"}, TypeError, ["scale", "a str", "number"]),
        ({"scale": torch.tensor(1.0)}, TypeError, ["scale", "a Tensor", "number"]),
        ({"scale": True}, TypeError, ["scale", "a bool", "number"]),
        ({"return_lse": 1}, TypeError, ["return_lse", "an int", "bool"]),
        ({"precision": "fp8"}, ValueError, ["precision", "'fp8'", "'tf32'"]),
        ({"precision": ["ieee"]}, ValueError, ["precision", "['ieee']", "'tf32'"]),
        ({"precision": np.zeros(2)}, ValueError, ["precision", "array", "'tf32'"]),
        ({"scale": 10**400}, ValueError, ["scale", "1329 bits", "float64"]),
        ({"scale": np.bool_(1)}, TypeError, ["scale", "a numpy.bool", "number"]),
        ({"query": np.zeros((2, 4, 10, 8))}, TypeError, ["query", "a numpy.ndarray", "tensor"]),
        ({"query": torch.zeros(2, 4, 10, 8).to_sparse()}, ValueError, ["query", "sparse_coo", "dense"]),
        ({"query": torch.zeros(2, 4, 10, 8) + 0j}, ValueError, ["query", "complex64", "float16"]),
        ({"doc": torch.zeros(2, 12, dtype=torch.long).to_sparse()}, ValueError, ["doc", "sparse_coo", "dense"]),
        ({"doc": torch.zeros(2, 12, dtype=torch.bool)}, ValueError, ["doc", "bool", "integer"]),
        ({"doc": torch.zeros(2, 12).to(torch.uint16)}, ValueError, ["doc", "uint16", "uint8"]),
        ({"doc": None}, TypeError, ["doc", "None", "tensor (2, 12)"]),
        ({"slope": torch.zeros(4).to_sparse()}, ValueError, ["slope", "sparse_coo", "dense"]),
        ({"slope": torch.zeros(4, dtype=torch.long)}, ValueError, ["slope", "int64", "float32"]),
        ({"slope": torch.zeros(4) + 0j}, ValueError, ["slope", "complex64", "float32"]),
        ({"slope": torch.tensor(1.0)}, ValueError, ["slope", "()", "(4,)"]),
    ],
)
def test_a_wrong_argument_is_named(changes, kind, parts):
    with pytest.raises(kind) as caught:
        MODULE.packed(**arguments(**changes))
    message = str(caught.value)
    assert message.startswith(parts[0])
    for part in parts:
        assert part in message
    with pytest.raises(kind):
        MODULE.packed_reference(**arguments(**changes))


def test_missing_and_unknown_keywords():
    given = arguments()
    del given["doc"]
    with pytest.raises(TypeError, match="doc"):
        MODULE.packed(**given)
    with pytest.raises(TypeError, match="docs"):
        MODULE.packed(**arguments(), docs=1)


def test_no_log_sum_exp_without_softmax():
    module = module_of(PATTERNS["relu"])
    query = torch.zeros(1, 1, 3, 4)
    with pytest.raises(ValueError, match=r"return_lse.*relu.*only softmax"):
        module.rectified(query, query, query, return_lse=True)


def test_scalar_inputs():
    module = module_of("attention scalars { input cut: int\n input on: bool\n input beta: float\n"
                       " mask j < cut or on\n score beta * s }")  # fmt: skip
    query = torch.randn(1, 1, 5, 4)
    run = module.scalars
    expected = run(query, query, query, cut=3, on=False, beta=2.0)
    tensors = {"cut": torch.tensor(3), "on": torch.tensor(False), "beta": torch.tensor(2.0)}
    torch.testing.assert_close(run(query, query, query, **tensors), expected)
    torch.testing.assert_close(run(query, query, query, cut=3, on=False, beta=2), expected)
    for wrong in ({"cut": 3.5}, {"cut": True}, {"on": 1}, {"beta": "2"}, {"cut": None}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            run(query, query, query, **{"cut": 3, "on": False, "beta": 2.0, **wrong})
    with pytest.raises(ValueError, match=r"cut.*64 bits"):
        run(query, query, query, cut=2**64, on=False, beta=2.0)
    with pytest.raises(ValueError, match=r"beta.*\(1,\).*scalar"):
        run(query, query, query, cut=3, on=False, beta=torch.ones(1))


@pytest.mark.parametrize("rows", [[10], [-11], 1.5, [[1]], torch.tensor([1.0])])
def test_wrong_rows(rows):
    given = arguments()
    with pytest.raises((TypeError, ValueError), match="rows"):
        MODULE.packed_weights(given["query"], given["key"], rows=rows, doc=given["doc"], slope=given["slope"])


@pytest.mark.parametrize(("name", "size"), [("N", 0), ("M", -1), ("B", 0), ("H", 1.0)])
def test_wrong_sizes_of_a_mask(name, size):
    sizes = {"N": 3, "M": 3, "B": 1, "H": 1, name: size}
    with pytest.raises((TypeError, ValueError), match=name):
        MODULE.packed_mask(**sizes, doc=torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.zeros(4, 10, 8)])
    with pytest.raises(ValueError, match=r"^query is a nested tensor, expected a dense one"):
        MODULE.packed(**arguments(query=nested))


SCALARS = attnc.loads("attention foo { input n: int\n input x: float\n input on: bool\n mask on and j < n\n scale x }")


@pytest.mark.parametrize(
    ("name", "given", "kind", "part"),
    [
        ("n", 3.0, TypeError, "a float, expected an int"),
        ("n", True, TypeError, "a bool, expected an int"),
        ("n", None, TypeError, "None, expected an int"),
        ("n", np.float64(3), TypeError, "a numpy.float64, expected an int"),
        ("n", np.bool_(True), TypeError, "a numpy.bool, expected an int"),
        ("n", np.uint64(2**63), ValueError, "9223372036854775808, expected an integer of 64 bits"),
        ("n", np.array([3]), TypeError, "a numpy.ndarray, expected an int"),
        ("n", 2**63, ValueError, "9223372036854775808, expected an integer of 64 bits"),
        ("n", torch.tensor([3]), ValueError, "shape (1,), expected () (a scalar)"),
        ("n", torch.tensor(3.0), ValueError, "float32, expected an integer dtype"),
        ("x", "1", TypeError, "a str, expected a number"),
        ("x", 1j, TypeError, "a complex, expected a number"),
        ("x", True, TypeError, "a bool, expected a number"),
        ("x", 10**400, ValueError, "1329 bits, too large for a float64"),
        ("x", torch.tensor([3]), ValueError, "shape (1,), expected () (a scalar)"),
        ("x", torch.tensor(True), ValueError, "bool, expected float16"),
        ("on", 1, TypeError, "an int, expected a bool"),
        ("on", np.int64(1), TypeError, "a numpy.int64, expected a bool"),
        ("on", torch.tensor(1), ValueError, "int64, expected bool"),
    ],
)
def test_scalars(name, given, kind, part):
    query = torch.zeros(1, 1, 4, 8)
    right = {"n": 3, "x": 1.0, "on": True}
    assert SCALARS.foo(query, query, query, **right).shape == query.shape
    tensors = {"n": torch.tensor(3, dtype=torch.int8), "x": torch.tensor(1.0), "on": torch.tensor(True)}
    assert SCALARS.foo(query, query, query, **tensors).shape == query.shape
    with pytest.raises(kind) as caught:
        SCALARS.foo(query, query, query, **{**right, name: given})
    assert str(caught.value).startswith(f"{name} ")
    assert part in str(caught.value)


@pytest.mark.parametrize("target", ["torch", "triton"])
@pytest.mark.parametrize(
    "given",
    [
        {"n": np.int64(3), "x": np.float32(0.5), "on": np.bool_(True)},
        {"n": np.uint8(3), "x": np.float16(0.5), "on": np.array(True)},
        {"n": np.array(3), "x": np.array(0.5)},
        {"n": torch.tensor(3, dtype=torch.uint8), "x": torch.tensor(0.5, dtype=torch.float64)},
        {"scale": np.float32(0.25)},
        {"scale": np.int64(1)},
        {"x": np.int64(2)},
        {"x": torch.tensor(2)},
    ],
)
def test_numbers_of_other_libraries(given, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    query, key, value = (torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    right = {"n": 3, "x": 0.5, "on": True}
    plain = {name: item.item() for name, item in given.items()}
    for function in (SCALARS.foo, SCALARS.foo_reference):
        expected = function(query, key, value, **right | plain)
        torch.testing.assert_close(function(query, key, value, **right | given), expected)


def test_kernels_name_a_head_size_that_is_too_large(monkeypatch):
    plain = attnc.loads("attention foo { mask causal }")
    small, large = torch.randn(1, 1, 4, 16), torch.randn(1, 1, 4, 257)
    expected = plain.foo_reference(large, large, small)
    torch.testing.assert_close(plain.foo(large, large, small), expected)
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    with pytest.raises(ValueError, match=r"^query has head size 257, but the kernel of foo takes up to 256"):
        plain.foo(large, large, small)
    with pytest.raises(ValueError, match=r"^value has head size 257, but the kernel of foo takes up to 256"):
        plain.foo(small, small, large)


@pytest.mark.parametrize(
    ("rows", "kind", "part"),
    [
        (slice(0, 3), TypeError, "a slice"),
        (None, TypeError, "None"),
        ("12", TypeError, "a str"),
        ([1.5], TypeError, "a float"),
        ([True], TypeError, "a bool"),
        (torch.tensor([1.5]), TypeError, "float32 (1,)"),
        (torch.tensor([[1]]), TypeError, "int64 (1, 1)"),
        ([10], ValueError, "between 0 and 9, got [10]"),
    ],
)
def test_rows_of_weights(rows, kind, part):
    given = arguments()
    del given["value"]
    with pytest.raises(kind) as caught:
        MODULE.packed_weights(**given, rows=rows)
    assert str(caught.value).startswith("rows ")
    assert part in str(caught.value)


def test_rows_may_be_said_in_many_ways():
    given = arguments()
    del given["value"]
    for rows, count in ((3, 1), ([], 0), ([0, -1], 2), (range(4), 4), (torch.tensor([1, 2]), 2), (np.arange(3), 3)):
        assert MODULE.packed_weights(**given, rows=rows).shape == (2, 4, count, 12)


@pytest.mark.parametrize(
    ("options", "kind", "part"),
    [
        ({}, TypeError, "'H'"),
        ({"H": 0}, ValueError, "H is 0, expected at least 1"),
        ({"H": "4"}, TypeError, "H is a str, expected an int"),
        ({"H": True}, TypeError, "H is a bool, expected an int"),
        ({"H": 4, "D": 8}, TypeError, "'D'"),
        ({"H": 4, "dtype": torch.int64}, ValueError, "dtype is int64, expected a floating-point one"),
        ({"H": 4, "dtype": "float32"}, TypeError, "dtype is a str, expected a torch.dtype"),
    ],
)
def test_wrong_constructor_arguments(options, kind, part):
    with pytest.raises(kind) as caught:
        MODULE.Packed(**options)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "kind", "part"),
    [
        ((0, 4), ValueError, "N is 0, expected at least 1"),
        ((4.0, 4), TypeError, "N is a float, expected an int"),
        ((4, True), TypeError, "M is a bool, expected an int"),
    ],
)
def test_sizes_of_masks(sizes, kind, part):
    with pytest.raises(kind, match=part):
        MODULE.packed_mask(*sizes, doc=torch.zeros(1, 4, dtype=torch.long))


def test_limits_that_would_wrap_around():
    module = attnc.loads("attention limited { input w: int; mask i - j < w }")
    tensors = [torch.randn(1, 1, 5, 8) for _ in range(3)]
    for limit in (2**48, -(2**48)):
        found = module.limited(*tensors, w=limit)
        assert torch.allclose(found, module.limited_reference(*tensors, w=limit), atol=1e-6)
    with pytest.raises(ValueError, match=r"w is 9223372036854775807, expected at most 2\*\*48"):
        module.limited(*tensors, w=2**63 - 1)
