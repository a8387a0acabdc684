"""Peak memory of a training step of the recipe ``llama2-7b-24gb``, beside its sum.

    python benchmarks/llama_24gb.py                 # small models on the CPU
    python benchmarks/llama_24gb.py --device cuda   # Llama-2 7B within 24 GiB

Weights are random and so are the tokens: neither counts here. A first step allocates
the state; the table shows a second one, by what torch's allocator handed out, beside
the arithmetic of :class:`Budget`. On CUDA the allocator gets 24 GiB less what CUDA and
other programs hold already, so that a step that does not fit on such a card fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from saiopt import step_in_backward
from saiopt.bench.clock import peak_temporary_bytes
from saiopt.lab.optimizers import build_optimizer, state_bytes
from saiopt.lab.recipes import get_recipe
from saiopt.lab.recipes.llama2_7b_24gb import RANDOM, Llama2Text
from saiopt.lab.tasks.next_token import next_token_loss
from saiopt.lab.training.environment import deterministic, hardware
from saiopt.memory import estimate

GIB, MIB = 2**30, 2**20
CARD_BYTES = 24 * GIB
OPTIMIZERS = ("sgdsai-int8", "sgdsai-int4")
PUBLISHED = dataclasses.replace(get_recipe("llama2-7b-24gb").task, checkpoint=RANDOM)


def small(num_layers: int, vocabulary: int) -> Llama2Text:
    """Return a model in the proportions of the 7B one; its vocabulary may differ."""
    return dataclasses.replace(
        PUBLISHED,
        vocabulary=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_layers=num_layers,
        num_heads=4,
        context=256,
    )


# With the 7B model's share of vocabulary, where the loss sets the peak, and with a
# small one, where a layer does; the slope over layers shows what each one keeps.
SMALL = [small(layers, vocabulary) for vocabulary in (2000, 64) for layers in (4, 8)]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Hold the bytes of one step on one example of T tokens, h wide.

    Numbers are 2 bytes wide, unless the loss or a norm holds them in float32. i is the
    width within an MLP and V the vocabulary.

    Args:
        weights: 2 per parameter.
        state: of the optimizer.
        checkpoints: the inputs of all layers, 2Th each.
        loss: log-probabilities, their gradient and that of the logits, 12TV; and what
            the last norm keeps, 8Th. No gradient of a weight exists then.
        output_layer: the gradient of its weights, 2hV, beside that of the logits, 2TV,
            of its input, 2Th, and the last norm's 8Th.
        layer: what one layer keeps while it is computed again, 24Th + 8Ti; the
            gradients of its output, 2Th, and of its MLP's product, 2Ti; and that of a
            matrix of the MLP, 2hi, the largest.
    """

    weights: int
    state: int
    checkpoints: int
    loss: int
    output_layer: int
    layer: int

    @classmethod
    def of(cls, task: Llama2Text, weights: int, state: int) -> Budget:
        """Add up a model's budget."""
        tokens, width, inner = task.context, task.hidden_size, task.intermediate_size
        vocabulary = task.vocabulary
        return cls(
            weights,
            state,
            2 * tokens * width * task.num_layers,
            12 * tokens * vocabulary + 8 * tokens * width,
            2 * vocabulary * (width + tokens) + 10 * tokens * width,
            26 * tokens * width + 10 * tokens * inner + 2 * width * inner,
        )

    @property
    def temporary(self) -> int:
        """Return the peak above weights and state: stages follow one another."""
        return self.checkpoints + max(self.loss, self.output_layer, self.layer)

    @property
    def peak(self) -> int:
        """Return the peak of all."""
        return self.weights + self.state + self.temporary


def predict(task: Llama2Text, optimizer: str) -> Budget:
    """Return the budget of a model that is never allocated."""
    with torch.device("meta"):
        model = task.build()
    found = estimate(
        model, lambda params: _optimizer(optimizer, nn.ParameterList(params))
    )
    return Budget.of(task, found.weights.tensor_bytes, found.state.tensor_bytes)


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(name, model, lr=1e-3, weight_decay=0.0, seed=0)


def measure(task: Llama2Text, optimizer: str, device: torch.device) -> tuple[int, int]:
    """Return the bytes of weights and state, and by how much a step exceeds them."""
    torch.manual_seed(0)
    with device:
        model = task.build().train()
    stepping = _optimizer(optimizer, model)
    handle = step_in_backward(stepping)
    tokens = torch.randint(task.vocabulary, (1, task.context + 1), device=device)

    def step() -> None:
        next_token_loss(model, tokens).backward()

    with deterministic():
        step()
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        held += state_bytes(stepping)
        if device.type == "cuda":
            # What the first step left cached is no part of the second's peak.
            torch.cuda.empty_cache()
            held = torch.cuda.memory_allocated(device)
        temporary = peak_temporary_bytes(step, device)
    handle.remove()
    return held, temporary


def limit_to_card(device: torch.device) -> None:
    """Leave the allocator what a card of 24 GiB would leave it."""
    torch.zeros(1, device=device)
    free, total = torch.cuda.mem_get_info(device)
    of_cuda = total - free - torch.cuda.memory_reserved(device)
    share = (CARD_BYTES - of_cuda) / total
    if share > 1:
        print("this card has less than 24 GiB; all of it may be used")
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)


def reserved_line(device: torch.device) -> str:
    """Return how much of the card the last step took, and make room for the next."""
    reserved = torch.cuda.max_memory_reserved(device)
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"       reserved at most {reserved / GIB:.2f} GiB, beside "
        f"{(total - free) / GIB:.2f} GiB that CUDA and other programs hold"
    )


def rows(device: torch.device) -> Iterator[str]:
    """Yield the table line by line."""
    for task in [PUBLISHED] if device.type == "cuda" else SMALL:
        for optimizer in OPTIMIZERS:
            budget = predict(task, optimizer)
            held, temporary = measure(task, optimizer, device)
            yield (
                f"{task.num_layers:>6} {task.vocabulary:>10} {optimizer:<12}"
                f"{(budget.weights + budget.state) / MIB:>12.2f}{held / MIB:>10.2f}"
                f"{budget.temporary / MIB:>14.2f}{temporary / MIB:>10.2f}"
                f"{temporary / budget.temporary - 1:>+9.1%}"
            )
            if device.type == "cuda":
                yield reserved_line(device)


def show_budget() -> None:
    """Print the published size's budget, which needs no device."""
    print("Llama-2 7B, 2048 tokens, GiB of 24")
    names = [field.name for field in dataclasses.fields(Budget)]
    print(f"{'':<12}" + "".join(f"{name:>14}" for name in [*names, "peak"]))
    for optimizer in OPTIMIZERS:
        budget = predict(PUBLISHED, optimizer)
        sizes = [*dataclasses.astuple(budget), budget.peak]
        print(f"{optimizer:<12}" + "".join(f"{size / GIB:>14.2f}" for size in sizes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the budget and the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    show_budget()
    if device.type == "cuda":
        limit_to_card(device)
    print(f"\n{hardware(device)}, torch {torch.__version__}; MiB, second step")
    print(
        f"{'':<30}weights and state          temporary\n"
        f"layers vocabulary optimizer     predicted  measured     predicted  measured"
    )
    for row in rows(device):
        print(row, flush=True)


if __name__ == "__main__":
    main()
