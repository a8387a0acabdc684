"""The learning rate as a pure function of the step."""

import math


def lr_factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate at a step.

    Warm-up: (t+1)/w for t < w. After it, with x = (t-w)/(T-w): constant 1, linear
    1-x, cosine (1+cos πx)/2, step
    0.1^⌊5x/2⌋: a tenth from 40 % on and a hundredth from 80 % on.

    Args:
        schedule: ``"constant"``, ``"linear"``, ``"cosine"`` or ``"step"``.
        step: t, counted from 0.
        steps: T, all steps of the run.
        warmup_steps: w, less than T.

    Returns:
        A factor in (0, 1]; no step is wasted on a learning rate of zero.

    Raises:
        ValueError: If the schedule is unknown.

    >>> [round(lr_factor("linear", t, 6, 2), 2) for t in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return (1.0 + math.cos(math.pi * progress)) / 2
    if schedule == "step":
        return 0.1 ** (5 * (step - warmup_steps) // (2 * (steps - warmup_steps)))
    raise ValueError(
        f"schedule must be constant, linear, cosine or step, got {schedule}"
    )
