import pytest

from saiopt.lab.sweep.published import (
    PUBLISHED,
    given_decay,
    published_decay,
    published_grid,
)


@pytest.mark.parametrize(
    ("name", "optimizer", "best"),
    [
        ("vit-s16-imagenet", "adamw", ((0.001, 0.01), 73.05)),
        ("vit-s16-imagenet", "adam-mini", ((0.001, 0.0001), 72.28)),
        ("resnet18-cifar10", "sgdsai", ((0.001, 0.5), 95.36)),
        ("resnet18-cifar10", "sgd", ((0.01, 0.005), 95.27)),
    ],
)
def test_the_best_cells_are_the_published_ones(
    name: str, optimizer: str, best: tuple[tuple[float, float], float]
) -> None:
    values = published_grid(name).values[optimizer]
    assert max(values.items(), key=lambda item: item[1]) == best


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_cell_belongs_to_the_grid(name: str) -> None:
    grid = published_grid(name)
    for cells in grid.values.values():
        assert {lr for lr, _ in cells} <= set(grid.lrs)
        assert {decay for _, decay in cells} == set(grid.weight_decays)
        assert all(0 <= value <= 100 for value in cells.values())


def test_an_unknown_grid_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="published must be one of vit-s16-imagenet"):
        published_grid("vit")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_published_decay_is_found_again(optimizer: str) -> None:
    for name in PUBLISHED:
        for decay in published_grid(name).weight_decays:
            given = given_decay(optimizer, decay)
            assert given == pytest.approx(decay * (10 if optimizer == "sgd" else 1))
            assert published_decay(optimizer, given) == decay
