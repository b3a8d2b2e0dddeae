"""Plans to the text of a Python module that calls FlexAttention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from attnc.algebra.key_intervals import TileSets
from attnc.codegen.expr_torch import printable
from attnc.codegen.flex_view import FlexView, check_expressible, flex_names, flex_view
from attnc.codegen.names import check_names
from attnc.codegen.render import _environment, _imports, _names, _pattern_comments
from attnc.codegen.runtime_source import FLEX_ROOTS, read_runtime
from attnc.ir.program import Attention
from attnc.source import SourceFile

_OWN_NAMES = ("BlockMask", "Callable", "Mapping", "Any")
"""What these modules import besides what others do."""


@dataclass(frozen=True, slots=True)
class FlexModuleView:
    """What the template of a FlexAttention module lays out.

    Attributes:
        comments: the pattern's text, as comment lines.
        runtime: source of the runtime where the module stands alone; empty where it is imported.
    """

    comments: tuple[str, ...]
    title: str
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    runtime: str
    attentions: tuple[FlexView, ...]


def render_flex_module(
    attentions: Sequence[tuple[Attention, TileSets]], *, source: SourceFile, standalone: bool = False
) -> str:
    """Write the module of one pattern file for FlexAttention.

    Args:
        attentions: at least one, after simplification, with the interval list of its mask in plain order.
        source: the pattern, shown at the top.
        standalone: put the runtime's source into the module, which then imports torch alone.

    Raises:
        CompileError: something that FlexAttention has no form for, or names that cannot stand together.
    """
    runtime = read_runtime(FLEX_ROOTS)
    only = [attention for attention, _ in attentions]
    check_expressible(only)
    check_names(only, (*_OWN_NAMES, *(runtime.names if standalone else ())), flex_names)
    views = tuple(flex_view(attention, tiles) for attention, tiles in attentions)
    title = f"FlexAttention's functions of {printable(source.name)}, compiled by attnc {metadata.version('attnc')}."
    exports = tuple(name for attention in only for name in flex_names(attention.name))
    draft = FlexModuleView(_pattern_comments(source), title, (), exports, "", views)
    template = _environment().get_template("flex_module.py.jinja")
    used, defined = _names(template.render(module=draft))
    imports = _imports(used - defined, runtime, standalone)
    text = runtime.text if standalone else ""
    final = FlexModuleView(draft.comments, title, imports, exports, text, views)
    return template.render(module=final)
