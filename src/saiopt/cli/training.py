"""What every command that trains has in common."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, TypeVar

from tyro.conf import Positional, arg

from saiopt.cli.output import new_console
from saiopt.cli.refusal import (
    DivergedError,
    LostError,
    RefusalError,
    refusing,
    require_writable,
)

if TYPE_CHECKING:
    import torch

    from saiopt.lab.recipe import Recipe
    from saiopt.lab.task import Task
    from saiopt.lab.training.loop import Observer
    from saiopt.lab.training.outcome import Outcome
    from saiopt.lab.training.ranks import Ranks
    from saiopt.lab.training.run import Run

_T = TypeVar("_T")
Work: TypeAlias = (
    "Callable[[Sequence[Run], Task, Path, torch.device, Observer, Ranks], _T]"
)

_OF_THE_RECIPE = "(default: the recipe's)"
OptimizerNames: TypeAlias = Annotated[
    tuple[str, ...],
    arg(
        metavar="NAME ...",
        help_behavior_hint="(default: sgdsai, its controls, sgd and adamw)",
    ),
]
Tracker: TypeAlias = Annotated[
    Literal["tensorboard", "wandb"] | None,
    arg(metavar="tensorboard|wandb", help_behavior_hint="(default: none)"),
]
Seeds: TypeAlias = Annotated[tuple[int, ...], arg(metavar="N ...")]


class Machine(Protocol):
    """What a command says of the machine; of any command that has these options."""

    @property
    def device(self) -> Literal["cpu", "cuda"] | None:
        """Where to compute, None for a GPU if there is one."""
        ...

    @property
    def threads(self) -> int | None:
        """CPU threads, None for torch's choice."""
        ...


@dataclasses.dataclass(frozen=True)
class Choice:
    """Choose a recipe and a machine.

    Args:
        recipe: A name that 'saiopt recipes' lists, or one's own: file.py:name.
        set: Fields of the recipe, such as clip_norm=0.5 or task.n_layer=2.
        device: Where to train.
        threads: CPU threads; a run's last bits depend on them.
        json: Print JSON only; progress goes to stderr.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help_behavior_hint="")]
    set: Annotated[
        tuple[str, ...],
        arg(metavar="NAME=VALUE ...", help_behavior_hint=_OF_THE_RECIPE),
    ] = ()
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        arg(metavar="cpu|cuda", help_behavior_hint="(default: cuda if there is one)"),
    ] = None
    threads: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: torch's choice)")
    ] = None
    json: Annotated[bool, arg(help_behavior_hint="")] = False


@dataclasses.dataclass(frozen=True)
class Training(Choice):
    """Train.

    Args:
        steps: Optimizer steps.
        setting: Settings of optimizers, such as adamw.betas=0.9,0.99.
        runs_dir: Keeps the runs: a finished one is reused, an interrupted one goes on.
        strategy: How processes that torchrun starts share a model.
    """

    steps: Annotated[
        int | None, arg(metavar="N", help_behavior_hint=_OF_THE_RECIPE)
    ] = None
    setting: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME.SETTING=VALUE ...",
            help_behavior_hint="(default: the lab's)",
        ),
    ] = ()
    runs_dir: Annotated[Path, arg(metavar="FOLDER")] = Path("runs")
    strategy: Annotated[
        Literal["ddp", "fsdp2"] | None,
        arg(metavar="ddp|fsdp2", help_behavior_hint="(default: ddp under torchrun)"),
    ] = None


def recipe_of(options: Choice) -> "Recipe":
    """Return the recipe with the user's fields.

    Args:
        options: Of the command.

    Returns:
        The recipe.

    Raises:
        RefusalError: If there is no such recipe or field, or a value is bad.
    """
    from saiopt.lab.own.recipe import recipe_at
    from saiopt.lab.own.reference import is_reference
    from saiopt.lab.recipe import override
    from saiopt.lab.recipes import get_recipe

    settings = pairs("set", options.set)
    if isinstance(options, Training) and options.steps is not None:
        settings["steps"] = str(options.steps)
    with refusing(ValueError):
        own = is_reference(options.recipe)
        recipe = recipe_at(options.recipe) if own else get_recipe(options.recipe)
        return override(recipe, settings)


def known_optimizers(names: Sequence[str]) -> list[str]:
    """Return the names of optimizers, after loading those that are the user's own.

    Args:
        names: Of the lab's, or ``file.py:name``.

    Returns:
        The names by which the lab knows them.

    Raises:
        RefusalError: If one cannot be loaded.
    """
    from saiopt.lab.own.optimizer import optimizer_names

    with refusing(ValueError):
        return optimizer_names(list(names))


def settings_of(options: Training) -> dict[str, dict[str, Any]]:
    """Return the settings of optimizers that the user gives.

    Args:
        options: Of the command, whose optimizers are known.

    Returns:
        Value by optimizer and setting.

    Raises:
        RefusalError: If one is bad.
    """
    from saiopt.lab.optimizers.settings import read_settings

    texts = {
        own_name(name): text for name, text in pairs("setting", options.setting).items()
    }
    with refusing(ValueError):
        return read_settings(texts)


def setting_grids(options: Training) -> dict[str, list[dict[str, Any]]]:
    """Return all combinations of the settings that the user gives, some several times.

    Args:
        options: Of the command, whose optimizers are known.

    Returns:
        By optimizer, settings of one combination each.

    Raises:
        RefusalError: If one is bad.
    """
    from saiopt.lab.optimizers.settings import read_settings

    texts: dict[str, list[str]] = {}
    for each in options.setting:
        [(name, text)] = pairs("setting", [each]).items()
        texts.setdefault(own_name(name), []).append(text)
    grids: dict[str, list[dict[str, Any]]] = {}
    with refusing(ValueError):
        for optimizer in dict.fromkeys(name.rpartition(".")[0] for name in texts):
            its = {n: t for n, t in texts.items() if n.rpartition(".")[0] == optimizer}
            grids[optimizer] = [
                read_settings(dict(zip(its, each, strict=True)))[optimizer]
                for each in itertools.product(*its.values())
            ]
    return grids


def own_name(reference: str) -> str:
    """Return the name that an option calls an optimizer by, without its file."""
    return reference.rpartition(":")[2]


def single_run(
    options: Training,
    optimizer: str | None,
    seed: int,
    lr: float | None,
    weight_decay: float | None,
) -> "Run":
    """Plan one run.

    Args:
        options: Of the command.
        optimizer: Its name instead of the recipe's.
        seed: Of the run.
        lr: Instead of the recipe's.
        weight_decay: λ instead of what the recipe's decay per step gives.

    Returns:
        The run.

    Raises:
        RefusalError: If an argument is bad.
    """
    # Before the imports, so that a wrong name is answered at once.
    recipe = recipe_of(options)
    from saiopt.lab.comparison.compare import plan

    [name] = known_optimizers([optimizer or recipe.optimizer])
    settings = settings_of(options)
    with refusing(ValueError):
        lrs = {} if lr is None else {name: lr}
        decays = {} if weight_decay is None else {name: weight_decay}
        return plan(recipe, [name], [seed], lrs, settings, decays)[0]


def carry_out_all(
    options: Training,
    runs: "Sequence[Run]",
    work: "Work[_T]",
    tracker: str | None = None,
) -> _T:
    """Check everything that can be checked before training, then train.

    Args:
        options: Of the command.
        runs: Of one recipe.
        work: Trains the runs.
        tracker: That gets the curves, None for none.

    Returns:
        What ``work`` returns.

    Raises:
        RefusalError: If data, device, folder or a run in it are not as they must be.
    """
    from saiopt.lab.comparison.compare import prepare
    from saiopt.lab.training.progress import display
    from saiopt.lab.training.ranks import LostProcessError, together
    from saiopt.lab.training.run_folder import RunFolderError
    from saiopt.lab.training.trackers import tracking

    device, recipe = device_of(options), runs[0].recipe
    with contextlib.ExitStack() as stack:
        stack.enter_context(refusing(LostProcessError, to=LostError))
        with refusing(ValueError):
            joined = together(options.strategy, device, recipe.batch_size)
            ranks = stack.enter_context(joined)
        with refusing(ValueError, FileNotFoundError):
            task = prepare(runs, ranks)
        ranks.on_first(lambda: require_writable(options.runs_dir))
        # Only the first process speaks; the others end here when all is done.
        console = new_console(stderr=options.json, quiet=not ranks.is_first)
        # What else fails while they train is no fault of the user's.
        seen = stack.enter_context(display(runs, console))
        with refusing(ValueError):
            heard = tracker if ranks.is_first else None
            observe = stack.enter_context(tracking(heard, options.runs_dir, seen))
        with refusing(RunFolderError):
            result = work(runs, task, options.runs_dir, device, observe, ranks)
    if not ranks.is_first:
        raise SystemExit(0)
    return result


def refuse_diverged(outcomes: "Sequence[Outcome]") -> None:
    """Let a command end with a code of its own where a run has diverged.

    Args:
        outcomes: Of all runs of the command, whose results have been printed.

    Raises:
        DivergedError: If one has diverged.
    """
    lost = [outcome for outcome in outcomes if outcome.result["status"] == "diverged"]
    if lost:
        names = ", ".join(f"{o.run.optimizer} seed {o.run.seed}" for o in lost)
        raise DivergedError(f"{len(lost)} of {len(outcomes)} runs diverged: {names}")


def pairs(name: str, texts: Sequence[str]) -> dict[str, str]:
    """Split ``name=value`` arguments.

    Args:
        name: Of the option, for the message.
        texts: The option's values.

    Returns:
        Value by name.

    Raises:
        RefusalError: If one is not of that form or names what another names.
    """
    result: dict[str, str] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key or not value or key in result:
            raise RefusalError(
                f"{name} must be given as name=value, each name once, got {text}"
            )
        result[key] = value
    return result


def device_of(options: Machine) -> "torch.device":
    """Set the number of CPU threads and choose where to train.

    Args:
        options: Of the command.

    Returns:
        The device.

    Raises:
        RefusalError: If the machine cannot do what was asked.
    """
    import torch

    if options.threads is not None:
        if options.threads < 1:
            raise RefusalError(f"threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise RefusalError("device must be cpu where there is no CUDA, got cuda")
    return torch.device(options.device or ("cuda" if has_cuda else "cpu"))
