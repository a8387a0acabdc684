"""The control whose scales are never fixed."""

from torch import nn

from saiopt import SGDSaI, orthogonal_groups
from saiopt.optimizer.roles import ALL_FACTORED


def factored_throughout(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    calibration_steps: int | None = None,
) -> SGDSaI:
    """Build ``sgdsai-factored`` with scales from the mean of g² over all steps so far.

    Args:
        model: What is trained.
        lr: η.
        weight_decay: λ of all parameters but vectors.
        momentum: μ.
        calibration_steps: K, as many as the run has steps.
    """
    groups = orthogonal_groups(model, weight_decay, roles=ALL_FACTORED)
    return SGDSaI(groups, lr=lr, momentum=momentum, calibration_steps=calibration_steps)
