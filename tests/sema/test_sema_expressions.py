"""Well-formed expressions of any type: the checker answers all of them, and what it accepts is well-typed IR."""

from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.diagnostics import CompileError
from attnc.ir.verify import verify
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

ATOMS = st.sampled_from(
    "i j b h r N M H D g s w x on t[0] t[j] doc[b, i] same(doc) causal alibi 0 1 2 3 -1 7 64 0.5 -2.5 1e3 inf pi true "
    "false 9223372036854775807 doc t K first(j)".replace("doc[b, i]", "doc[b,i]").split(" ")
)


OPERATORS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "<", "<=", "==", "!=", "and", "or"])
ONE = st.sampled_from(["abs", "exp", "floor", "int", "float", "hash", "window", "chunk", "last", "-", "not ", "+"])
TWO = st.sampled_from(["min", "max", "softcap", "hash"])
THREE = st.sampled_from(["clamp", "where"])
QUANTIFIERS = st.sampled_from(["any", "all", "sum"])


def compound(inner):
    return st.one_of(
        st.builds("({0} {1} {2})".format, inner, OPERATORS, inner),
        st.builds("({0} <= {1} < {2})".format, inner, inner, inner),
        st.builds("({0} if {1} else {2})".format, inner, inner, inner),
        st.builds("({0}({1}))".format, ONE, inner),
        st.builds("{0}({1}, {2})".format, TWO, inner, inner),
        st.builds("{0}({1}, {2}, {3})".format, THREE, inner, inner, inner),
        st.builds("{0}(i < 3, {1} < i + {2})".format, QUANTIFIERS, inner, inner),
        st.builds("doc[{0}, {1}]".format, inner, inner),
    )


STATEMENTS = st.sampled_from(["mask", "score", "weight", "scale", "let y =", "assert"])
HEAD = """attention a(w: int = 3, on: bool = true) {
    input doc: int[B, M]
    input t: float[8]
    input x: float
"""


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["mask", "score", "weight", "scale", "let y =", "assert"]),
    st.recursive(ATOMS, compound, max_leaves=8),
)
def test_accepted_expressions_are_well_typed(keyword, text):
    file = parse_source(SourceFile("any.attn", f"{HEAD}    {keyword} {text}\n}}\n"))
    try:
        program = check_program(file)
    except CompileError as error:
        assert error.diagnostics  # noqa: PT017 - that there is something to say is the point
        return
    for attention in program.attentions:
        verify(attention)
