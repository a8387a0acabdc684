"""The training loop: nothing stands between it and ``optimizer.step()``."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from saiopt.analysis.gsnr import GSNRProbe
from saiopt.analysis.image_grid import write_grid
from saiopt.lab.draws import seed_of
from saiopt.lab.optimizers import build_optimizer, set_mode, state_bytes
from saiopt.lab.schedules import lr_factor
from saiopt.lab.task import Illustrated, Task
from saiopt.lab.training import checkpoint
from saiopt.lab.training.accumulation import accumulate, in_precision
from saiopt.lab.training.environment import deterministic
from saiopt.lab.training.loading import made_ahead
from saiopt.lab.training.ranks import ALONE, Ranks
from saiopt.lab.training.run import Run
from saiopt.lab.training.run_folder import RunFolder
from saiopt.lab.training.shards import whole
from saiopt.optimizer import SGDSaI, step_in_backward


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run tells whoever watches it.

    Args:
        run: The run.
        step: Finished steps.
        loss: Of the step that has just been made.
        metrics: Of the evaluation that has just been made.
        status: ``"started"`` (``step`` > 0 on a resume), ``"training"``,
            ``"finished"``, ``"diverged"`` or ``"reused"``.
        elsewhere: On how many processes a reused run was begun, where not on as many
            as now.
        numbers: What the log has of the step that has just been made: ``loss``,
            ``lr``, ``grad_norm``, ``step_seconds``, and g-SNR of each block where it
            is measured.
    """

    run: Run
    step: int
    loss: float | None = None
    metrics: dict[str, float] | None = None
    status: str = "training"
    elsewhere: str = ""
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


Observer = Callable[[Progress], None]


def train(
    run: Run,
    task: Task,
    folder: RunFolder,
    device: torch.device,
    observe: Observer,
    ranks: Ranks = ALONE,
    *,
    keep_weights: bool = False,
) -> dict[str, Any]:
    """Train a run to its end, from its last checkpoint if it has one.

    Args:
        run: What is trained.
        task: Model and data of the run's recipe.
        folder: Where it is recorded.
        device: Where it trains.
        observe: Called after every step and evaluation.
        ranks: The processes that train together.
        keep_weights: Whether a run that is trained to its end leaves its weights.

    Returns:
        The content of ``result.json``.

    Raises:
        RunFolderError: If the folder is damaged or in use.
    """
    result = folder.result()
    if result is None:
        with folder.locked(), deterministic():
            # Another process may have finished it before this one had the lock.
            result = folder.result()
            if result is None:
                session = _Session(run, task, folder, device, observe, ranks)
                session.keep_weights = keep_weights
                return session.run_to_end()
    elsewhere = _elsewhere(folder.environment(), ranks)
    metrics = result["metrics"]
    observe(Progress(run, result["step"], None, metrics, "reused", elsewhere))
    return result


def _elsewhere(origin: Mapping[str, Any], ranks: Ranks) -> str:
    """Name the processes that a run was begun on, if they are not the present ones."""
    count, strategy = origin.get("ranks", 1), origin.get("strategy")
    if (count, strategy) == (ranks.count, ranks.strategy):
        return ""
    return "one process" if count == 1 else f"{count} processes with {strategy}"


class _Session:
    def __init__(
        self,
        run: Run,
        task: Task,
        folder: RunFolder,
        device: torch.device,
        observe: Observer,
        ranks: Ranks,
    ) -> None:
        self.run, self.recipe, self.task = run, run.recipe, task
        self.folder, self.device, self.observe = folder, device, observe
        self.ranks = ranks
        self.keep_weights = False
        self.model = self._build_model().to(device)
        if run.recipe.compiled:
            self.model.compile()
        self.spread = ranks.spread(self.model)
        self.optimizer = build_optimizer(
            run.optimizer,
            self.model,
            run.lr,
            run.weight_decay,
            run.seed,
            run.settings,
        )
        self.probe = GSNRProbe(self.model) if run.gsnr_every else None
        self.step = 0
        self.started = time.perf_counter()
        self._resume()

    def _build_model(self) -> nn.Module:
        # What a run before this one has drawn on this rank must not matter.
        torch.manual_seed(self.run.seed)
        model = self.task.build_model(self.run.seed)
        if not self.ranks.is_first:
            # Otherwise dropout would leave out the same of every rank's examples.
            torch.manual_seed(seed_of(self.run.seed, self.ranks.rank))
        return model

    def run_to_end(self) -> dict[str, Any]:
        task, seed, size = self.task, self.run.seed, self.recipe.batch_size
        batches = made_ahead(
            # A method would tie the model to the loader, and what is tied is not freed
            # before the next run builds its own.
            lambda step: task.batch(seed, step, size),
            self.recipe.loaders,
            self.recipe.steps,
        )
        with self._releasing(), batches as self.batch_of:
            return self._run_to_end()

    def _run_to_end(self) -> dict[str, Any]:
        self.observe(Progress(self.run, self.step, status="started"))
        metrics: dict[str, float] = {}
        while True:
            if self.step % self.recipe.eval_every == 0 or self._is_over():
                metrics = self._evaluate()
            if self._is_over():
                finite = all(math.isfinite(value) for value in metrics.values())
                return self._finish("finished" if finite else "diverged", metrics)
            loss = self._train_step()
            if not math.isfinite(loss):
                return self._finish("diverged", {})
            if self.step % self.recipe.checkpoint_every == 0:
                self._checkpoint()

    def _is_over(self) -> bool:
        return self.step == self.recipe.steps

    def _train_step(self) -> float:
        self.model.train()
        set_mode(self.optimizer, training=True)
        lr = self._set_lr()
        batch = self.batch_of(self.step)
        # The model's, not the optimizer's: what that leaves alone is clipped as well.
        self.model.zero_grad()
        loss = accumulate(
            self.task,
            self.spread,
            batch,
            self.ranks.parts(self.recipe.batch_size, self.recipe.micro_batches),
            self.device,
            self.ranks,
            self.recipe.precision,
        )
        line = {"step": self.step, "lr": lr, "loss": self.ranks.mean(loss)}
        if not self.recipe.gradient_release:
            line |= self._step()
        self.folder.append(line)
        self.step += 1
        numbers = _numbers_of(line)
        self.observe(Progress(self.run, self.step, line["loss"], numbers=numbers))
        return line["loss"]

    def _step(self) -> dict[str, Any]:
        """Step with the gradients that are there; return what the log says of it."""
        probe = self.probe if self._is_probed() else None
        if probe is not None:
            probe.record(self.step)
        line: dict[str, Any] = {"grad_norm": self._clip()}
        line["step_seconds"] = self._timed_step()
        if probe is not None:
            rows = probe.record_updates(self.optimizer)
            line["gsnr"] = [dataclasses.asdict(row) for row in rows]
        return line

    @contextlib.contextmanager
    def _releasing(self) -> Iterator[None]:
        """Let backward passes step where the recipe wants it."""
        if not self.recipe.gradient_release:
            yield
            return
        handle = step_in_backward(cast("SGDSaI", self.optimizer))
        try:
            yield
        finally:
            # The hooks tie model and optimizer together, and what is tied is not freed
            # before the next run builds its own.
            handle.remove()

    def _is_probed(self) -> bool:
        if not self.run.gsnr_every:
            return False
        last = self.step == self.recipe.steps - 1
        return last or self.step % self.run.gsnr_every == 0

    def _set_lr(self) -> float:
        recipe = self.recipe
        lr = self.run.lr * lr_factor(
            self.run.schedule, self.step, recipe.steps, recipe.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _clip(self) -> float:
        limit = self.recipe.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        return whole(norm).item()

    def _timed_step(self) -> float:
        self._synchronize()
        start = time.perf_counter()
        self.optimizer.step()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        set_mode(self.optimizer, training=False)
        with in_precision(self.recipe.precision, self.device):
            metrics = self.task.evaluate(self.model)
        self.ranks.forget(self.spread)
        elapsed = time.perf_counter() - self.started
        self.folder.append(
            {"step": self.step, "metrics": metrics, "total_seconds": elapsed}
        )
        self.observe(Progress(self.run, self.step, None, metrics))
        return metrics

    def _resume(self) -> None:
        if not self.folder.checkpoint.exists():
            self.folder.truncate_log(0)
            return
        position = checkpoint.load(
            self.folder.checkpoint, self.model, self.optimizer, self.ranks
        )
        self.folder.truncate_log(position.log_bytes)
        self.step = position.step
        self.started -= position.elapsed_seconds

    def _checkpoint(self) -> None:
        position = checkpoint.Position(
            self.step, self.folder.log_bytes(), time.perf_counter() - self.started
        )
        checkpoint.save(
            self.folder.checkpoint, self.model, self.optimizer, position, self.ranks
        )

    def _finish(self, status: str, metrics: dict[str, float]) -> dict[str, Any]:
        if status == "finished" and isinstance(self.task, Illustrated):
            self._illustrate(self.task)
        if self.keep_weights:
            checkpoint.save_weights(self.folder.weights, self.model, self.ranks)
        self.ranks.on_first(lambda: self.folder.finish(self._result(status, metrics)))
        result = self.folder.result() or {}
        self.observe(Progress(self.run, self.step, None, result["metrics"], status))
        return result

    def _illustrate(self, task: Illustrated) -> None:
        for name, grid in task.pictures(self.model).items():
            path = self.folder.path / f"{name}.png"
            self.ranks.on_first(lambda path=path, grid=grid: write_grid(path, grid))

    def _result(self, status: str, metrics: dict[str, float]) -> dict[str, Any]:
        seconds = [
            line["step_seconds"] for line in self.folder.log() if "step_seconds" in line
        ]
        return {
            "status": status,
            "step": self.step,
            "metrics": metrics if status == "finished" else {},
            "num_parameters": sum(
                p.numel() for p in self.model.parameters() if p.requires_grad
            ),
            "state_bytes": state_bytes(self.optimizer),
            # Steps within the backward pass have no time of their own.
            "step_seconds": _quantiles(seconds) if seconds else None,
            "total_seconds": time.perf_counter() - self.started,
        }


def _numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the log, apart from its step."""
    plain = {k: v for k, v in line.items() if k not in ("step", "gsnr")}
    return plain | {f"gsnr/{row['block']}": row["gsnr"] for row in line.get("gsnr", ())}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    names = {"p10": 0.1, "median": 0.5, "p90": 0.9}
    found = np.quantile(values, list(names.values())).tolist()
    return dict(zip(names, found, strict=True))
