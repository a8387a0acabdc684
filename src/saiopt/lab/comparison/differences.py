"""Which optimizers of a comparison can be told apart."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from saiopt.lab.comparison.paired import Pairing, compare_seeds, corrected_verdicts

MEANING = "± is half of the 95 % Student interval of a mean over n seeds"


@dataclasses.dataclass(frozen=True)
class Differences:
    """Every optimizer against the one of the best mean, paired by seed.

    Args:
        best: Name of that one; None where no optimizer finished all of its runs.
        found: One comparison per other optimizer, in their order.
        verdicts: On each, all together held to one level.
    """

    best: str | None
    found: Sequence[Pairing]
    verdicts: Sequence[str]

    @property
    def rivals(self) -> list[str]:
        """Those that cannot be told from the best one."""
        return [
            comparison.optimizer
            for comparison, verdict in zip(self.found, self.verdicts, strict=True)
            # What has diverged wherever the best one finished is worse.
            if verdict != "worse" and (comparison.gains or not comparison.num_diverged)
        ]

    @property
    def winner(self) -> str | None:
        """The best one, if it can be told from all others and there are some."""
        return self.best if self.found and not self.rivals else None

    def lines(self) -> list[tuple[str, str]]:
        """Return each other optimizer and its difference from the best, as text."""
        return [
            (comparison.optimizer, _text(comparison, verdict))
            for comparison, verdict in zip(self.found, self.verdicts, strict=True)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the differences as JSON types; a gain is negative where worse."""
        return {
            "best": self.best,
            "winner": self.winner,
            "found": [
                {
                    "optimizer": comparison.optimizer,
                    "gains": list(comparison.gains),
                    "num_diverged": comparison.num_diverged,
                    "verdict": verdict,
                }
                for comparison, verdict in zip(self.found, self.verdicts, strict=True)
            ],
        }


def differences(
    recipe: str,
    values: Mapping[str, Mapping[int, float | None]],
    *,
    higher_is_better: bool,
) -> Differences:
    """Hold every optimizer against the one of the best mean.

    Args:
        recipe: Name.
        values: The metric by optimizer and seed, None where a run diverged.
        higher_is_better: Whether the best value is the largest.

    Returns:
        The differences, their verdicts corrected for their number by Holm's procedure.
    """
    means = {
        name: statistics.fmean(finished)
        for name, by_seed in values.items()
        if len(finished := [v for v in by_seed.values() if v is not None])
        == len(by_seed)
        > 0
    }
    pick = max if higher_is_better else min
    best = pick(means, key=means.__getitem__, default=None)
    if best is None:
        return Differences(None, [], [])
    found = [
        compare_seeds(
            recipe,
            name,
            best,
            by_seed,
            values[best],
            higher_is_better=higher_is_better,
        )
        for name, by_seed in values.items()
        if name != best
    ]
    return Differences(best, found, corrected_verdicts(found))


def _text(comparison: Pairing, verdict: str) -> str:
    if not comparison.gains:
        return f"diverged ({comparison.num_diverged} of {comparison.num_diverged})"
    judged = f"  {verdict}" if len(comparison.gains) > 1 else ""
    return f"{comparison.mean_text}{judged}"
