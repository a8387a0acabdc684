import torch

from saiopt.lab.draws import generator


def test_a_key_gives_the_same_numbers_every_time() -> None:
    first, second = (torch.rand(4, generator=generator(3, 7)) for _ in range(2))
    assert torch.equal(first, second)


def test_keys_that_differ_anywhere_give_other_numbers() -> None:
    keys = [(0, 1), (1, 0), (0,), (0, 0), (10, 1), (1, 1)]
    draws = {float(torch.rand((), generator=generator(*key))) for key in keys}
    assert len(draws) == len(keys)
