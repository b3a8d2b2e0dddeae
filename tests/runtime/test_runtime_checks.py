"""Wrong arguments: each message names the argument, what it is and what was expected."""

import pytest
import torch
from patterns import PATTERNS, module_of

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
