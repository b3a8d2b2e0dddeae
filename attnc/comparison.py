"""Comparing the attentions of two files: which two belong together, and what is said of how their masks relate."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnc.algebra.comparison import Comparison, Finding
from attnc.algebra.simplify import simplify_attention
from attnc.algebra.witnesses import Witness
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import IndexName, Size, SizeName
from attnc.ir.program import AlignKind, Attention
from attnc.ir.show import show
from attnc.ir.walk import depends_on, walk
from attnc.sema.errors import unknown_parameter
from attnc.sema.scopes import nearest
from attnc.source import SourceFile, Span
from attnc.syntax import tree

EXPECTATIONS = ("equal", "inside", "contains", "disjoint")
"""What `--expect` can ask for."""

_NAMED = re.compile(r"(?s)(.+):([A-Za-z_][A-Za-z0-9_]*)")

_ALIGNS = {
    AlignKind.END: "aligns at the end",
    AlignKind.START: "aligns at the start",
    AlignKind.AT: "aligns at a shift",
}


def split_choice(text: str) -> tuple[str, str | None]:
    """Split `window.attn:name` into file and attention; a file that exists under the whole name is that file."""
    named = _NAMED.fullmatch(text)
    if named is None or Path(text).exists():
        return text, None
    return named[1], named[2]


@dataclass(frozen=True, slots=True)
class Choice:
    """One side: a file, and the name of an attention where the user gave one."""

    source: SourceFile
    file: tree.File
    name: str | None

    def attentions(self) -> dict[str, tree.Attention]:
        """Return those that may be compared, by name.

        Raises:
            CompileError: there is none, or not the one that was asked for.
        """
        declared = {one.name.text: one for one in self.file.declarations if isinstance(one, tree.Attention)}
        if self.name is None and declared:
            return declared
        if self.name in declared:
            return {self.name: declared[self.name]}
        wanted = "attention" if self.name is None else f"attention `{self.name}`"
        there = f"it has {_listed(declared)}" if declared else "a file of definitions is for `use`"
        raise self.problem("nothing-to-compare", f"`{self.source.name}` declares no {wanted}", there)

    def problem(self, code: str, message: str, help: str) -> CompileError:
        """Return an error about this file as a whole."""
        return CompileError(Diagnostic(code, message, (self.place(),), help))

    def place(self) -> Label:
        """Return the place of what is said of the file as a whole."""
        return Label(Span(SourceFile(self.source.name, ""), 0, 0, 1, 1))


def match(left: Choice, right: Choice) -> tuple[tuple[str, str], ...]:
    """Return the names that are compared: the only ones of their files, or those of one name.

    Raises:
        CompileError: it is not clear which.
    """
    first, second = left.attentions(), right.attentions()
    if len(first) == len(second) == 1:
        return ((next(iter(first)), next(iter(second))),)
    for side, names, other in ((left, first, second), (right, second, first)):
        lonely = [name for name in names if name not in other]
        if lonely and not (len(other) == 1 and set(other) <= set(names)):
            raise side.problem(
                "which-attention",
                f"nothing to compare `{lonely[0]}` of `{side.source.name}` with",
                f"the other file has {_listed(other)}: name one of each, as in `{side.source.name}:{lonely[0]}`",
            )
    return tuple((name, name) for name in first if name in second)


def require_same_keys(left: Choice, attentions: Sequence[Attention]) -> None:
    """Refuse two attentions whose `j` counts different things.

    Raises:
        CompileError: they shorten their keys in different ways.
    """
    forms = [[one for one in side.deferred if one.statement == "keys"] for side in attentions]
    if forms[0] != forms[1]:
        raise left.problem(
            "keys-differ",
            f"`{attentions[0].name}` and `{attentions[1].name}` shorten their keys in different ways",
            "compare patterns with the same `keys` statement: `j` counts shortened keys",
        )


def distributed(
    sides: Sequence[Choice],
    names: tuple[str, str],
    both: Mapping[str, Any],
    own: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give each side the values of its parameters, those of its own before those for both.

    Raises:
        CompileError: a value is for a parameter that nothing declares.
    """
    declared = [
        tuple(parameter.name.text for parameter in side.attentions()[name].params)
        for side, name in zip(sides, names, strict=True)
    ]
    wrong = [(0, name) for name in both if name not in declared[0] and name not in declared[1]]
    wrong += [(side, name) for side in (0, 1) for name in own[side] if name not in declared[side]]
    if wrong:
        raise CompileError(*(_unknown(sides[side], name, declared[side]) for side, name in wrong))
    first, second = (
        {**{name: value for name, value in both.items() if name in known}, **given}
        for known, given in zip(declared, own, strict=True)
    )
    return first, second


def _unknown(side: Choice, name: str, known: tuple[str, ...]) -> Diagnostic:
    return replace(unknown_parameter(name, known, nearest(name, known)), labels=(side.place(),))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


@dataclass(frozen=True, slots=True)
class Compared:
    """Two attentions of two files, and how their masks relate."""

    left: Attention
    right: Attention
    files: tuple[str, str]
    comparison: Comparison

    def meets(self, expected: str) -> bool:
        """Tell whether a relation of `EXPECTATIONS` is proven; equal masks lie inside each other."""
        one = self.comparison
        inside, contains = one.only_left.none is True, one.only_right.none is True
        return {"equal": inside and contains, "inside": inside, "contains": contains}.get(
            expected, one.both.none is True
        )

    def as_json(self) -> dict[str, Any]:
        """Return what `compare --json` prints for this pair of attentions."""
        one = self.comparison
        sides = zip(self.files, (self.left, self.right), strict=True)
        names = [
            {"file": file, "name": side.name, "params": {name: value.value for name, value in side.params}}
            for file, side in sides
        ]
        return {
            "left": names[0],
            "right": names[1],
            "relation": one.relation,
            "left_in_right": one.only_left.none,
            "right_in_left": one.only_right.none,
            "disjoint": one.both.none,
            "only_left": _witness_as_json(one.only_left),
            "only_right": _witness_as_json(one.only_right),
            "both": _witness_as_json(one.both),
            "assumptions": list(self.assumptions()),
            "reasons": list(one.reasons),
        }

    def labels(self) -> tuple[str, str]:
        """Name both sides as shortly as they can be told apart: by file, attention, parameters."""
        names = (self.left.name, self.right.name)
        labels = self.files
        if labels[0] == labels[1]:
            labels = (f"{labels[0]}:{names[0]}", f"{labels[1]}:{names[1]}")
        if labels[0] == labels[1] and self.left.params != self.right.params:
            labels = (labels[0] + _parameters(self.left), labels[1] + _parameters(self.right))
        return labels

    def lines(self) -> tuple[str, ...]:
        """Return what `compare` prints, line by line."""
        one = self.comparison
        left, right = self.labels()
        rows = (
            (f"only in {left}", one.only_left),
            (f"only in {right}", one.only_right),
            ("in both", one.both),
        )
        width = max(len(label) for label, _ in rows)
        found = [f"  {label:<{width}}  {self._finding(finding)}" for label, finding in rows]
        notes = [f"  {'undecided because':<{width}}  {reason}" for reason in one.reasons]
        return (
            _sentence(one, left, right) + _emptiness(one, left, right),
            *found,
            *notes,
            *(f"  {line}" for line in self.assumptions()),
        )

    def assumptions(self) -> tuple[str, ...]:
        """Return over what the answer ranges, and what is taken for granted."""
        one = self.comparison
        left, right = self.labels()
        said = [f"for every B, H, N, M >= 1{' with N <= M' if one.not_longer else ''}, every pair and every input"]
        if self.left.align != self.right.align:
            ways = f"`{left}` {_ALIGNS[self.left.align.kind]}, `{right}` {_ALIGNS[self.right.align.kind]}"
            said.append(f"{ways}: queries are matched by their row r")
        if one.shared:
            said.append(f"both are given the same {_listed(dict.fromkeys(one.shared))}")
        tensors = {tensor.name: tensor for tensor in (*self.right.tensors, *self.left.tensors)}
        promised = [tensor.name for tensor in (*self.left.tensors, *self.right.tensors) if tensor.sorted]
        if promised:
            said.append(f"{_listed(dict.fromkeys(promised))} sorted, as declared")
        said += [
            f"`{name}` is declared differently: `{name}'` is that of {right}" for name in one.apart if name in tensors
        ]
        others = _other_differences(self.left, self.right)
        if others:
            said.append(f"masks alone are compared; {', '.join(others)} written differently")
        return tuple(said)

    def failure(self, expected: str) -> Diagnostic:
        """Say that a relation that was expected is not proven."""
        left, right = self.labels()
        one = self.comparison
        claims = {
            "equal": (f"`{left}` and `{right}` are not equal", (one.only_left, one.only_right)),
            "inside": (f"`{left}` does not lie inside `{right}`", (one.only_left,)),
            "contains": (f"`{left}` does not contain `{right}`", (one.only_right,)),
            "disjoint": (f"`{left}` and `{right}` are not disjoint", (one.both,)),
        }
        message, findings = claims[expected]
        example = next((finding for finding in findings if finding.witness is not None), None)
        labels = () if self.left.span is None else (Label(self.left.span),)
        if example is None:
            return Diagnostic(
                "relation-undecided", f"undecided whether {message.replace(' not', '')}", labels, notes=one.reasons
            )
        allowed = {id(one.only_left): f"only `{left}` allows", id(one.only_right): f"only `{right}` allows"}
        return Diagnostic(
            "relation-false", f"{message}: {allowed.get(id(example), 'both allow')} {self._finding(example)}", labels
        )

    def _finding(self, finding: Finding) -> str:
        if finding.witness is None:
            return "none" if finding.none else "undecided"
        text = self._words(finding.witness)
        return text if finding.witness.least else f"{text}  (found by trying; there may be a lesser one)"

    def _words(self, witness: Witness) -> str:
        """State a pair: `N = 2, M = 2, doc[0, 0] = 1: i = 0, j = 1`."""
        where, sizes = witness.situation, witness.situation.sizes
        used = [node.name for side in (self.left, self.right) for node in walk(side.mask) if isinstance(node, Size)]
        known = [f"N = {sizes[SizeName.QUERIES]}", f"M = {sizes[SizeName.KEYS]}"]
        by_head = any(depends_on(side.mask, IndexName.HEAD) for side in (self.left, self.right))
        for name in (SizeName.HEADS, SizeName.GROUP, SizeName.BATCH, SizeName.HEAD_SIZE):
            if name in used or (name is SizeName.HEADS and by_head):
                known.append(f"{name.value} = {sizes[name]}")
        known += [f"h = {where.head}"] if by_head else []
        known += [f"b = {where.batch}"] if where.batch else []
        known += [f"{_cell(name, index)} = {_value(value)}" for name, index, value in witness.cells]
        i_left, i_right = witness.positions
        query = f"i = {i_left}" if i_left == i_right else f"r = {where.row} (i = {i_left} and {i_right})"
        return f"{', '.join(known)}: {query}, j = {where.key}"


def _sentence(one: Comparison, left: str, right: str) -> str:
    match one.relation:
        case "equal":
            return f"{left} and {right} are equal"
        case "inside":
            return f"{left} lies inside {right}"
        case "contains":
            return f"{left} contains {right}"
        case "disjoint":
            return f"{left} and {right} are disjoint"
        case "overlapping":
            return f"{left} and {right} overlap"
        case _:
            return f"{left} and {right}: undecided{_partly(one, left, right)}"


def _emptiness(one: Comparison, left: str, right: str) -> str:
    """Say so where a mask allows nothing: it lies inside every other, and is disjoint from it."""
    empty = [side for side, alone in ((left, one.only_left), (right, one.only_right)) if alone.none and one.both.none]
    if len(empty) == 2:
        return ": neither allows a pair"
    return f": {empty[0]} allows no pair" if empty else ""


def _partly(one: Comparison, left: str, right: str) -> str:
    """Say what is known where the relation is not."""
    if one.only_left.none:
        return f", but {left} lies inside {right} or equals it"
    if one.only_right.none:
        return f", but {left} contains {right} or equals it"
    if one.only_left.witness is not None or one.only_right.witness is not None:
        return ", but they are not equal"
    return ""


def _other_differences(left: Attention, right: Attention) -> list[str]:
    """Name the statements besides the mask that differ as they are written."""
    first, second = simplify_attention(left)[0], simplify_attention(right)[0]
    names = ("score", "scale", "weight", "normalize")
    differing = [name for name in names if getattr(first, name) != getattr(second, name)]
    deferred = {one.statement for one in {*first.deferred} ^ {*second.deferred}}
    found = [*differing, *sorted(deferred)]
    return [*found[:-1], f"{found[-1]} {'is' if len(found) == 1 else 'are'}"] if found else []


def _parameters(attention: Attention) -> str:
    return f"({', '.join(f'{name} = {show(value)}' for name, value in attention.params)})"


def _cell(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _value(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _witness_as_json(finding: Finding) -> dict[str, Any] | None:
    witness = finding.witness
    if witness is None:
        return None
    where = witness.situation
    return {
        **{name.value: where.sizes[name] for name in SizeName},
        "b": where.batch,
        "h": where.head,
        "r": where.row,
        "i_left": witness.positions[0],
        "i_right": witness.positions[1],
        "j": where.key,
        "data": [
            {"name": name, "index": list(index), "value": value if math.isfinite(value) else str(value)}
            for name, index, value in witness.cells
        ],
        "least": witness.least,
    }
