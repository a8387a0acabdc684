"""``saiopt noise phase``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from saiopt.cli.output import new_console, print_json, print_tables
from saiopt.cli.refusal import refusing, require_writable
from saiopt.cli.training import device_of

if TYPE_CHECKING:
    from saiopt.lab.noise.phase import Settings
    from saiopt.lab.studies.ledger import Ledger, Row


@dataclasses.dataclass(frozen=True)
class Phase:
    """Train planes of networks over (α, T) and find the best and critical temperatures.

    Args:
        alphas: Scales of the loss: far above 1 is lazy, far below learns features.
        temperatures: T = lr / batch size.
        sizes: Training points P; the middle one gets the plane, the others one alpha.
        seeds: Number of seeds.
        critical_alpha: That one alpha, at which T_c is taken.
        optimizer: Rule for the lr of each layer.
        data: digits, mnist-5k, mnist, cifar10, or an .npz file with images and labels.
        source: Folder of the data's parquet files, instead of the hub.
        architecture: Fully connected, or a convolutional net, small or as published.
        layers: Hidden layers of fc, blocks of mnas, stages of mnas-published.
        activation: Between the layers.
        width: Of the hidden layers; of mnas-published the unit of channels.
        batch_size: Points of a step.
        held_out: Images for the test error.
        precision: Of the weights.
        max_steps: Steps before a run is given up and reported as such.
        runs_dir: Keeps the finished runs, which are reused.
        device: Where to train.
        threads: CPU threads.
        json: Print JSON only; progress goes to stderr.
    """

    alphas: Annotated[
        tuple[float, ...],
        arg(metavar="X ...", help_behavior_hint="(default: 2^-6 to 2^12 by 2^3)"),
    ] = tuple(2.0**power for power in range(-6, 13, 3))
    temperatures: Annotated[
        tuple[float, ...],
        arg(metavar="X ...", help_behavior_hint="(default: 2^-13 to 2^-3 by 2^2)"),
    ] = tuple(2.0**power for power in range(-13, -2, 2))
    sizes: Annotated[tuple[int, ...], arg(metavar="N ...")] = (64, 128, 256, 512, 1024)
    seeds: Annotated[int, arg(metavar="N")] = 3
    critical_alpha: Annotated[
        float | None, arg(metavar="X", help_behavior_hint="(default: the middle one)")
    ] = None
    optimizer: Annotated[
        Literal["sgd", "sgdsai", "sgdsai-sqrt-numel", "sgdsai-factored"],
        arg(metavar="NAME"),
    ] = "sgd"
    data: Annotated[str, arg(metavar="DATA")] = "digits"
    source: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the hub)")
    ] = None
    architecture: Literal["fc", "mnas", "mnas-published"] = "fc"
    layers: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 5, 3 and 2)")
    ] = None
    activation: Literal["relu", "gelu"] = "relu"
    width: Annotated[int, arg(metavar="N")] = 64
    batch_size: Annotated[int, arg(metavar="N")] = 16
    held_out: Annotated[int, arg(metavar="N")] = 512
    precision: Literal["float64", "float32"] = "float64"
    max_steps: Annotated[int, arg(metavar="N")] = 20_000
    runs_dir: Annotated[Path, arg(metavar="FOLDER")] = Path("runs")
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        arg(metavar="cpu|cuda", help_behavior_hint="(default: cuda if there is one)"),
    ] = None
    threads: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: torch's choice)")
    ] = None
    json: Annotated[bool, arg(help_behavior_hint="")] = False

    def __call__(self) -> None:
        """Train, fit and print."""
        from saiopt.lab.noise.phase import Settings
        from saiopt.lab.noise.phase_report import find, report_folder, write_report
        from saiopt.lab.noise.phase_table import (
            kernel_table,
            kernel_text,
            lost_text,
            phase_table,
            trust_text,
            ways_text,
        )

        with refusing(ValueError):
            settings = Settings(
                self.data,
                self.architecture,
                self.width,
                self.batch_size,
                self.max_steps,
                self.held_out,
                layers=self.layers,
                activation=self.activation,
                precision=self.precision,
            )
        finished, rows = self._train(settings)
        findings = find(rows, self.critical_alpha)
        name = f"{Path(self.data).name}, {self.architecture}, {self.optimizer}"
        folder = report_folder(finished.path.parent, rows)
        write_report(folder, name, rows, findings)
        if self.json:
            print_json({"folder": str(folder), **dataclasses.asdict(findings)})
            return
        console = new_console()
        console.print()
        print_tables(console, phase_table(findings))
        if findings.kernel is not None:
            console.print(f"\n{kernel_text(findings.kernel)}\n")
            print_tables(console, kernel_table(findings.kernel))
        if findings.ways is not None:
            console.print(f"\n{ways_text(findings.ways)}")
        for text in (lost_text(findings), trust_text(findings, settings.depth)):
            console.print(f"\n{text}")
        console.print(f"\nHeat maps and findings: {folder}/", soft_wrap=True)

    def _train(self, settings: "Settings") -> "tuple[Ledger, list[Row]]":
        from saiopt.lab.noise.counting import counting
        from saiopt.lab.noise.parity import load_images
        from saiopt.lab.noise.phase import (
            open_cells,
            plan,
            require_images,
            train_cells,
        )
        from saiopt.lab.training.run_folder import RunFolderError

        device = device_of(self)
        with refusing(ValueError, FileNotFoundError):
            cells = plan(
                [self.optimizer],
                self.alphas,
                self.temperatures,
                self.sizes,
                self.seeds,
                self.critical_alpha,
            )
            images = load_images(self.data, self.source)
            require_images(settings, cells, images)
        require_writable(self.runs_dir)
        with refusing(RunFolderError):
            finished = open_cells(settings, images, self.runs_dir, device)
        with (
            refusing(RunFolderError),
            counting(len(cells), "networks", new_console(stderr=self.json)) as count,
        ):
            rows = train_cells(
                settings,
                cells,
                images,
                finished,
                device,
                lambda made, step: count(made, f"step {step}"),
            )
        return finished, rows
