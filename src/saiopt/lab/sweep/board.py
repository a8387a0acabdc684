"""The cells of a sweep in an Optuna storage that several processes share."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from saiopt.lab.atomic import alone
from saiopt.lab.sweep.claims import Claim, is_abandoned
from saiopt.lab.sweep.plan import Sweep
from saiopt.lab.training.outcome import Outcome

_LOCK = "all.lock"
_LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A learning rate and a decay that have been tried with all seeds.

    Args:
        lr: η.
        weight_decay: λ.
        values: The recipe's metric by seed, without diverged seeds.
        diverged: Step of divergence by seed.
        folders: Of the runs.
        total_seconds: Of all runs together.
    """

    lr: float
    weight_decay: float
    values: Mapping[int, float]
    diverged: Mapping[int, int]
    folders: Sequence[str]
    total_seconds: float

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if one of them diverged."""
        if self.diverged:
            return None
        return sum(self.values.values()) / len(self.values)


class Board:
    """Take cells of one sweep and put results back, safely among other processes.

    Each cell is a trial that waits, is run, is complete or has failed. A cell whose
    trials have all failed is put up again with the same parameters; so is one whose
    process is dead or silent.

    Args:
        sweep: What is tried.
        software: Data and versions, part of the study's name.
        storage: From :func:`open_storage`.
        locks: Folder of this machine's locks.
    """

    def __init__(
        self,
        sweep: Sweep,
        software: Mapping[str, Any],
        storage: RDBStorage,
        locks: Path,
    ) -> None:
        self.sweep = sweep
        locks.mkdir(parents=True, exist_ok=True)
        self._locks = locks
        higher = sweep.recipe.metric.higher_is_better
        with self._one_at_a_time():
            self._study = optuna.create_study(
                storage=storage,
                study_name=sweep.study_name(software),
                direction="maximize" if higher else "minimize",
                load_if_exists=True,
            )
            # A grid is put up cell by cell, and what is put up is not sampled.
            self._study.sampler = RandomSampler()

    def _one_at_a_time(self) -> AbstractContextManager[None]:
        """Let one process of this machine take or judge trials."""
        return alone(self._locks / _LOCK)

    @property
    def study_name(self) -> str:
        """The name of the sweep in its storage."""
        return self._study.study_name

    def claim(self) -> Claim | None:
        """Take the next cell.

        Returns:
            The claim with the trial's parameters chosen; None if no cell waits.
        """
        with self._one_at_a_time():
            self._fail_abandoned()
            self._put_up_missing()
            while self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                trial = self._study.ask()
                if self._is_surplus(trial):
                    self._study.tell(trial, state=TrialState.FAIL)
                    continue
                claim = Claim(trial, self._locks)
                self._choose(trial)
                return claim
        return None

    def finish(self, claim: Claim, outcomes: Sequence[Outcome]) -> Cell:
        """Record how a cell ended.

        Where others have given this process up meanwhile and put the cell up again, its
        runs stay in their folders, where whoever trains the cell finds them.

        Args:
            claim: From :meth:`claim`.
            outcomes: One per seed.

        Returns:
            The cell.
        """
        cell = _cell(outcomes)
        worst = float("-inf" if self.sweep.recipe.metric.higher_is_better else "inf")
        value = worst if cell.mean is None else cell.mean
        with suppress(UpdateFinishedTrialError):
            claim.trial.set_user_attr("result", dataclasses.asdict(cell))
            self._study.tell(claim.trial, value, skip_if_finished=True)
        claim.release()
        return cell

    def give_up(self, claim: Claim) -> None:
        """Put a cell back that could not be trained.

        Args:
            claim: From :meth:`claim`.
        """
        with suppress(UpdateFinishedTrialError):
            self._study.tell(claim.trial, state=TrialState.FAIL, skip_if_finished=True)
        claim.release()

    def cells(self) -> list[Cell]:
        """Return all complete cells in the order of their learning rates."""
        trials = self._study.get_trials(states=(TrialState.COMPLETE,))
        cells = [_read(trial.user_attrs["result"]) for trial in trials]
        return sorted(cells, key=lambda cell: (cell.lr, cell.weight_decay))

    def _fail_abandoned(self) -> None:
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            if is_abandoned(trial, self._study.study_name, self._locks):
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _put_up_missing(self) -> None:
        trials = self._study.get_trials()
        held = {_index(trial) for trial in trials if trial.state in _LIVE}
        before = {_index(trial): trial.params for trial in trials}
        for index, params in enumerate(self.sweep.cells()):
            if index not in held:
                again = before.get(index) or params
                self._study.enqueue_trial(again, user_attrs={"cell": index})

    def _choose(self, trial: Trial) -> None:
        if self.sweep.sampler == "tpe":
            # No two trials of a storage have a number in common, so that processes that
            # begin together propose different cells.
            self._study.sampler = _tpe(seed=trial.number)
        for name, (low, high) in self.sweep.ranges.items():
            trial.suggest_float(name, low, high, log=low > 0)

    def _is_surplus(self, trial: Trial) -> bool:
        """Tell whether another machine has the cell too, or there was none to take."""
        index = trial.user_attrs.get("cell")
        return index is None or any(
            other.number < trial.number
            and other.state in _LIVE
            and _index(other) == index
            for other in self._study.get_trials(deepcopy=False)
        )


def open_storage(url: str, locks: Path) -> RDBStorage:
    """Open a storage and create its tables if it is new.

    Args:
        url: As SQLAlchemy writes it, such as ``sqlite:///runs/sweeps.db``.
        locks: Folder of this machine's locks.

    Returns:
        The storage.

    Raises:
        ValueError: If it cannot be opened.
    """
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # SQLite lets one process write at a time; the others shall wait, not fail.
    waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with alone(locks / _LOCK):
            return RDBStorage(url, engine_kwargs=waiting)
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"storage must be a database that can be opened, got {url} ({reason})"
        ) from error


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The liar keeps processes from proposing cells that others are training.
        return TPESampler(seed=seed, constant_liar=True)


def _index(trial: FrozenTrial) -> int | None:
    return trial.user_attrs.get("cell")


def _cell(outcomes: Sequence[Outcome]) -> Cell:
    run = outcomes[0].run
    values = {o.run.seed: o.value for o in outcomes if o.value is not None}
    return Cell(
        lr=run.lr,
        weight_decay=run.weight_decay,
        values=values,
        diverged={o.run.seed: o.result["step"] for o in outcomes if o.value is None},
        folders=[outcome.folder for outcome in outcomes],
        total_seconds=sum(o.result["total_seconds"] for o in outcomes),
    )


def _read(result: Mapping[str, Any]) -> Cell:
    by_seed = {
        name: {int(seed): value for seed, value in result[name].items()}
        for name in ("values", "diverged")
    }
    return Cell(**{**result, **by_seed})
