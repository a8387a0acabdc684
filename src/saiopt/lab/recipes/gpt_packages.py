"""Byte-level GPT-2 on the sources of installed packages, in two sizes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from saiopt.lab.recipe import Metric, Recipe
from saiopt.lab.recipes.gpt_stdlib import GptStdlib

if TYPE_CHECKING:
    from saiopt.lab.tasks.byte_language_model import ByteLanguageModel

# Modules by packages that ``saiopt[lab]`` always brings, large and little copied: of
# transformers half of the held-out windows stand in its other files too.
PACKAGES = {
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "torch": "torch",
}


@dataclasses.dataclass(frozen=True)
class GptPackages(GptStdlib):
    """The GPT-2 of ``gpt-stdlib``, larger, on the sources of packages.

    Args:
        n_embd: Width.
        n_layer: Transformer blocks.
        n_head: Attention heads.
        context: Bytes per example.
        held_out_examples: Held-out examples per evaluation.
    """

    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 4
    context: int = 256
    held_out_examples: int = 128

    def load(self) -> ByteLanguageModel:
        """Read the sources of numpy, pandas, scikit-learn, scipy and torch.

        Returns:
            The task.
        """
        from saiopt.lab.data.package_source import read_packages

        return self.task_on(read_packages(PACKAGES))


def gpt_packages_3m() -> Recipe:
    """Return the recipe: 3.3 M parameters, 6 of 71 MB of text in 6,000 steps.

    Files are held out whole, folders of tests left out; 4 of the 128 windows of the
    evaluation stand in files of the training text too.

    Returns:
        The recipe with the learning rates from which ``studies/one_state_size`` begins:
        those of ``gpt-stdlib`` at this width and length.
    """
    return _recipe(
        "gpt-packages-3m",
        "GPT-2 (3.3 M) on sources of packages, by bytes",
        GptPackages(),
        steps=6000,
        batch_size=4,
        checkpoint_every=100,
    )


def gpt_packages_10m() -> Recipe:
    """Return the recipe: 10 M parameters, 1.5 of 71 MB of text in 3,000 steps.

    Narrower and deeper than usual, since orthogonal steps cost by the width.

    Returns:
        The recipe with learning rates as those of :func:`gpt_packages_3m`.
    """
    return _recipe(
        "gpt-packages-10m",
        "GPT-2 (10 M) on sources of packages, by bytes",
        GptPackages(n_embd=320, n_layer=8, n_head=5),
        steps=3000,
        batch_size=2,
        checkpoint_every=50,
    )


def _recipe(
    name: str,
    description: str,
    task: GptPackages,
    *,
    steps: int,
    batch_size: int,
    checkpoint_every: int,
) -> Recipe:
    return Recipe(
        name=name,
        description=description,
        task=task,
        metric=Metric("loss", "validation loss (nats per byte)", False),
        steps=steps,
        batch_size=batch_size,
        eval_every=500,
        checkpoint_every=checkpoint_every,
        schedule="cosine",
        warmup_fraction=0.05,
        clip_norm=1.0,
        decay_per_step=1e-4,
        lrs={
            "sgdsai-orthogonal": 5e-3,
            "sgdsai-factored": 5e-4,
            "muon-adamw": 5e-3,
            "adamw": 5e-4,
        },
        optimizer="sgdsai-orthogonal",
        size="medium",
    )
