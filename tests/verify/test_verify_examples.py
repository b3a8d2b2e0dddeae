"""The shipped examples, compiled and verified: sets by brute force, outputs, gradients and kernels by the reference."""

from pathlib import Path

import pytest

from attnc.compiler import plan_source
from attnc.files import read_pattern
from attnc.verify import sets
from attnc.verify.kernels import KernelWorker
from attnc.verify.programs import check_companions, check_gradients, check_outputs
from attnc.verify.run import variants, verify_compiled
from attnc.verify.trials import trials

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
EXPECTED = {
    "alibi", "bert", "bigbird", "chunked", "cross", "dilated", "gemma", "gpt", "longformer", "neighborhood", "packed",
    "prefix_lm", "relative", "sigmoid", "sink_softmax", "sparse_transformer", "streaming", "tempered",
}  # fmt: skip
LONG = {"bigbird", "sparse_transformer", "dilated", "tempered", "bert", "chunked", "prefix_lm", "sink_softmax"}


def test_every_example_is_here():
    assert {path.stem for path in EXAMPLES} >= EXPECTED


def quick(path):
    """Put off the examples that have the most plans and passes, and those that are much like another one."""
    marks = [pytest.mark.slow] if path.stem in LONG else []
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", [quick(path) for path in EXAMPLES])
def test_an_example_at_some_sizes(path):
    checked = 0
    for variant in variants(plan_source(read_pattern(path)), {}):
        plan = variant.plan
        for trial in (trials(plan)[2], trials(plan)[5]):
            sets.check_facts(plan, trial)
            sets.check_counts(plan, trial)
            sets.check_tiles(plan, trial)
            ratio = check_outputs(variant.module, plan, trial)
            assert ratio is not None
            check_companions(variant.module, plan, trial)
            check_gradients(variant.module, plan, trial)
            checked += 1
    assert checked >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_at_all_sizes_and_in_the_interpreter(path):
    with KernelWorker() as worker:
        outcomes = verify_compiled(plan_source(read_pattern(path)), {}, worker)
    assert outcomes
    for outcome in outcomes:
        assert not outcome.problem, outcome
        assert outcome.cases or outcome.note, outcome
