"""Tuned configurations as a generated module says them."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.codegen.expr_torch import printable, quoted
from attnc.codegen.kernel_pieces import tiles_text
from attnc.plan.configs import FormConfig, LibraryConfig, SlabConfig, TunedConfig


def tuned_lines(configs: Sequence[TunedConfig]) -> tuple[str, ...]:
    """Return the statement that makes a module's kernels take these configurations; no lines without any."""
    if not configs:
        return ()
    lines = ["use_tuned(", "    ["]
    for one in configs:
        texts = [quoted(text) for text in (one.kernel, one.device, one.versions, one.dtype)]
        names = zip(("kernel", "device", "versions", "dtype"), texts, strict=True)
        lines += [f"        # {printable(one.note)}", "        TunedTiles("]
        lines += [f"            {name}={text}," for name, text in names]
        for name in ("head_size", "value_size", "queries", "keys"):
            lines.append(f"            {name}={int(getattr(one, name))},")
        lines += [f"            tiles={_config_text(one)},", "        ),"]
    return (*lines, "    ]", ")")


def _config_text(one: TunedConfig) -> str:
    if isinstance(one.config, SlabConfig):
        alone = "" if one.config.alone is None else f", alone={one.config.alone}"
        return f"Slabs(rows={one.config.rows}{alone})"
    if isinstance(one.config, LibraryConfig):
        return f"LibraryCall({quoted(one.config.name)})"
    if isinstance(one.config, FormConfig):
        return f"ProjectionForm({quoted(one.config.name)})"
    return tiles_text(one.config)
