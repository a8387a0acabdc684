"""``saiopt bench``."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from saiopt.cli.output import new_console, print_item, print_json
from saiopt.cli.refusal import RefusalError, refusing

_PICTURES = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time the steps of optimizers on a model's shapes.

    Args:
        shapes: A model, as 'saiopt memory' takes it, or tiny.
        device: Where to step.
        optimizers: Names as 'saiopt compare' takes them, or of one execution, such as
            sgdsai-int8-fused. Orthogonal steps take seconds on a CPU.
        dtype: Of parameters and gradients: float32, bfloat16 or float16.
        rounds: Passes over all optimizers, in changing order.
        steps: Timed in each round.
        threads: CPU threads.
        csv: Write the rows to this file.
        plot: Draw the step times to this file.
        json: Print JSON only; progress goes to stderr.
    """

    shapes: Annotated[str, arg(metavar="MODEL")] = "gpt2"
    device: Annotated[Literal["cpu", "cuda"], arg(metavar="cpu|cuda")] = "cpu"
    optimizers: Annotated[
        tuple[str, ...],
        arg(metavar="NAME ...", help_behavior_hint="(default: all with faster steps)"),
    ] = ()
    dtype: Annotated[str, arg(metavar="DTYPE")] = "float32"
    rounds: Annotated[int, arg(metavar="N")] = 5
    steps: Annotated[int, arg(metavar="N")] = 3
    threads: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: torch's choice)")
    ] = None
    csv: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    plot: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    json: Annotated[bool, arg(help_behavior_hint="")] = False

    def __call__(self) -> None:
        """Time the steps and print the table."""
        import torch

        from saiopt.bench.plan import Plan
        from saiopt.bench.plot import plot_rows
        from saiopt.bench.rows import write_csv
        from saiopt.bench.run import DoesNotFitError, run_bench
        from saiopt.bench.shapes import skeleton
        from saiopt.bench.table import renderables

        if self.threads is not None:
            if self.threads < 1:
                raise RefusalError(f"threads must be at least 1, got {self.threads}")
            torch.set_num_threads(self.threads)
        self._check_files()
        with refusing(ValueError):
            names = ("shapes", "optimizers", "device", "dtype", "rounds", "steps")
            plan = Plan(**{name: getattr(self, name) for name in names})
            skeleton(plan.shapes)
        with refusing(DoesNotFitError):
            rows = run_bench(plan, lambda line: sys.stderr.write(f"{line}\n"))
        if self.csv is not None:
            write_csv(rows, self.csv)
        if self.plot is not None:
            with refusing(ValueError):
                plot_rows(rows, self.plot)
        if self.json:
            print_json([dataclasses.asdict(row) for row in rows])
            return
        console = new_console()
        for item in renderables(rows):
            print_item(console, item)

    def _check_files(self) -> None:
        """See that the results can be written, before minutes are spent on them."""
        if self.plot is not None and self.plot.suffix not in _PICTURES:
            raise RefusalError(
                f"plot must end in {', '.join(_PICTURES)}, got {self.plot}"
            )
        for name, path in (("csv", self.csv), ("plot", self.plot)):
            if path is None:
                continue
            try:
                path.open("ab").close()
            except OSError:
                raise RefusalError(
                    f"{name} must be a file that can be written, got {path}"
                ) from None
