"""``saiopt noise``."""

import dataclasses
from typing import Annotated, TypeAlias

from tyro.conf import OmitSubcommandPrefixes, subcommand

from saiopt.cli.noise_perceptron import Perceptron
from saiopt.cli.noise_phase import Phase

_Study: TypeAlias = (
    Annotated[Perceptron, subcommand("perceptron")]
    | Annotated[Phase, subcommand("phase")]
)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Study how the noise of SGD, T = lr / batch size, changes what is learned."""

    study: OmitSubcommandPrefixes[_Study]

    def __call__(self) -> None:
        """Carry out the study."""
        self.study()
