"""Causal scans against their definition in float64: values, states, derivatives, and the ways of calling them."""

import pytest
import torch
from scans import FORMS, LENGTHS, Scan, definition, end_of_definition, make_scan
from torch.autograd import gradcheck, gradgradcheck

from attnc.runtime.scan import causal_scan


def check_scan(scan, *, chunk=64, rtol=1e-10, **options):
    out, end, log = causal_scan(*scan.tensors, chunk=chunk, return_state=True, **scan.options, **options)
    torch.testing.assert_close(out, definition(scan), rtol=rtol, atol=rtol, check_dtype=False)
    torch.testing.assert_close(end, end_of_definition(scan, log), rtol=rtol, atol=rtol, check_dtype=False)
    assert (log is None) == (scan.keys is None and scan.state_log is None)
    alone, *nothing = causal_scan(*scan.tensors, chunk=chunk, **scan.options, **options)
    assert torch.equal(alone, out)
    assert nothing == [None, None]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_states(length, form, reverse):
    for state in ("none", "plain", "with log"):
        check_scan(make_scan(length, 5, 3, form=form, state=state, reverse=reverse))
        check_scan(make_scan(length, 4, 7, (2, 6, 6, 3, 2), form=form, state=state, reverse=reverse), chunk=16)


@pytest.mark.parametrize("size", [(1, 1), (16, 65), (33, 16), (64, 1)])
def test_sizes(size):
    check_scan(make_scan(150, *size, form="decay", state="with log"), chunk=32)


def test_slabs_of_a_few_chunks(monkeypatch):
    monkeypatch.setattr("attnc.runtime.scan_torch.SLAB_NUMBERS", 5000)
    for form in FORMS:
        for reverse in (False, True):
            check_scan(make_scan(257, 5, 3, form=form, state="with log", reverse=reverse), chunk=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_wide(dtype):
    scan = make_scan(200, 16, 8, form="decay", state="plain").to(dtype)
    for wanted in (None, torch.float32):
        out, end, log = causal_scan(*scan.tensors, **scan.options, return_state=True, out_dtype=wanted)
        assert out.dtype == (wanted or dtype)
        assert end.dtype == torch.float32
        tight = {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(end, end_of_definition(scan, log).float(), **tight)
        if out.dtype is torch.float32:
            torch.testing.assert_close(out, definition(scan).float(), **tight)
        else:
            torch.testing.assert_close(out, definition(scan).to(dtype))


def test_weights_keep_their_precision_at_far_positions():
    """`0.5 ** (i - j)` at a million: both logs are near 700000 there, and their sum is near 0."""
    near = make_scan(150, 8, 4, form="decay").to(torch.float32)
    shift = near.keys[..., 1:2] * 1e6
    far = near.replaced(rows=near.rows - shift, keys=near.keys + shift)
    out, *_ = causal_scan(*far.tensors, **far.options)
    torch.testing.assert_close(out, definition(near).float(), rtol=1e-5, atol=1e-5)


def test_any_strides():
    scan = make_scan(100, 6, 5, form="decay")
    out, *_ = causal_scan(*scan.tensors, **scan.options)
    for order in ((0, 2, 1, 3), (3, 2, 1, 0), (2, 0, 1, 3)):
        back = sorted(range(4), key=order.__getitem__)
        changed = [part.permute(order).contiguous().permute(back) for part in scan.tensors[:3]]
        torch.testing.assert_close(causal_scan(*changed, *scan.tensors[3:], **scan.options)[0], out)


@pytest.mark.parametrize("length", [1, 5, 20])
def test_results_are_contiguous(length):
    """As the operator tells what compiles it."""
    scan = make_scan(length, 6, 5, (2, 3, 3, 3, 3), form="decay", state="with log")
    changed = scan.replaced(
        state=scan.state.mT.contiguous().mT,
        y=scan.y.mT.contiguous().mT,
        state_log=scan.state_log.expand(2, -1).mT.contiguous().mT,
    )
    assert all(part.is_contiguous() for part in causal_scan(*changed.tensors, chunk=8, return_state=True))


def test_no_rows():
    scan = make_scan(0, 3, 2, form="decay", state="with log")
    out, end, log = causal_scan(*scan.tensors, **scan.options, return_state=True)
    assert out.shape == (2, 2, 0, 2)
    torch.testing.assert_close(end, scan.state)
    torch.testing.assert_close(log, scan.state_log)
    assert end.data_ptr() != scan.state.data_ptr()


@pytest.mark.parametrize("form", FORMS)
def test_one_form_continues_another(form):
    """All pairs, chunks, steps of one row with the state carried on, and pieces of any length give the same."""
    scan = make_scan(37, 5, 3, form=form)
    whole = definition(scan)
    for pieces in ([1] * 37, [20, 1, 16], [5, 32]):
        state = log = None
        found = []
        for piece in torch.arange(37).split(pieces):
            x, y, z, rows, keys = (None if part is None else part[:, :, piece] for part in scan.tensors[:5])
            out, state, log = causal_scan(x, y, z, rows, keys, state, log, chunk=8, return_state=True, heads=2)
            found.append(out)
        torch.testing.assert_close(torch.cat(found, 2), whole)


def differentiable(scan):
    """Return the inputs that derivatives are taken of, and a function of them that gives output and whole end sums.

    Logs are smaller than those of the other tests: end sums with their weights are to be near 1.
    """
    rows, keys = (None if part is None else 0.1 * part for part in (scan.rows, scan.keys))
    scan = scan.replaced(rows=rows, keys=keys)
    inputs = [None if part is None else part.clone().requires_grad_() for part in scan.tensors[:6]]
    given = [part for part in inputs if part is not None]

    def compute(*values):
        left = iter(values)
        parts = [None if part is None else next(left) for part in inputs]
        out, end, log = causal_scan(*parts, scan.state_log, chunk=3, return_state=True, **scan.options)
        return out, end if log is None else end * log.exp()[..., None, None]

    return compute, given


GROUPS = [(2, 2, 2, 2, 2), (1, 4, 4, 2, 1), (2, 4, 1, 2, 4)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_derivatives(groups, reverse):
    for form, state in (("decay", "with log"), ("plain", "plain"), ("rows", "none")):
        compute, given = differentiable(make_scan(4, 2, 1, groups, form=form, state=state, reverse=reverse))
        assert gradcheck(compute, given, check_forward_ad=True, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
def test_derivatives_of_derivatives(groups, reverse):
    for form, state in (("decay", "with log"), ("plain", "plain"), ("rows", "none")):
        compute, given = differentiable(make_scan(4, 2, 1, groups, form=form, state=state, reverse=reverse))
        assert gradcheck(compute, given, check_forward_ad=True)
        assert gradgradcheck(compute, given, check_fwd_over_rev=True, fast_mode=True)


def test_second_derivatives():
    compute, given = differentiable(make_scan(4, 2, 1, form="decay", state="with log"))
    assert gradgradcheck(compute, given, check_fwd_over_rev=True, fast_mode=True)


def test_transforms():
    scan = make_scan(5, 2, 2, form="decay", state="with log")

    def of_key(y):
        out, end, _ = causal_scan(scan.x, y, *scan.tensors[2:], return_state=True, chunk=2, **scan.options)
        return out.pow(2).sum() + end.pow(3).sum()

    backward = torch.func.jacrev(torch.func.jacrev(of_key))(scan.y)
    torch.testing.assert_close(torch.func.hessian(of_key)(scan.y), backward)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(of_key))(scan.y), backward)


@pytest.mark.parametrize("batched", [("x",), ("y", "rows"), ("z", "state"), ("rows", "keys"), ("state_log", "state")])
def test_vmap(batched):
    scan = make_scan(9, 3, 2, (2, 4, 4, 2, 1), form="decay", state="with log")
    many = {name: torch.stack([getattr(scan, name), 0.5 * getattr(scan, name) - 1.0], -1) for name in batched}

    def compute(values):
        changed = scan.replaced(**values)
        return causal_scan(*changed.tensors, return_state=True, chunk=4, **changed.options)

    found = torch.func.vmap(compute, in_dims=-1)(many)
    single = [compute({name: values[..., number] for name, values in many.items()}) for number in range(2)]
    for part, parts in zip(found, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(parts))


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compile(dynamic):
    def loss(*tensors):
        out, end, log = causal_scan(*tensors, return_state=True, chunk=4)
        return out.sin().sum() + (end * log.exp()[..., None, None]).cos().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (9, 12):
        scan = make_scan(length, 3, 2, form="decay", state="with log")
        given = [part.clone().requires_grad_() for part in scan.tensors[:6]]
        expected = torch.autograd.grad(loss(*given, scan.state_log), given)
        torch.testing.assert_close(torch.autograd.grad(compiled(*given, scan.state_log), given), expected)


@pytest.mark.slow
def test_operator():
    scan = make_scan(9, 3, 2, form="decay", state="with log")
    options = (2, False, 4, True, torch.float64)
    torch.library.opcheck(torch.ops.attnc.causal_scan_1, (*scan.tensors, *options))
    given = [part.clone().requires_grad_() for part in scan.tensors[:3]]
    torch.library.opcheck(torch.ops.attnc.causal_scan_1, (*given, None, None, None, None, *options))


def test_autocast_changes_nothing():
    scan = make_scan(70, 8, 8, form="plain").to(torch.float32)
    expected = causal_scan(*scan.tensors)[0]
    x = scan.x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = causal_scan(x, *scan.tensors[1:])[0]
        out.sum().backward()
    torch.testing.assert_close(out, expected)
    y = scan.x.clone().requires_grad_()
    causal_scan(y, *scan.tensors[1:])[0].sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y": torch.zeros(2, 2, 9, 4)}, "y is"),
        ({"z": torch.zeros(2, 3, 9, 2)}, "heads"),
        ({"rows": torch.zeros(2, 2, 8)}, "row_logs is"),
        ({"keys": torch.zeros(3, 2, 9)}, "key_logs is"),
        ({"state": torch.zeros(2, 2, 3, 3)}, "state is"),
        ({"state": None}, "state_log is the log"),
    ],
)
def test_shapes_that_do_not_fit(changed, said):
    scan = make_scan(9, 3, 2, form="decay", state="with log").replaced(**changed)
    with pytest.raises(ValueError, match=said):
        causal_scan(*scan.tensors, **scan.options)


def test_the_definition_itself():
    """One pair by hand."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    scan = Scan(2 * one, 3 * one, 5 * one, -2 * one[..., 0], one[..., 0], 7 * one, one[..., 0, 0] - 1, 1, False)
    expected = 30 * torch.e**-1 + 14 * torch.e**-2
    assert abs(definition(scan).item() - expected) < 1e-12
    assert abs(causal_scan(*scan.tensors)[0].item() - expected) < 1e-12
