"""Several optimizers on the same model, data order and seeds."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saiopt.analysis.curves import Curve, mean_curve, plot_curves
from saiopt.choices import must_be_known
from saiopt.lab.atomic import alone, write_json
from saiopt.lab.comparison.cautions import cautions
from saiopt.lab.comparison.differences import Differences, differences
from saiopt.lab.comparison.intervals import Estimate, estimate
from saiopt.lab.identity import identity_hash
from saiopt.lab.optimizers import build_optimizer, get_optimizer
from saiopt.lab.recipe import Recipe
from saiopt.lab.task import Brought, Task
from saiopt.lab.training.loop import Observer
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run import Run


@dataclasses.dataclass(frozen=True)
class Summary:
    """One optimizer over all seeds.

    Args:
        optimizer: Its name.
        lr: Peak learning rate.
        weight_decay: λ of the optimizer.
        metric: Over the seeds that did not diverge; None if all did.
        diverged: Step of divergence by seed.
        state_bytes_per_parameter: Measured on the optimizer after a step.
        step_seconds: Median over seeds of the runs' median ``step()``; None where steps
            are part of the backward pass.
        total_seconds: Sum over seeds.
    """

    optimizer: str
    lr: float
    weight_decay: float
    metric: Estimate | None
    diverged: Mapping[int, int]
    state_bytes_per_parameter: float
    step_seconds: float | None
    total_seconds: float


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """What ``compare`` found.

    Args:
        recipe: Of all runs.
        outcomes: One per run.
        rows: One per optimizer, in the order in which they were asked for.
        folder: Where table and plot are kept.
    """

    recipe: Recipe
    outcomes: Sequence[Outcome]
    rows: Sequence[Summary]
    folder: Path

    @property
    def differences(self) -> Differences:
        """Every optimizer against the one of the best mean."""
        values = {
            name: {outcome.run.seed: outcome.value for outcome in group}
            for name, group in _by_optimizer(self.outcomes).items()
        }
        higher = self.recipe.metric.higher_is_better
        return differences(self.recipe.name, values, higher_is_better=higher)

    def __repr__(self) -> str:
        """Return such as ``<Comparison of adamw, sgd on gpt-stdlib in runs/…>``."""
        names = ", ".join(row.optimizer for row in self.rows)
        return f"<Comparison of {names} on {self.recipe.name} in {self.folder}>"

    @property
    def cautions(self) -> list[str]:
        """What keeps it from being an answer."""
        return cautions(self.outcomes)


def plan(
    recipe: Recipe,
    optimizers: Sequence[str],
    seeds: Sequence[int],
    lrs: Mapping[str, float],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    weight_decays: Mapping[str, float] | None = None,
) -> list[Run]:
    """List the runs of a comparison, seed by seed.

    Args:
        recipe: What is trained.
        optimizers: Names, each once.
        seeds: Each once.
        lrs: Learning rates instead of the recipe's, by optimizer.
        settings: By optimizer, instead of those that the lab gives it.
        weight_decays: λ by optimizer, instead of the recipe's decay per step over lr.

    Returns:
        One run per optimizer and seed.

    Raises:
        ValueError: If a name is unknown, a value comes twice, or a learning rate is
            missing or out of range.
    """
    for name, values in (("optimizers", optimizers), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            listed = " ".join(map(str, values)) or "none"
            raise ValueError(f"{name} must be given each once, got {listed}")
    settings, weight_decays = settings or {}, weight_decays or {}
    given = {"lr": lrs, "setting": settings, "weight_decay": weight_decays}
    for option, by_name in given.items():
        for name in by_name:
            if name not in optimizers:
                argument = f"optimizer in {option}"
                raise ValueError(must_be_known(argument, name, optimizers))
    for name in optimizers:
        get_optimizer(name)
    table = {**recipe.lrs, **lrs}
    return [
        Run(
            recipe,
            optimizer,
            _lr(table, optimizer),
            seed,
            fixed_weight_decay=weight_decays.get(optimizer),
            settings=settings.get(optimizer, {}),
        )
        for seed in seeds
        for optimizer in optimizers
    ]


def prepare(runs: Sequence[Run], ranks: Ranks = ALONE) -> Task:
    """Load the task of some runs and see that model, batch and optimizers fit it.

    Args:
        runs: Of one recipe.
        ranks: The processes that are to train each run together.

    Returns:
        The task.

    Raises:
        FileNotFoundError: If the data is not on this machine.
        ValueError: If the task's sizes do not fit its data, its model cannot be shared,
            or an optimizer does not fit it.
    """
    task = runs[0].recipe.task.load()
    if runs[0].recipe.loaders and isinstance(task, Brought):
        raise ValueError(
            "loaders must be 0 for a recipe of one's own, whose data may draw from "
            f"generators that threads would share, got {runs[0].recipe.loaders}"
        )
    task.batch(runs[0].seed, 0, runs[0].recipe.batch_size)
    with torch.device("meta"):
        model = task.build_model(runs[0].seed)
    ranks.require_shareable(model)
    if runs[0].recipe.gradient_release and ranks.strategy == "ddp":
        raise ValueError(
            "strategy must be fsdp2 with gradient_release, since DDP keeps all "
            "gradients in its buckets, got ddp"
        )
    chosen = {run.optimizer: run for run in runs}
    if ranks.strategy == "fsdp2":
        for name in chosen:
            if not get_optimizer(name).shards:
                raise ValueError(
                    f"strategy must be ddp with {name}, which needs whole parameters, "
                    "got fsdp2"
                )
        ranks.spread(model)
    for run in {json.dumps([r.optimizer, r.all_settings]): r for r in runs}.values():
        build_optimizer(
            run.optimizer, model, run.lr, run.weight_decay, run.seed, run.settings
        )
    return task


def compare(
    runs: Sequence[Run],
    task: Task,
    runs_dir: Path,
    device: torch.device,
    observe: Observer,
    ranks: Ranks = ALONE,
) -> Comparison:
    """Train all runs that are not finished and put them side by side.

    Args:
        runs: Of one recipe.
        task: Of that recipe, from :func:`prepare`.
        runs_dir: Where run folders live.
        device: Where they train.
        observe: Told of every step.
        ranks: The processes that train each run together; the first one writes.

    Returns:
        The comparison; ``comparison.json`` in its folder holds its rows.

    Raises:
        RunFolderError: If a run's folder is damaged or in use.
    """
    outcomes = [carry_out(run, task, runs_dir, device, observe, ranks) for run in runs]
    comparison = Comparison(
        runs[0].recipe, outcomes, summarize(outcomes), _folder(outcomes, runs_dir)
    )
    ranks.on_first(lambda: _write(comparison))
    return comparison


def summarize(outcomes: Sequence[Outcome]) -> list[Summary]:
    """Put the seeds of each optimizer together.

    Args:
        outcomes: Of one recipe, with the same seeds for every optimizer.

    Returns:
        One row per optimizer, in the order of their first outcome.
    """
    return [_summary(group) for group in _by_optimizer(outcomes).values()]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return rows and runs of a comparison as JSON types.

    Args:
        comparison: To be written.

    Returns:
        Recipe, metric, rows and one entry per run.
    """
    metric = comparison.recipe.metric
    return {
        "recipe": comparison.recipe.name,
        "metric": dataclasses.asdict(metric),
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "differences": comparison.differences.as_json(),
        "cautions": comparison.cautions,
        "runs": [
            {
                "folder": outcome.folder,
                "optimizer": outcome.run.optimizer,
                "seed": outcome.run.seed,
                "lr": outcome.run.lr,
                **outcome.result,
            }
            for outcome in comparison.outcomes
        ],
        "folder": str(comparison.folder),
    }


def _by_optimizer(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Put the runs of each optimizer together, in the order of their first one."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.run.optimizer, []).append(outcome)
    return found


def _write(comparison: Comparison) -> None:
    comparison.folder.mkdir(exist_ok=True)
    with alone(comparison.folder / "lock"):
        write_json(comparison.folder / "comparison.json", as_json(comparison))
        _plot(comparison)


def _plot(comparison: Comparison) -> None:
    """Draw the metric by step and by seconds, and the training loss."""
    by_name = _by_optimizer(comparison.outcomes)
    label = comparison.recipe.metric.label
    curves = {name: [o.curve for o in group] for name, group in by_name.items()}
    losses = {name: [o.losses for o in group] for name, group in by_name.items()}
    timed = {name: [_by_seconds(group)] for name, group in by_name.items()}
    _draw(comparison, "curves", curves, label, "step")
    _draw(comparison, "loss", losses, "training loss", "step")
    if any(any(each) for each in timed.values()):
        _draw(comparison, "seconds", timed, label, "seconds, evaluations included")


def _draw(
    comparison: Comparison,
    name: str,
    curves: Mapping[str, Sequence[Curve]],
    label: str,
    across: str,
) -> None:
    paths = [comparison.folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    seeds = [outcome.run.seed for outcome in comparison.outcomes]
    count = len(set(seeds))
    title = f"{comparison.recipe.name}, " + (
        f"mean of {count} seeds" if count > 1 else f"seed {seeds[0]}"
    )
    plot_curves(curves, title, label, paths, across)


def _by_seconds(group: Sequence[Outcome]) -> Curve:
    """Average time and metric over the seeds at the steps that all have reached."""
    times = dict(mean_curve([outcome.seconds for outcome in group]))
    values = dict(mean_curve([outcome.curve for outcome in group]))
    # The first evaluation is before training, however long it takes.
    return [
        (times[step] if step else 0.0, values[step]) for step in values if step in times
    ]


def _lr(table: Mapping[str, float], optimizer: str) -> float:
    same = get_optimizer(optimizer).lr_of
    if optimizer not in table and same is not None and same in table:
        return table[same]
    if optimizer not in table:
        raise ValueError(
            f"lr must be given for {optimizer}, for which the recipe has none "
            f"(it has {', '.join(table) or 'none for any'})"
        )
    return table[optimizer]


def _folder(outcomes: Sequence[Outcome], runs_dir: Path) -> Path:
    digest = identity_hash([outcome.folder for outcome in outcomes])
    return runs_dir / f"compare-{outcomes[0].run.recipe.name}-{digest}"


def _summary(group: Sequence[Outcome]) -> Summary:
    values = [outcome.value for outcome in group if outcome.value is not None]
    results = [outcome.result for outcome in group]
    times = [result["step_seconds"] for result in results if result["step_seconds"]]
    steps = [time["median"] for time in times]
    return Summary(
        optimizer=group[0].run.optimizer,
        lr=group[0].run.lr,
        weight_decay=group[0].run.weight_decay,
        metric=estimate(values) if values else None,
        diverged={
            outcome.run.seed: outcome.result["step"]
            for outcome in group
            if outcome.result["status"] == "diverged"
        },
        state_bytes_per_parameter=(
            results[0]["state_bytes"] / results[0]["num_parameters"]
        ),
        step_seconds=statistics.median(steps) if steps else None,
        total_seconds=sum(result["total_seconds"] for result in results),
    )
