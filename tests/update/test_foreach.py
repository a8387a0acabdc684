import torch
from torch import nn

from saiopt.update import Block, Coefficients, foreach, reference


def random_block(shape, dtype=torch.float32, *, keeps_momentum=True):
    generator = torch.Generator().manual_seed(sum(shape))
    weights, grad, momentum = (
        torch.randn(shape, generator=generator).to(dtype) for _ in range(3)
    )
    return Block(
        nn.Parameter(weights, requires_grad=False),
        grad,
        momentum if keeps_momentum else None,
        torch.tensor(2.5),
        torch.tensor(3, dtype=torch.int32) if dtype == torch.bfloat16 else None,
    )


def test_foreach_equals_the_reference_bit_for_bit_on_the_cpu():
    kinds = [
        ((3, 4), torch.float32, True),
        ((5,), torch.float32, True),
        ((), torch.float32, True),
        ((6, 2), torch.float32, False),
        ((7,), torch.float64, True),
        ((9, 2), torch.bfloat16, True),
        ((0, 4), torch.float32, True),
    ]
    results = []
    for update in (reference.update, foreach.update):
        blocks = [random_block(s, d, keeps_momentum=m) for s, d, m in kinds]
        for _ in range(3):
            update(blocks, Coefficients(0.01, 0.9, 0.1, maximize=False))
        results.append(blocks)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first.param, second.param)
        if first.momentum_buffer is not None:
            assert torch.equal(first.momentum_buffer, second.momentum_buffer)


def test_a_scale_may_vary_within_the_block():
    for dtype in (torch.float32, torch.bfloat16):
        for update in (reference.update, foreach.update):
            rows = torch.tensor([[1.0], [10.0]])
            block = Block(
                nn.Parameter(torch.zeros(2, 3, dtype=dtype), requires_grad=False),
                torch.ones(2, 3, dtype=dtype),
                None,
                rows,
                None,
            )
            update([block], Coefficients(0.5, 0.0, 0.0, maximize=False))
            assert torch.equal(block.param.float(), -0.5 * rows.expand(2, 3))
