"""Optimizers whose rules go by the roles of parameters, on parameters that stand in.

A factory gets parameters without names or modules, so that roles are told from the
model whose shapes they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from saiopt.optimizer import orthogonal_groups, split_by_decay
from saiopt.optimizer.roles import ALL_FACTORED

RULES = ("orthogonal", "factored")


def groups_by_role(
    model: nn.Module, params: Sequence[Tensor], rule: str, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the param groups by role for parameters that stand in for a model's.

    Args:
        model: whose modules tell the roles.
        params: in the order of the model's trainable parameters.
        rule: ``"orthogonal"`` for :func:`saiopt.orthogonal_groups`, ``"factored"`` for
            the same groups with that rule in each.
        weight_decay: λ of all but vectors.

    Returns:
        Groups for :class:`saiopt.SGDSaI`.
    """
    own = [p for p in model.parameters() if p.requires_grad]
    stand_ins = dict(zip(own, params, strict=True))
    roles = ALL_FACTORED if rule == "factored" else None
    return [
        {**group, "params": [stand_ins[p] for _, p in group["params"]]}
        for group in orthogonal_groups(model, weight_decay, roles=roles)
    ]


class MuonWithAdamW(Optimizer):
    """Step hidden matrices with torch's Muon and all others with torch's AdamW.

    Two optimizers in one, as torch's documentation of Muon asks for; convolutions, of
    more than two dimensions, are AdamW's.

    Args:
        model: whose modules tell which matrices are hidden.
        params: in the order of the model's trainable parameters.
        lr: η of both.
        weight_decay: λ of all but vectors.

    Raises:
        ValueError: the model has no hidden matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Sequence[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
    ) -> None:
        groups = groups_by_role(model, params, "orthogonal")
        hidden = [
            p
            for group in groups
            if group["scaling"] == "orthogonal"
            for p in group["params"]
            if p.dim() == 2
        ]
        if not hidden:
            raise ValueError("model must have hidden matrices for muon, got none")
        chosen = set(hidden)
        rest = split_by_decay((p for p in params if p not in chosen), weight_decay)
        self._parts: list[Optimizer] = [
            torch.optim.Muon(
                hidden,
                lr=lr,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        ]
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=lr))
        super().__init__([g for part in self._parts for g in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Perform one step of both.

        Args:
            closure: not taken.
        """
        for part in self._parts:
            part.step()
            self.state.update(part.state)
