"""Paired comparisons of optimizers over the seeds of a study."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saiopt.analysis.paired_plot import plot_differences
from saiopt.lab.comparison.intervals import Estimate, estimate
from saiopt.lab.recipes import get_recipe


@dataclasses.dataclass(frozen=True)
class Pairing:
    """One optimizer against another on one recipe, seed by seed.

    Args:
        recipe: Name.
        optimizer: Name.
        control: Name of the other optimizer.
        gains: One per seed at which both finished: by how much the optimizer's metric
            is better than the control's, negative where it is worse.
        num_diverged: Seeds at which the optimizer or its control diverged.
    """

    recipe: str
    optimizer: str
    control: str
    gains: Sequence[float]
    num_diverged: int = 0

    @property
    def interval(self) -> Estimate:
        """Mean gain with its 95 % interval."""
        return estimate(self.gains)

    @property
    def mean_text(self) -> str:
        """The mean gain as text, such as ``+0.0123 ± 0.0045 (n=3, 1 diverged)``."""
        found = self.interval
        width = "" if found.half_width is None else f" ± {found.half_width:.4f}"
        diverged = f", {self.num_diverged} diverged" if self.num_diverged else ""
        return f"{found.mean:+.4f}{width} (n={found.count}{diverged})"

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` if the interval excludes 0, else ``"open"``."""
        if len(self.gains) < 2:
            return "open"
        mean, half_width = self.interval.mean, self.interval.half_width
        if half_width is None or abs(mean) <= half_width:
            return "open"
        return "better" if mean > 0 else "worse"

    def __str__(self) -> str:
        if not self.gains:
            return f"no pair ({self.num_diverged} diverged)"
        return f"{self.mean_text} {self.verdict}"


def metric_of(row: Mapping[str, Any]) -> float | None:
    """Return the metric by which a row's recipe compares optimizers.

    Args:
        row: Of a study.

    Returns:
        Its value, None of a run that diverged.
    """
    return row.get(get_recipe(row["recipe"]).metric.name)


def compare_pairs(
    rows: Iterable[Mapping[str, Any]], recipe: str, optimizer: str, control: str
) -> Pairing:
    """Pair the runs of two optimizers by seed.

    Args:
        rows: At most one per recipe, optimizer and seed.
        recipe: Name.
        optimizer: Name.
        control: Name of the other optimizer.

    Returns:
        Their comparison.

    Raises:
        ValueError: If one of them has two rows for a seed.
    """
    found: dict[str, dict[int, float | None]] = {optimizer: {}, control: {}}
    for row in rows:
        if row["recipe"] != recipe or row["optimizer"] not in found:
            continue
        by_seed = found[row["optimizer"]]
        if row["seed"] in by_seed:
            raise ValueError(
                f"rows must be one per seed, got two of {row['optimizer']}"
            )
        by_seed[row["seed"]] = metric_of(row)
    higher = get_recipe(recipe).metric.higher_is_better
    return compare_seeds(
        recipe, optimizer, control, *found.values(), higher_is_better=higher
    )


def compare_seeds(
    recipe: str,
    optimizer: str,
    control: str,
    ours: Mapping[int, float | None],
    theirs: Mapping[int, float | None],
    *,
    higher_is_better: bool,
) -> Pairing:
    """Pair metrics by seed.

    Args:
        recipe: Name.
        optimizer: Name.
        control: Name of the other optimizer.
        ours: The optimizer's metric by seed, None where it diverged.
        theirs: The control's.
        higher_is_better: Whether the best metric is the largest.

    Returns:
        Their comparison over the seeds that both have.
    """
    sign = 1 if higher_is_better else -1
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    gains = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
    return Pairing(recipe, optimizer, control, gains, len(pairs) - len(gains))


def corrected_verdicts(
    found: Sequence[Pairing], level: float = 0.05, planned: int = 0
) -> list[str]:
    """Judge the comparisons of one table together.

    Of many comparisons without a difference some intervals exclude 0 by chance. Holm's
    procedure keeps the probability of any false verdict below the level: the smallest
    of k p-values is held against level / k, the next against level / (k - 1), and so on
    until one is larger.

    Args:
        found: The comparisons; those of fewer than two pairs stay open.
        level: Probability of a false verdict.
        planned: Number of comparisons of the table when it is complete. Those to come
            count as open, so that no verdict of now can be taken back by them.

    Returns:
        ``"better"``, ``"worse"`` or ``"open"`` of each.

    References:
        Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    verdicts = ["open"] * len(found)
    judged = [i for i, comparison in enumerate(found) if len(comparison.gains) > 1]
    p_values = {i: _p_value(found[i].gains) for i in judged}
    ascending = sorted(judged, key=p_values.__getitem__)
    count = max(planned, len(ascending))
    for rank, i in enumerate(ascending):
        if p_values[i] > level / (count - rank):
            break
        verdicts[i] = "better" if found[i].interval.mean > 0 else "worse"
    return verdicts


def _p_value(gains: Sequence[float]) -> float:
    """Return how likely a mean as far from 0 is where there is no difference."""
    if len(set(gains)) == 1:
        return 0.0 if gains[0] else 1.0
    from scipy import stats

    found: Any = stats.ttest_1samp(gains, 0.0)
    return float(found.pvalue)


def mean_metric(
    rows: Iterable[Mapping[str, Any]], recipe: str, optimizer: str
) -> Estimate | None:
    """Average an optimizer's metric over its seeds.

    Args:
        rows: Of a study.
        recipe: Name.
        optimizer: Name.

    Returns:
        The mean over the runs that finished, None if none did.
    """
    values = [
        value
        for row in rows
        if row["recipe"] == recipe and row["optimizer"] == optimizer
        if (value := metric_of(row)) is not None
    ]
    return estimate(values) if values else None


def draw_gains(
    found: Sequence[Pairing],
    name: Callable[[Pairing], str],
    paths: Sequence[Path],
) -> None:
    """Draw one panel per recipe and one line per comparison: its gains and interval.

    Args:
        found: Those without a pair are left out.
        name: Of a comparison's line.
        paths: Files to write.
    """
    panels: dict[str, dict[str, Sequence[float]]] = {}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    for comparison in found:
        if not comparison.gains:
            continue
        interval = comparison.interval
        bounds = (interval.mean, interval.half_width or 0.0)
        panels.setdefault(comparison.recipe, {})[name(comparison)] = comparison.gains
        intervals.setdefault(comparison.recipe, {})[name(comparison)] = bounds
    labels = {recipe: f"gain in {get_recipe(recipe).metric.label}" for recipe in panels}
    plot_differences(panels, intervals, labels, paths)
