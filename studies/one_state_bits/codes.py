"""Ways to hold a momentum in 4 bits, imitated: what a code loses, without its bytes."""

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to code a momentum.

    Args:
        bits: Of a code.
        rounding: ``"nearest"``, ``"stochastic"`` (up with the probability of the rest)
            or ``"dither"`` (noise added before rounding and taken off afterwards).
        columns: Whether each column is divided by its root mean square first.
        group_size: Neighbours in a row that share a scale.
        scale_steps: Scales per octave; 128, those of bfloat16, or 8, which fit in a
            byte.
    """

    bits: int
    rounding: str
    columns: bool = False
    group_size: int = 32
    scale_steps: int = 128

    @property
    def bytes(self) -> float:
        """Bytes per entry, but for what columns add."""
        return self.bits / 8 + (2 if self.scale_steps == 128 else 1) / self.group_size

    def lose(self, momentum: Tensor, generator: torch.Generator) -> Tensor:
        """Return what is read of a momentum that is stored so."""
        matrix = momentum.flatten(1)
        scale = torch.ones(1)
        if self.columns:
            scale = matrix.square().mean(0).sqrt().clamp(min=1e-30)
        cols = matrix.shape[1]
        padded = pad(matrix / scale, (0, -cols % self.group_size))
        groups = padded.view(len(matrix), -1, self.group_size)
        kept = self._coded(groups, generator).view(len(matrix), -1)[:, :cols]
        return (kept * scale).view(momentum.shape)

    def _coded(self, groups: Tensor, generator: torch.Generator) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        step = (groups.abs().amax(-1, keepdim=True) / top).clamp(min=1e-30)
        octave = torch.exp2(step.log2().floor())
        step = octave * (step / octave * self.scale_steps).ceil() / self.scale_steps
        levels = groups / step
        if self.rounding == "nearest":
            return levels.round() * step
        noise = torch.rand(levels.shape, generator=generator)
        if self.rounding == "stochastic":
            return (levels.abs() + noise).floor().copysign(levels) * step
        dithered = ((levels + noise).floor() - noise + 0.5) * step
        return torch.where(levels == 0, 0.0, dithered)


WAYS: dict[str, Way | None] = {
    "float32": None,
    "8 bits, dithered": Way(8, "dither"),
    "stochastic": Way(4, "stochastic"),
    "nearest": Way(4, "nearest"),
    "dithered": Way(4, "dither"),
    "nearest, columns": Way(4, "nearest", columns=True),
    "dithered, columns": Way(4, "dither", columns=True),
    "dithered, columns, 16": Way(
        4, "dither", columns=True, group_size=16, scale_steps=8
    ),
}
