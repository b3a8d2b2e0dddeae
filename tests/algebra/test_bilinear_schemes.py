"""Schemes are proven against the product itself; everything else is refused with the reason."""

import contextlib
import importlib.util
import json
import random
import time
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.algebra.bilinear.exactness import check_exact, count_terms, first_wrong
from attnc.algebra.bilinear.reading import read_scheme, write_scheme
from attnc.algebra.bilinear.scheme import SchemeError, classical, compose, make_scheme
from attnc.resources import schemes_directory

ROOT = Path(__file__).parent.parent.parent
SHIPPED = {
    "strassen": (2, 2, 2, 7),
    "winograd": (2, 2, 2, 7),
    "laderman": (3, 3, 3, 23),
    "strassen_twice": (4, 4, 4, 49),
}


def shipped(name):
    return read_scheme((schemes_directory() / f"{name}.json").read_bytes())


def multiply(scheme, a, b):
    """The scheme on matrices of anything that adds and multiplies, by its definition."""
    products = [
        sum(u * entry for u, entry in zip(left, a, strict=True) if u)
        * sum(v * entry for v, entry in zip(right, b, strict=True) if v)
        for left, right in zip(scheme.left, scheme.right, strict=True)
    ]
    return [sum(w * entry for w, entry in zip(row, products, strict=True) if w) for row in scheme.out]


def is_right_on_units(scheme):
    """Brute force: the product of every pair of unit matrices, which decides every coefficient."""
    m, k, n = scheme.m, scheme.k, scheme.n
    for (i, inner), (other, j) in product(product(range(m), range(k)), product(range(k), range(n))):
        a = [int(place == i * k + inner) for place in range(m * k)]
        b = [int(place == other * n + j) for place in range(k * n)]
        expected = [int(inner == other and place == i * n + j) for place in range(m * n)]
        if multiply(scheme, a, b) != expected:
            return False
    return True


def as_file(scheme, **changes):
    return json.dumps({**json.loads(write_scheme(scheme)), **changes}).encode()


def refusal(data):
    with pytest.raises(SchemeError) as caught:
        read_scheme(data)
    return caught.value


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_schemes_multiply(name):
    scheme = shipped(name)
    assert (scheme.m, scheme.k, scheme.n, scheme.rank) == SHIPPED[name]
    assert scheme.name == name
    assert scheme.source
    assert is_right_on_units(scheme)


def test_products_of_entries_are_never_turned_round():
    """Entries that do not commute: matrices of 2 x 2."""
    scheme = shipped("winograd")
    rng = random.Random(0)
    a, b = ([[rng.randint(-3, 3) for _ in range(4)] for _ in range(4)] for _ in range(2))

    class Matrix:
        def __init__(self, rows):
            self.rows = rows

        def __rmul__(self, factor):
            return Matrix([factor * entry for entry in self.rows])

        def __radd__(self, zero):
            return self

        def __add__(self, other):
            return Matrix([x + y for x, y in zip(self.rows, other.rows, strict=True)])

        def __mul__(self, other):
            p, q = self.rows, other.rows
            return Matrix([sum(p[2 * i + t] * q[2 * t + j] for t in range(2)) for i in range(2) for j in range(2)])

    found = multiply(scheme, [Matrix(rows) for rows in a], [Matrix(rows) for rows in b])
    for i, j in product(range(2), repeat=2):
        expected = Matrix(a[2 * i]) * Matrix(b[j]) + Matrix(a[2 * i + 1]) * Matrix(b[2 + j])
        assert found[2 * i + j].rows == expected.rows


def test_files_are_what_the_tool_derives():
    spec = importlib.util.spec_from_file_location("derive_schemes", ROOT / "tools" / "derive_schemes.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    derived = tool.derive_all()
    assert {scheme.name for scheme in derived} == {path.stem for path in schemes_directory().iterdir()}
    for scheme in derived:
        assert write_scheme(scheme) == (schemes_directory() / f"{scheme.name}.json").read_text()
    with pytest.raises(ValueError, match="do not multiply"):
        tool.from_products(tool.STRASSEN.replace("(a12 - a22) (b21 + b22)\n", ""), 2, name="", source="")


@pytest.mark.parametrize("shapes", [((1, 2, 3), (2, 1, 2)), ((2, 2, 1), (1, 3, 2)), ((2, 3, 2), (1, 1, 1))])
def test_composed_schemes_multiply(shapes):
    whole = compose(*(classical(*shape) for shape in shapes))
    assert (whole.m, whole.k, whole.n) == tuple(x * y for x, y in zip(*shapes, strict=True))
    assert first_wrong(whole) is None
    assert is_right_on_units(whole)


def test_composition_with_a_fast_scheme():
    whole = compose(classical(1, 2, 3), shipped("strassen"))
    check_exact(whole)
    assert whole.title == "<2, 4, 6; 42>"
    thrice = compose(shipped("strassen"), shipped("strassen_twice"))
    assert count_terms(thrice) == 32768
    check_exact(thrice)


@st.composite
def corrupted(draw):
    scheme = shipped(draw(st.sampled_from(["strassen", "winograd", "laderman"])))
    side = draw(st.sampled_from(["left", "right", "out"]))
    rows = [list(row) for row in getattr(scheme, side)]
    row = draw(st.integers(0, len(rows) - 1))
    column = draw(st.integers(0, len(rows[0]) - 1))
    change = draw(st.fractions(-3, 3, max_denominator=5).filter(bool))
    rows[row][column] += change
    return replace(scheme, **{side: tuple(map(tuple, rows))})


@given(corrupted())
@settings(max_examples=60, deadline=None)
def test_a_single_wrong_number_is_found(scheme):
    wrong = first_wrong(scheme)
    assert wrong is not None
    with pytest.raises(SchemeError) as caught:
        check_exact(scheme)
    assert caught.value.code in ("scheme-wrong", "scheme-modulo-two")
    # the coefficient that is named is what brute force gives, and the ones before it are right
    (i, inner), (other, j), (y, x) = wrong.left, wrong.right, wrong.out
    a = [int(place == i * scheme.k + inner) for place in range(scheme.m * scheme.k)]
    b = [int(place == other * scheme.n + j) for place in range(scheme.k * scheme.n)]
    assert multiply(scheme, a, b)[y * scheme.n + x] == Fraction(wrong.found)
    assert wrong.is_needed == (inner == other and (i, j) == (y, x))
    assert Fraction(wrong.found) != wrong.is_needed


@given(st.lists(st.fractions(-4, 4, max_denominator=7).filter(bool), min_size=14, max_size=14))
@settings(max_examples=20, deadline=None)
def test_rescaled_products_are_exact(scales):
    """Schemes with rationals: factors of each product scaled, and the result back."""
    scheme = shipped("strassen")
    left = [[entry * scale for entry in row] for row, scale in zip(scheme.left, scales[:7], strict=True)]
    right = [[entry * scale for entry in row] for row, scale in zip(scheme.right, scales[7:], strict=True)]
    out = [[w / scales[r] / scales[7 + r] for r, w in enumerate(row)] for row in scheme.out]
    scaled = make_scheme((2, 2, 2), left, right, out)
    assert read_scheme(write_scheme(scaled).encode()) == scaled


def test_wrong_product_names_the_first_wrong_coefficient():
    scheme = shipped("strassen")
    files = json.loads(write_scheme(scheme))
    files["W"][1][2] = 2
    error = refusal(json.dumps(files).encode())
    assert (error.code, error.message) == ("scheme-wrong", "does not multiply matrices")
    assert error.notes == ("the coefficient of A[0, 0] * B[0, 1] in C[0, 1] is 2 and must be 1",)


@pytest.mark.parametrize("name", ["strassen", "laderman"])
def test_transposed_products_are_told_apart(name):
    scheme = shipped(name)
    n = scheme.n
    rows = json.loads(write_scheme(scheme))["W"]
    error = refusal(as_file(scheme, W=[rows[j * n + i] for i in range(n) for j in range(n)]))
    assert error.code == "scheme-transposed"
    assert error.message == "computes the transposed product, as AlphaTensor's files do"


def test_transposed_rectangles_and_other_orders_are_told_apart():
    scheme = compose(classical(1, 2, 3), shipped("strassen"))  # 2 x 4 by 4 x 6
    files = json.loads(write_scheme(scheme))
    turned = [files["W"][i * 6 + j] for j in range(6) for i in range(2)]
    assert refusal(as_file(scheme, W=turned)).code == "scheme-transposed"
    turned = [files["U"][i * 4 + j] for j in range(4) for i in range(2)]
    error = refusal(as_file(scheme, U=turned))
    assert (error.code, error.message) == ("scheme-transposed", "counts the entries of U down columns")


def test_schemes_modulo_two_are_told_apart():
    scheme = shipped("strassen")
    plain = replace(
        scheme,
        **{
            side: tuple(tuple(abs(x) for x in row) for row in getattr(scheme, side))
            for side in ("left", "right", "out")
        },
    )
    error = refusal(as_file(plain))
    assert (error.code, error.message) == ("scheme-modulo-two", "is exact modulo 2 only")
    assert error.notes[0].startswith("over the rationals the coefficient of ")
    rows = json.loads(write_scheme(plain))["W"]
    error = refusal(as_file(plain, W=[rows[0], rows[2], rows[1], rows[3]]))
    assert error.message == "is exact modulo 2 only (with the entries of W counted down columns)"


MALFORMED = {
    "is not JSON: line 1, column 2: expecting property name enclosed in double quotes": b"{",
    "is not UTF-8 text": b"\xff\xfe",
    "is not an object": b"[1]",
    "has no `V`": b'{"shape": [2, 2, 2], "U": [[1]]}',
    "has an unknown key 'X'": b'{"X": 1}',
    "has 'U' twice": b'{"U": 1, "U": 2}',
    "has the number 'NaN'": b'{"U": NaN}',
    "has the number '-Infinity'": b'{"U": -Infinity}',
    "has the number '0.5'": b'{"U": 0.5}',
    "has the number '1e999999999'": b'{"U": 1e999999999}',
    "has lists inside each other beyond any need": b"[" * 400_000,
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_files(message):
    error = refusal(MALFORMED[message])
    assert (error.code, error.message) == ("scheme-malformed", message)


CHANGED = {
    "has the shape [2, 2]": {"shape": [2, 2]},
    "has the shape [0, 2, 2]": {"shape": [0, 2, 2]},
    "has the shape [true, 2, 2]": {"shape": [True, 2, 2]},
    "has no matrix `U`": {"U": []},
    "has no matrix `W`": {"W": [1, 2]},
    "says `rank` 8, and U has 7 columns": {"rank": 8},
    "has 4 rows of 7 numbers in `V`, where its shape needs 6 rows of 7": {"shape": [2, 2, 3]},
    "has true in `U`": {"U": [[True] * 7] * 4},
    "has '1/0' in `U`, a division by 0": {"U": [["1/0"] * 7] * 4},
    "has '1 / 2' in `U`": {"U": [["1 / 2"] * 7] * 4},
    "has '١' in `U`": {"U": [["١"] * 7] * 4},
    "has null in `U`": {"U": [[None] * 7] * 4},
    "has a `name` that is no line of at most 1000 characters": {"name": "a\nb"},
    "has 9 products, and the product of 2 x 2 by 2 x 2 by definition takes 8": {"U": [[1] * 9] * 4},
}


@pytest.mark.parametrize("message", CHANGED)
def test_files_that_do_not_fit(message):
    error = refusal(as_file(shipped("strassen"), **CHANGED[message]))
    assert (error.code, error.message) == ("scheme-malformed", message.replace("'١'", ascii("١")))


def test_a_matrix_with_rows_for_products_is_recognised():
    scheme = shipped("strassen")
    turned = [list(row) for row in zip(*json.loads(write_scheme(scheme))["V"], strict=True)]
    error = refusal(as_file(scheme, V=turned))
    assert error.message == "has 7 rows of 4 numbers in `V`, where its shape needs 4 rows of 7"
    assert error.help == "transpose it: a row belongs to an entry, a column to a product"


def test_products_that_take_no_part():
    scheme = shipped("strassen")
    files = json.loads(write_scheme(scheme))
    for key in ("U", "V", "W"):
        files[key] = [[*row, 0] for row in files[key]]
    assert refusal(json.dumps({**files, "rank": 8}).encode()).message == "has a product that takes no part"


def dense(size, rank, entry=1):
    rows = [[entry] * rank] * size**2
    return json.dumps({"shape": [size] * 3, "U": rows, "V": rows, "W": rows}).encode()


def primes(count):
    found = []
    candidate = 900_000_000
    while len(found) < count:
        candidate += 1
        if all(candidate % divisor for divisor in range(2, 2000)):
            found.append(candidate)
    return found


ADVERSARIAL = {
    "is larger than 1048576 bytes": b" " * 2_000_000,
    "has a number of more than 9 digits: '": b'{"U": ' + b"9" * 1_000_000 + b"}",
    "has the shape [17, 1, 1]; sizes go up to 16": b'{"shape": [17, 1, 1], "U": [[1]], "V": [[1]], "W": [[1]]}',
    "has 50331648 terms to check": dense(8, 192),
    "has a common denominator of more than 64 bits": json.dumps(
        {"shape": [2, 2, 2], **{key: [[f"1/{p}" for p in primes(4)]] * 4 for key in "UVW"}}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("message", ADVERSARIAL)
def test_huge_files_end_quickly(message):
    start = time.process_time()
    error = refusal(ADVERSARIAL[message])
    assert time.process_time() - start < 2
    assert error.code == "scheme-too-large"
    assert error.message.startswith(message)


def test_largest_wrong_schemes_end_quickly():
    """As many terms as a proof may take, wrong only at its end, with every convention tried."""
    whole = compose(shipped("strassen"), shipped("strassen_twice"))
    rows = [list(row) for row in whole.out]
    rows[-1][-1] += 1
    start = time.process_time()
    with pytest.raises(SchemeError):
        check_exact(replace(whole, out=tuple(map(tuple, rows))))
    with pytest.raises(SchemeError):
        read_scheme(dense(8, 4))
    assert time.process_time() - start < 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("UVW") | st.text(max_size=2), inner),
    max_leaves=8,
)


@given(st.sampled_from(["name", "source", "shape", "rank", "U", "V", "W"]), JSON)
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_is_read_or_refused(key, value):
    files = {**json.loads(write_scheme(shipped("strassen"))), key: value}
    with contextlib.suppress(SchemeError):
        assert read_scheme(json.dumps(files).encode("utf-8", "surrogatepass")).title == "<2, 2, 2; 7>"


@given(st.integers(0, 500), st.binary(min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_refused(place, damage):
    data = (schemes_directory() / "winograd.json").read_bytes()
    data = data[:place] + damage + data[place + len(damage) :]
    with contextlib.suppress(SchemeError):
        assert read_scheme(data) == shipped("winograd")  # a space, or a letter of its name


def test_deep_values_are_refused():
    for depth in range(850, 1000, 7):
        deep = "[" * depth + "]" * depth
        for key in ("shape", "rank", "U", "name"):
            with pytest.raises(SchemeError):
                read_scheme(f'{{"shape": [2, 2, 2], "U": [[1]], "V": [[1]], "W": [[1]], "{key}": {deep}}}'.encode())
            files = {"shape": "[2, 2, 2]", "U": "[[1]]", "V": "[[1]]", "W": "[[1]]", key: deep}
            with pytest.raises(SchemeError):
                read_scheme(("{" + ", ".join(f'"{name}": {text}' for name, text in files.items()) + "}").encode())
