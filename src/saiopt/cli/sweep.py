"""``saiopt sweep``."""

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from saiopt.choices import must_be_known
from saiopt.cli.output import new_console, print_json, print_tables
from saiopt.cli.refusal import LostError, RefusalError, refusing, require_writable
from saiopt.cli.training import (
    OptimizerNames,
    Seeds,
    Training,
    device_of,
    known_optimizers,
    recipe_of,
    setting_grids,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from saiopt.lab.recipe import Recipe
    from saiopt.lab.sweep.board import Board, Cell
    from saiopt.lab.sweep.plan import Sweep as Plan
    from saiopt.lab.sweep.workers import Place
    from saiopt.lab.task import Task

_TRIALS = 20


@dataclasses.dataclass(frozen=True)
class Sweep(Training):
    """Search learning rate and weight decay of several optimizers.

    Args:
        optimizers: Names, or one's own: file.py:name.
        lrs: Learning rates of the grid; tpe stays between the least and largest.
        weight_decays: The same for the weight decay.
        sampler: All pairs, or pairs that the results so far suggest.
        trials: Pairs per optimizer that tpe tries.
        seeds: Every pair is trained with each of them.
        storage: Database of the sweep; machines that name the same one share it.
        workers: Processes that train at once.
        published: Take this published grid's values, and draw it beside ours.
    """

    optimizers: OptimizerNames = ()
    lrs: Annotated[
        tuple[float, ...],
        arg(metavar="LR ...", help_behavior_hint="(default: 5 around the recipe's)"),
    ] = ()
    weight_decays: Annotated[
        tuple[float, ...],
        arg(
            metavar="WD ...",
            help_behavior_hint="(default: the recipe's decay per step, over lr)",
        ),
    ] = ()
    sampler: Annotated[Literal["grid", "tpe"], arg(metavar="grid|tpe")] = "grid"
    trials: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 20 with tpe)")
    ] = None
    seeds: Seeds = (0,)
    storage: Annotated[
        str | None,
        arg(metavar="URL", help_behavior_hint="(default: SQLite in the runs folder)"),
    ] = None
    workers: Annotated[int, arg(metavar="N")] = 1
    published: Annotated[
        Literal["vit-s16-imagenet", "resnet18-cifar10"] | None,
        arg(metavar="GRID", help_behavior_hint="(vit-s16-imagenet, resnet18-cifar10)"),
    ] = None

    def __call__(self) -> None:
        """Train and print the table."""
        from saiopt.lab.comparison.compare import prepare
        from saiopt.lab.sweep.findings import as_json, gather
        from saiopt.lab.sweep.table import sweep_table
        from saiopt.lab.sweep.workers import boards
        from saiopt.lab.training.run_folder import RunFolderError

        self._check_processes()
        with refusing(ValueError, FileNotFoundError):
            sweeps = self._sweeps(recipe_of(self))
            place = self._place()
            task = prepare([sweep.runs({"lr": sweep.lrs[0]})[0] for sweep in sweeps])
            require_writable(self.runs_dir)
            opened = boards(sweeps, task, place)
        with refusing(RunFolderError):
            self._work_off(opened, task, place)
        findings = gather(opened, self.runs_dir, self.published)
        content = as_json(findings)
        if self.json:
            print_json(content)
            return
        console = new_console()
        console.print()
        print_tables(console, sweep_table(content))
        console.print(f"\nPictures and numbers: {findings.folder}/", soft_wrap=True)

    def _check_processes(self) -> None:
        if self.workers < 1:
            raise RefusalError(f"workers must be at least 1, got {self.workers}")
        if self.strategy is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RefusalError(
                "sweep must be started once per machine, not by torchrun and without "
                "strategy; workers sets its processes"
            )

    def _sweeps(self, recipe: "Recipe") -> "list[Plan]":
        from saiopt.lab.comparison.compare import plan
        from saiopt.lab.recipe import usual_optimizers
        from saiopt.lab.sweep.plan import Sweep as Plan
        from saiopt.lab.sweep.plan import lrs_around
        from saiopt.lab.sweep.published import given_decay, published_grid

        if self.trials is not None and self.sampler != "tpe":
            raise RefusalError(
                f"trials must be left out without --sampler tpe, got {self.trials}"
            )
        trials = _TRIALS if self.trials is None else self.trials
        names = known_optimizers(self.optimizers) or usual_optimizers(recipe)
        lrs, decays = self.lrs, dict.fromkeys(names, self.weight_decays)
        if self.published is not None:
            grid = published_grid(self.published)
            lrs = lrs or grid.lrs
            decays = {
                name: self.weight_decays
                or tuple(given_decay(name, decay) for decay in grid.weight_decays)
                for name in names
            }
        given = dict.fromkeys(names, lrs[0]) if lrs else {}
        centres = {run.optimizer: run.lr for run in plan(recipe, names, (0,), given)}
        grids = setting_grids(self)
        if unknown := grids.keys() - set(names):
            raise RefusalError(
                must_be_known("optimizer in setting", min(unknown), names)
            )
        return [
            Plan(
                recipe,
                name,
                lrs or lrs_around(centres[name]),
                decays[name],
                self.seeds,
                self.sampler,
                trials if self.sampler == "tpe" else 0,
                settings,
            )
            for name in names
            for settings in grids.get(name, [{}])
        ]

    def _place(self) -> "Place":
        import torch

        from saiopt.lab.own.reference import is_reference
        from saiopt.lab.sweep.workers import Place

        device = device_of(self)
        threads = self.threads or max(torch.get_num_threads() // self.workers, 1)
        url = self.storage or f"sqlite:///{self.runs_dir / 'sweeps.db'}"
        torch.set_num_threads(threads)
        own = tuple(name for name in self.optimizers if is_reference(name))
        return Place(self.runs_dir, url, device, threads, own)

    def _work_off(
        self, opened: "Sequence[Board]", task: "Task", place: "Place"
    ) -> None:
        from saiopt.lab.sweep.workers import work_off, work_off_together

        sweeps = [board.sweep for board in opened]
        announce = self._announcer(opened)
        if self.workers == 1:
            work_off(sweeps, task, place, announce)
            return
        lost = work_off_together(sweeps, place, self.workers, announce)
        total = sum(len(sweep.cells()) for sweep in sweeps)
        if lost and sum(len(board.cells()) for board in opened) < total:
            raise LostError(
                f"{lost} of {self.workers} workers ended before their time; the same "
                "command goes on from what they had reached"
            )

    def _announcer(self, opened: "Sequence[Board]") -> "Callable[[Plan, Cell], None]":
        from saiopt.lab.sweep.table import cell_line

        console = new_console(stderr=self.json)
        total = sum(len(board.sweep.cells()) for board in opened)
        done = sum(len(board.cells()) for board in opened)
        if done:
            console.print(f"{done} of {total} cells were finished before")

        def announce(sweep: "Plan", cell: "Cell") -> None:
            nonlocal done
            done += 1
            console.print(cell_line(sweep, cell, done, total), soft_wrap=True)

        return announce
