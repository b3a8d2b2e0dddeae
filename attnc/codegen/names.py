"""Names in a generated module, and what is said of those that clash."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable, Iterable, Mapping, Sequence

from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.program import Attention, Layer, Tensor, TensorKind
from attnc.source import Span

IMPORTED = frozenset(
    {"annotations", "math", "torch", "nn", "Tensor", "Sequence", "triton", "tl"}
    | {"Far", "GridAxis", "Interval", "Operation", "Order", "Pairs", "Program", "QueryGrid", "Short", "Sizes"}
    | {"TensorArgument", "Decomposed", "Decomposition", "FeatureMap", "Linear", "Preparation", "Shortening", "State"}
    | {"floor", "floor_divide", "floor_modulo", "maximum", "minimum", "only", "splitmix", "truncate"}
)
"""What a generated module imports."""

CALL_ARGUMENTS = frozenset(
    {"query", "key", "value", "scale", "return_lse", "precision", "rows", "self", "device"}
    | {"state", "return_state", "feature_seed"}
)
"""Arguments that generated functions have already."""

MODULE_ATTRIBUTES = frozenset(
    {"T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "compile", "cpu"}
    | {"cuda", "double", "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer", "get_extra_state"}
    | {"get_parameter", "get_submodule", "half", "ipu", "load_state_dict", "modules", "mtia", "named_buffers"}
    | {"named_children", "named_modules", "named_parameters", "parameters", "register_backward_hook"}
    | {"register_buffer", "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"}
    | {"register_full_backward_pre_hook", "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook"}
    | {"register_module", "register_parameter", "register_state_dict_post_hook", "register_state_dict_pre_hook"}
    | {"requires_grad_", "reset_parameters", "set_extra_state", "set_submodule", "share_memory", "state_dict", "to"}
    | {"to_empty", "train", "training", "type", "xpu", "zero_grad"}
    | {"_apply", "_backward_hooks", "_backward_pre_hooks", "_buffers", "_call_impl", "_compiled_call_impl"}
    | {"_forward_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs", "_forward_pre_hooks"}
    | {"_forward_pre_hooks_with_kwargs", "_get_backward_hooks", "_get_backward_pre_hooks", "_get_name"}
    | {"_is_full_backward_hook", "_load_from_state_dict", "_load_state_dict_post_hooks"}
    | {"_load_state_dict_pre_hooks", "_maybe_warn_non_full_backward_hook", "_modules", "_named_members"}
    | {"_non_persistent_buffers_set", "_parameters", "_register_load_state_dict_pre_hook"}
    | {"_register_state_dict_hook", "_replicate_for_data_parallel", "_save_to_state_dict", "_slow_forward"}
    | {"_state_dict_hooks", "_state_dict_pre_hooks", "_version", "_wrapped_call_impl"}
)
"""Attributes of `torch.nn.Module`, which a learned tensor cannot replace."""


def class_name(name: str) -> str:
    """Return the CamelCase name of an attention's module: `sliding_window` -> `SlidingWindow`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_") if part)


def public_names(name: str) -> tuple[str, ...]:
    """Return what a module defines for an attention, the class last."""
    return name, f"{name}_reference", f"{name}_mask", f"{name}_weights", class_name(name)


def check_names(
    attentions: Sequence[Attention],
    taken: Iterable[str] = (),
    names: Callable[[str], tuple[str, ...]] = public_names,
) -> None:
    """Raise CompileError, with everything that is wrong, where names cannot stand in one Python module.

    Args:
        attentions: of one module.
        taken: further names that the module defines.
        names: what the module defines for an attention of a name.
    """
    problems: list[Diagnostic] = []
    reserved = IMPORTED | frozenset(taken)
    owners: dict[str, Attention] = {}
    for attention in attentions:
        problems.extend(_attention_problems(attention, reserved, names(attention.name)))
        for name in names(attention.name):
            other = owners.setdefault(name, attention)
            if other is not attention:
                problems.append(_clash(name, attention, other))
                break
        for tensor in attention.tensors:
            problems.extend(_tensor_problems(tensor, attention))
    if problems:
        raise CompileError(*problems)


def check_layer_names(
    layers: Mapping[Layer, tuple[str, ...]], attentions: Sequence[Attention], taken: Iterable[str] = ()
) -> None:
    """Raise CompileError where what a module defines for its layers cannot stand beside the rest of it.

    Args:
        layers: what is defined for each, the class first.
        attentions: of the same module.
        taken: further names that the module defines or imports.
    """
    problems: list[Diagnostic] = []
    reserved = IMPORTED | frozenset(taken)
    owners: dict[str, Attention | Layer] = {}
    for attention in attentions:
        owners.update(dict.fromkeys((*public_names(attention.name), f"_{attention.name}"), attention))
    for layer, names in layers.items():
        for name in names:
            if name in reserved:
                problems.append(_bad_name(layer, f"would hide `{name}`, which generated modules use"))
            elif not name.isidentifier() or keyword.iskeyword(name):
                problems.append(_bad_name(layer, f"would define `{name}`, which is no name of a Python class"))
            elif owners.setdefault(name, layer) is not layer:
                problems.append(_clash(name, layer, owners[name]))
    if problems:
        raise CompileError(*problems)


def check_builtins(
    attentions: Sequence[Attention], used: Iterable[str], layers: Mapping[Layer, tuple[str, ...]] | None = None
) -> None:
    """Raise CompileError where an attention or a layer would hide a builtin of Python's that its module needs.

    Args:
        attentions: of one module.
        used: names that the module's text reads.
        layers: what the module defines for each layer.
    """
    needed = frozenset(name for name in used if hasattr(builtins, name))
    problems = []
    defined: list[tuple[Attention | Layer, tuple[str, ...]]] = list((layers or {}).items())
    for owner, names in [*((one, public_names(one.name)) for one in attentions), *defined]:
        hidden = next((name for name in names if name in needed), None)
        if hidden is not None:
            problems.append(_bad_name(owner, f"would hide Python's own `{hidden}`, which generated modules use"))
    if problems:
        raise CompileError(*problems)


def _attention_problems(attention: Attention, reserved: frozenset[str], own: tuple[str, ...]) -> list[Diagnostic]:
    name = attention.name
    if name.startswith("_"):
        return [_bad_name(attention, "begins with an underscore, so its function would be private")]
    if own[-1] == name:
        return [_bad_name(attention, f"is also the name of its module class `{name}`; write it in lower case")]
    for public in own:
        if keyword.iskeyword(public):
            return [_bad_name(attention, f"would define `{public}`, a Python keyword")]
        if public in reserved:
            return [_bad_name(attention, f"would hide `{public}`, which generated modules use")]
    return []


def _bad_name(owner: Attention | Layer, reason: str) -> Diagnostic:
    kind = "layer" if isinstance(owner, Layer) else "attention"
    return Diagnostic(
        "unusable-name",
        f"{kind} `{owner.name}` cannot become a Python module: its name {reason}",
        _labels((owner.span, "")),
        help="rename it",
    )


def _clash(name: str, owner: Attention | Layer, other: Attention | Layer) -> Diagnostic:
    pair = "attentions" if isinstance(owner, Attention) else "layers" if isinstance(other, Layer) else ""
    pair = pair or "the attention and the layer"
    return Diagnostic(
        "name-clash",
        f"{pair} `{other.name}` and `{owner.name}` would both define `{name}`",
        _labels((owner.span, ""), (other.span, "the other one")),
        help="rename one of them, or compile them from two files",
    )


def _tensor_problems(tensor: Tensor, attention: Attention) -> list[Diagnostic]:
    reason = None
    if keyword.iskeyword(tensor.name):
        reason = "it is a Python keyword"
    elif tensor.name in CALL_ARGUMENTS:
        reason = "generated functions have an argument of that name"
    elif tensor.name.startswith("__"):
        reason = "Python gives names that begin with two underscores a meaning of its own"
    elif f"{tensor.name}_".startswith(f"_{attention.name}_"):
        reason = "names like this are those of the module's own parts"
    elif tensor.kind is TensorKind.LEARNED and tensor.name in MODULE_ATTRIBUTES:
        reason = "`torch.nn.Module` has an attribute of that name"
    if reason is None:
        return []
    kind = "an input" if tensor.kind is TensorKind.INPUT else "a learned tensor"
    return [
        Diagnostic(
            "unusable-name",
            f"`{tensor.name}` cannot be the name of {kind}: {reason}",
            _labels((tensor.span, "")),
            help="rename it",
        )
    ]


def _labels(*places: tuple[Span | None, str]) -> tuple[Label, ...]:
    return tuple(Label(span, text) for span, text in places if span is not None)
