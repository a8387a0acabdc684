"""Planes of networks over (α, T), and T_c over P: settings, plan, training."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from saiopt.choices import must_be_known, require_known
from saiopt.lab.identity import code_hash
from saiopt.lab.noise.cells import middle, open_folder
from saiopt.lab.noise.layer_scales import OPTIMIZERS
from saiopt.lab.noise.networks import ARCHITECTURES, GAINS, Architecture, build
from saiopt.lab.noise.parity import Images
from saiopt.lab.noise.plane import Cell, Training, train_plane
from saiopt.lab.studies.ledger import Ledger, Row
from saiopt.lab.training.environment import environment

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all cells share.

    Args:
        data: As :func:`saiopt.lab.noise.parity.load_images` takes it.
        architecture: A name of :data:`saiopt.lab.noise.networks.ARCHITECTURES`.
        width: h of the hidden layers.
        batch_size: B.
        max_steps: Before training is given up.
        held_out: Images for the test error.
        look_every: Steps between looks at the whole training loss.
        layers: Hidden layers of ``fc``, blocks of ``mnas``, stages of
            ``mnas-published``; None for the usual number.
        activation: A name of :data:`saiopt.lab.noise.networks.GAINS`.
        precision: ``float64``, or ``float32``, which is twice as fast.
    """

    data: str = "digits"
    architecture: str = "fc"
    width: int = 64
    batch_size: int = 16
    max_steps: int = 20_000
    held_out: int = 512
    look_every: int = 64
    layers: int | None = None
    activation: str = "relu"
    precision: str = "float64"

    def __post_init__(self) -> None:
        for name, known in {
            "architecture": ARCHITECTURES,
            "activation": GAINS,
            "precision": PRECISIONS,
        }.items():
            require_known(name, getattr(self, name), known)
        numbers = ["width", "batch_size", "max_steps", "held_out", "look_every"]
        if self.layers is not None:
            numbers.append("layers")
        for name in numbers:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )

    @property
    def depth(self) -> int | None:
        """Hidden layers of a fully connected net; None for others, without a theory."""
        return self._num_layers if self.architecture == "fc" else None

    @property
    def _num_layers(self) -> int:
        return self.layers or ARCHITECTURES[self.architecture]

    def network(self, shape: Sequence[int]) -> Architecture:
        """Return the network for images of a shape.

        Args:
            shape: (C, H, W).

        Returns:
            Its architecture.
        """
        return build(
            self.architecture, shape, self.width, self._num_layers, self.activation
        )


def plan(
    optimizers: Sequence[str],
    alphas: Sequence[float],
    temperatures: Sequence[float],
    sizes: Sequence[int],
    seeds: int,
    critical_alpha: float | None = None,
) -> list[Cell]:
    """Plan a plane over (α, T) at the middle P, and a row over T at every other P.

    Args:
        optimizers: Names of :data:`saiopt.lab.noise.layer_scales.OPTIMIZERS`.
        alphas: Values of α.
        temperatures: Values of T.
        sizes: Values of P.
        seeds: Their number.
        critical_alpha: The α of the rows, the middle one unless given.

    Returns:
        Each cell once.

    Raises:
        ValueError: If a value is out of range or a list is empty.
    """
    lists = {"alphas": alphas, "temperatures": temperatures, "sizes": sizes}
    for name, values in lists.items():
        if not values or min(values) <= 0:
            got = "none" if not values else min(values)
            raise ValueError(f"{name} must hold positive numbers, got {got}")
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name} must hold finite numbers, got {[*values]}")
    if unknown := set(optimizers) - set(OPTIMIZERS):
        raise ValueError(must_be_known("optimizer", min(unknown), OPTIMIZERS))
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    chosen = middle(alphas) if critical_alpha is None else critical_alpha
    if not 0 < chosen < math.inf:
        raise ValueError(f"critical_alpha must be positive and finite, got {chosen}")
    pairs = {(middle(sizes), alpha) for alpha in alphas}
    pairs |= {(size, chosen) for size in sizes}
    return [
        Cell(optimizer, size, alpha, temperature, seed)
        for optimizer in dict.fromkeys(optimizers)
        for size, alpha in sorted(pairs)
        for temperature in sorted(set(temperatures))
        for seed in range(seeds)
    ]


def open_cells(
    settings: Settings, images: Images, runs_dir: Path, device: torch.device
) -> Ledger:
    """Open the folder of a study.

    Args:
        settings: Of the study.
        images: The task.
        runs_dir: Where such folders live.
        device: Where it trains.

    Returns:
        Its finished cells.
    """
    code = code_hash(__name__)
    identity = {
        **dataclasses.asdict(settings),
        "fingerprint": images.fingerprint,
        "device": device.type,
        "torch": version("torch"),
        "code": code,
    }
    origin = environment(device, images.fingerprint, code)
    return open_folder(runs_dir, "noise-phase", identity, origin, Cell)


def require_images(settings: Settings, cells: Sequence[Cell], images: Images) -> None:
    """See that there are as many images as every cell needs.

    Args:
        settings: Of the study.
        cells: All that is wanted.
        images: The task.

    Raises:
        ValueError: If there are fewer.
    """
    largest = len(images.labels) - settings.held_out
    if max(cell.size for cell in cells) > largest:
        raise ValueError(
            f"sizes must be at most {largest} with {settings.held_out} images held "
            f"out, got {max(cell.size for cell in cells)}"
        )


def train_cells(
    settings: Settings,
    cells: Sequence[Cell],
    images: Images,
    finished: Ledger,
    device: torch.device,
    observe: Callable[[int, int], None],
) -> list[Row]:
    """Train the cells that are not finished yet, all together.

    Args:
        settings: Of the study.
        cells: All that is wanted.
        images: The task.
        finished: Keeps finished cells.
        device: Where to train.
        observe: Told of the number of cells that ended, and of the steps so far.

    Returns:
        One row per cell, in the cells' order.

    Raises:
        ValueError: As :func:`require_images`.
    """
    require_images(settings, cells, images)
    finished.rows()
    keys = [dataclasses.asdict(cell) for cell in cells]
    pairs = zip(cells, keys, strict=True)
    missing = [cell for cell, key in pairs if key not in finished]
    observe(len(cells) - len(missing), 0)

    def keep(steps: int, rows: list[Row]) -> None:
        finished.add(rows)
        observe(len(rows), steps)

    if missing:
        training = _training(settings, images, device)
        train_plane(missing, training, images, settings.look_every, keep)
    return [finished[key] for key in keys]


def _training(settings: Settings, images: Images, device: torch.device) -> Training:
    return Training(
        settings.network(images.images.shape[1:]),
        settings.batch_size,
        settings.max_steps,
        settings.held_out,
        device,
        PRECISIONS[settings.precision],
    )
