"""Sizes of studies: models, tasks and how long they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from attnc.diagnostics import CompileError, Diagnostic
from attnc.study.copying import copying, selective
from attnc.study.listops import listops
from attnc.study.models import Size
from attnc.study.recall import recall
from attnc.study.tasks import Setting, Task, require
from attnc.study.training import Recipe

TASKS: Mapping[str, Callable[..., Task]] = {
    "recall": recall,
    "copying": copying,
    "selective": selective,
    "listops": listops,
}
"""What a task is made by, from its length and its settings."""

DEFAULT_TASKS = ("recall", "copying", "listops")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """A task in a preset.

    Attributes:
        length: positions.
        steps: updates of the parameters.
        window: width of the windows of patterns that come with the package.
        settings: of the task.
    """

    length: int
    steps: int
    window: int
    settings: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Preset:
    """A size of study.

    Attributes:
        recipe: but for the steps, which depend on the task.
        threads: cores to compute with; None for torch's choice.
        tasks: by name.
    """

    recipe: Recipe
    threads: int | None
    tasks: Mapping[str, Difficulty]


PRESETS: Mapping[str, Preset] = {
    "tiny": Preset(
        Recipe(Size(64, 2, 2), 0, batch=32, learning_rate=3e-3, evaluations=10, held_out=256),
        1,  # products this small gain a third by a second core, and lose much where another program needs that core
        {
            "recall": Difficulty(64, 200, 8, {"pairs": 6, "keys": 12, "values": 12, "gap": 16, "power": 0.01}),
            "copying": Difficulty(64, 250, 8, {"tokens": 16, "shortest": 16}),
            "selective": Difficulty(64, 250, 8, {"tokens": 16, "content": 8}),
            "listops": Difficulty(32, 400, 8, {"depth": 2, "arguments": 4, "nesting": 0.25}),
        },
    ),
    "small": Preset(
        Recipe(Size(128, 2, 4), 0, batch=32, learning_rate=2e-3, evaluations=20, held_out=512),
        None,
        {
            "recall": Difficulty(128, 1500, 16, {"pairs": 12, "keys": 24, "values": 24, "gap": 32, "power": 0.01}),
            "copying": Difficulty(128, 1000, 16, {"tokens": 26, "shortest": 16}),
            "selective": Difficulty(128, 1500, 16, {"tokens": 16, "content": 16}),
            "listops": Difficulty(128, 3000, 16, {"depth": 4, "arguments": 5, "nesting": 0.25}),
        },
    ),
    "medium": Preset(
        Recipe(Size(256, 6, 8), 0, batch=64, learning_rate=5e-4, evaluations=40, held_out=1024),
        None,
        {
            "recall": Difficulty(1024, 5000, 64, {"pairs": 128, "keys": 512, "values": 512, "gap": 128, "power": 0.01}),
            "copying": Difficulty(1024, 5000, 64, {"tokens": 26, "shortest": 128}),
            "selective": Difficulty(1024, 5000, 64, {"tokens": 16, "content": 32}),
            "listops": Difficulty(512, 20000, 64, {"depth": 8, "arguments": 5, "nesting": 0.25}),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Changes:
    """What the user wants different from the preset; None leaves it."""

    steps: int | None = None
    length: int | None = None
    batch: int | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    learning_rate: float | None = None
    window: int | None = None


def parse_names(text: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Split `recall,copying`.

    Raises:
        CompileError: a name is not known, or none is given.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        found = f"there is no {what} `{wrong[0]}`" if wrong else f"no {what} is named"
        raise CompileError(Diagnostic(f"unknown-{what}", found, help=f"choose from {', '.join(known)}"))
    return names


def configure(
    preset: str, names: tuple[str, ...], changes: Changes, given: Mapping[str, object]
) -> list[tuple[Task, Recipe, int]]:
    """Return each task with its recipe and the width of windows.

    Args:
        preset: of `PRESETS`.
        names: of tasks.
        changes: to the preset.
        given: settings of tasks; each goes to the tasks that have one of that name.

    Raises:
        CompileError: a setting that no task has, or a number that does not fit the others.
    """
    base = PRESETS[preset]
    known = {name: base.tasks[name] for name in names}
    for setting, value in given.items():
        owners = [one for one in known.values() if setting in one.settings]
        if not owners:
            every = dict.fromkeys(setting for one in known.values() for setting in one.settings)
            nobody = f"{' and '.join(f'`{name}`' for name in names)} {'has' if len(names) == 1 else 'have'}"
            raise CompileError(
                Diagnostic(
                    "unknown-setting",
                    f"{nobody} no setting `{setting}`",
                    help=f"settings are {', '.join(every)}",
                )
            )
        whole = isinstance(owners[0].settings[setting], int)
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        require(fits, setting, value, "a whole number" if whole else "a number")
    return [(_task(name, one, changes, given), *_recipe(base, one, changes)) for name, one in known.items()]


def _task(name: str, one: Difficulty, changes: Changes, given: Mapping[str, object]) -> Task:
    settings = {setting: given.get(setting, value) for setting, value in one.settings.items()}
    return TASKS[name](one.length if changes.length is None else changes.length, **settings)


def _recipe(base: Preset, one: Difficulty, changes: Changes) -> tuple[Recipe, int]:
    sizes = {name: value for name in ("width", "layers", "heads") if (value := getattr(changes, name)) is not None}
    size = replace(base.recipe.size, **sizes)
    fits = size.width % size.heads == 0 and size.head_size <= LARGEST_HEAD
    require(fits, "width", size.width, f"a multiple of the {size.heads} heads, up to {LARGEST_HEAD} times as many")
    rest = {
        name: value for name in ("steps", "batch", "learning_rate") if (value := getattr(changes, name)) is not None
    }
    recipe = replace(base.recipe, **{"size": size, "steps": one.steps, **rest})
    return recipe, one.window if changes.window is None else changes.window


LARGEST_HEAD = 256
"""The greatest head size of attnc's attentions."""
