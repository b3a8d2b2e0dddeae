"""Keys and values of a layer as the template lays them out: latents or heads, and what a cache keeps of them."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.codegen.layout import Bracket, lay_out
from attnc.plan.latents import LatentPlan, own_scale
from attnc.plan.layer_caches import Kept
from attnc.plan.layer_plan import LayerPlan


@dataclass(frozen=True, slots=True)
class SideView:
    """Keys or values of a layer.

    Attributes:
        made: how they are made of `source`: latents where there is a choice, else heads.
        chain: name of the constant that chooses between orders of products; empty where there is one order.
    """

    made: str
    chain: str


@dataclass(frozen=True, slots=True)
class CacheView:
    """What a layer keeps of the tokens so far.

    Attributes:
        kept: `keys`, `sums` or `nothing`.
        hint: type of the argument `cache`.
        result: type of what `forward` returns.
        returned: what the documentation says besides of that.
        about: lines that document `cache` and `return_cache`.
        fails: what the documentation says besides of a ValueError.
        check: lines that hold the argument against the call.
        remembered: what is kept, in words.
    """

    kept: str
    hint: str
    result: str
    returned: str
    about: tuple[str, ...]
    fails: str
    check: tuple[str, ...]
    remembered: str


def side_view(plan: LayerPlan, name: str) -> SideView:
    """Decide how the keys or the values of a layer are written."""
    if plan.latent(name) is not None:
        return SideView(f"self.{name}.compress(source)", _chain_name(plan, name))
    return SideView(f"split_heads(self.{name}(source), {plan.sizes.kv_heads})", "")


def chain_lines(plan: LayerPlan) -> tuple[str, ...]:
    """Return the lines of the constants that choose between orders of products."""
    lines: list[str] = []
    for one in _choices(plan):
        lines += lay_out(f"{_chain_name(plan, one.name)} = ", _chain(plan, one))
    return tuple(lines)


def chain_names(plan: LayerPlan) -> tuple[str, ...]:
    """Return the names of these constants."""
    return tuple(_chain_name(plan, one.name) for one in _choices(plan))


def scale_argument(plan: LayerPlan) -> str:
    """Return what the attention is told of its scale where its keys may be latents: `, scale=0.125`."""
    scale = own_scale(plan.attention.operation, plan.sizes) if plan.latent("key") is not None else None
    return "" if scale is None else f", scale={scale!r}"


def cache_view(plan: LayerPlan) -> CacheView:
    """Decide how what a layer keeps is written."""
    kept = plan.cache.kept
    kind = {Kept.KEYS: "LayerCache", Kept.SUMS: "State"}.get(kept, "")
    about = {
        Kept.KEYS: (
            "cache: of earlier calls. Keys and values go behind those of it; where it was made from a context,",
            "    x attends to that and adds nothing.",
        ),
        Kept.SUMS: ("cache: the sums over the tokens of earlier calls, behind which x goes on.",),
        Kept.NOTHING: ("cache: refused, see the error.", "return_cache: refused."),
    }[kept]
    return CacheView(
        kept=kept.value,
        hint=f"{kind} | None" if kind else "None",
        result=f"Tensor | tuple[Tensor, {kind}]" if kind else "Tensor",
        about=(*about, "return_cache: whether to return what later calls go on from.") if kind else about,
        returned=", and what `cache` of the next call takes where `return_cache` asks for it" if kind else "",
        fails=", or a cache is one of other calls" if kind else ", or there is a cache",
        check=tuple(lay_out("", _check(plan), depth=2)),
        remembered=_remembered(plan),
    )


def _check(plan: LayerPlan) -> Bracket:
    """Return the call that holds the cache against the others."""
    cache, name = plan.cache, ("", f'"{plan.name}"')
    given = (("", "cache"), ("", "context"), ("", "return_cache"))
    match cache.kept:
        case Kept.NOTHING:
            reason = ("", f'"{cache.refused_because}"')
            return Bracket("refuse_cache(", (name, ("", "cache"), ("", "return_cache"), reason))
        case Kept.SUMS:
            return Bracket("check_sums(", (name, ("", "x"), *given))
        case Kept.KEYS:
            sizes = (("key", _tuple(cache.key)), ("value", _tuple(cache.value)))
            return Bracket("check_cache(", (name, ("", "query"), *given, *sizes))


def _remembered(plan: LayerPlan) -> str:
    latent = [name for name in ("key", "value") if plan.latent(name) is not None]
    if len(latent) == 2:
        return "latents of keys and values"
    return " and ".join(f"latents of {name}s" if name in latent else f"{name}s" for name in ("key", "value"))


def _choices(plan: LayerPlan) -> tuple[LatentPlan, ...]:
    return tuple(one for one in plan.latents if one.is_choice)


def _chain_name(plan: LayerPlan, name: str) -> str:
    return f"_{plan.name}_{name}_chain"


def _chain(plan: LayerPlan, one: LatentPlan) -> Bracket:
    sizes, growth = plan.sizes, plan.growth
    numbers = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_size": sizes.head_size, "rank": one.rank}
    fields = [(name, str(number)) for name, number in numbers.items()]
    fields += [("density", repr(growth.density))] * (growth.density != 1.0)
    fields += [("fixed", repr(growth.fixed))] * (growth.fixed != 0.0)
    fields += [("causal", "True")] * growth.causal
    return Bracket("LatentChain(", tuple(fields))


def _tuple(numbers: tuple[int, ...]) -> str:
    return f"({numbers[0]},)" if len(numbers) == 1 else f"({', '.join(map(str, numbers))})"
