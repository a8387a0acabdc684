"""Why a comparison does not say much yet."""

from collections.abc import Iterator, Sequence

from saiopt.lab.recipe import Recipe
from saiopt.lab.recipes import RECIPES
from saiopt.lab.training.outcome import Outcome

_ENOUGH_SEEDS = 3


def cautions(outcomes: Sequence[Outcome]) -> list[str]:
    """Say what keeps a comparison from being an answer.

    Args:
        outcomes: Of one recipe, with the same seeds for every optimizer.

    Returns:
        Sentences, none where nothing is known against it.
    """
    recipe = outcomes[0].run.recipe
    seeds = len({outcome.run.seed for outcome in outcomes})
    return [*_of_seeds(seeds), *_of_steps(recipe), *_of_progress(outcomes)]


def _of_seeds(count: int) -> Iterator[str]:
    if count == 1:
        yield "One seed gives neither interval nor verdict: --seeds 0 1 2 gives both."
    elif count < _ENOUGH_SEEDS:
        yield (
            f"{count} seeds give wide intervals: at least {_ENOUGH_SEEDS} make a "
            "result, 5 a claim."
        )


def _of_steps(recipe: Recipe) -> Iterator[str]:
    build = RECIPES.get(recipe.name)
    usual = recipe.steps if build is None else build().steps
    if recipe.steps < usual / 2:
        yield (
            f"{recipe.steps:,} steps are few for a recipe of {usual:,}, and learning "
            "rates tuned for those."
        )


def _of_progress(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Name the optimizers of which no run ended better than it began."""
    by_name: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.run.optimizer, []).append(_has_learned(outcome))
    idle = [name for name, learned in by_name.items() if not any(learned)]
    if idle:
        yield f"No better at the end than before the first step: {', '.join(idle)}."


def _has_learned(outcome: Outcome) -> bool:
    curve, value = outcome.curve, outcome.value
    if value is None or not curve or curve[0][0] > 0:
        return True
    higher = outcome.run.recipe.metric.higher_is_better
    return value > curve[0][1] if higher else value < curve[0][1]
