"""What users bring: a model, data and an optimizer of their own."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from saiopt import lab
from saiopt.cli import main
from saiopt.lab.comparison.compare import plan, prepare
from saiopt.lab.optimizers import OPTIMIZERS, build_optimizer
from saiopt.lab.own.code import own_code
from saiopt.lab.own.optimizer import optimizer_names
from saiopt.lab.own.recipe import recipe_at
from saiopt.lab.own.task import OwnTask

EXAMPLE = Path(__file__).parents[2] / "examples" / "own.py"
TWO = ["--optimizers", "adamw", "own.py:my_optimizer"]
FAST = ["--steps", "4", "--threads", "1"]


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known, path = dict(OPTIMIZERS), list(sys.path)
    yield
    OPTIMIZERS.clear()
    OPTIMIZERS.update(known)
    sys.path[:] = path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def points(count: int = 40) -> TensorDataset:
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(values, values.sum(dim=1, keepdim=True))


def recipe(data: Any = points, **changes: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": lambda: nn.Linear(3, 1),
        "loss": nn.functional.mse_loss,
        "steps": 4,
        "batch_size": 8,
    }
    return lab.own_recipe(data=data, **{**defaults, **changes})


def test_the_example_has_at_most_thirty_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 30


def test_a_file_is_compared_by_command_and_a_changed_width_trains_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "own.py:recipe", *TWO, *FAST, "--lr", "my_optimizer=0.1"]
    assert main([*command, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["optimizer"] for row in first["rows"]] == ["adamw", "my_optimizer"]
    assert first["rows"][1]["lr"] == 0.1
    assert main(command) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    path = folder / "own.py"
    path.write_text(path.read_text().replace("WIDTH = 64", "WIDTH = 32"))
    assert main([*command, "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)
    assert {r["folder"] for r in first["runs"]}.isdisjoint(
        r["folder"] for r in changed["runs"]
    )
    sizes = [c["runs"][0]["num_parameters"] for c in (first, changed)]
    assert sizes == [257, 129]
    assert main(["report"]) == 0
    words = (folder / "report.html").read_text()
    assert "own: comparison, code " in words


@pytest.mark.parametrize(
    "command",
    [
        "train own.py --optimizer own.py:my_optimizer --lr 0.1",
        "gsnr own.py:recipe --optimizer own.py:my_optimizer --lr 0.1 --every 2",
        "sweep own.py:recipe --optimizers own.py:my_optimizer --lrs 0.1 0.2",
    ],
)
def test_every_command_that_trains_takes_what_is_the_users(
    command: str, folder: Path
) -> None:
    assert main([*command.split(), *FAST]) == 0
    assert list(folder.glob("runs/own-my_optimizer-seed0-*/result.json"))


def test_a_learning_rate_is_proposed_for_an_optimizer_of_the_users(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr", "own.py:recipe", "--optimizer", "own.py:my_optimizer"]) == 0
    assert "my_optimizer does at" in capsys.readouterr().out


def test_workers_load_the_users_file_for_themselves(folder: Path) -> None:
    command = ["sweep", "own.py:recipe", *TWO, "--lrs", "0.1", "0.2", *FAST]
    done = subprocess.run(
        [sys.executable, "-m", "saiopt", *command, "--workers", "2"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    assert "(4/4," in done.stdout


def test_a_setting_that_is_given_twice_is_swept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [f"my_optimizer.momentum={value}" for value in ("0.5", "0.8")]
    command = ["sweep", "own.py", *TWO, "--lrs", "0.1", *FAST, "--setting", *values]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [each["optimizer"] for each in found["optimizers"]]
    assert names == [
        "adamw",
        "my_optimizer momentum=0.5",
        "my_optimizer momentum=0.8",
    ]
    assert [each["settings"] for each in found["optimizers"]][1:] == [
        {"momentum": 0.5},
        {"momentum": 0.8},
    ]


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path: Path) -> None:
    kinds = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        kinds.append(outputs.dtype)
        return (outputs.float() - targets).square().mean()

    made = recipe(loss=loss, precision="bfloat16")
    outcome = lab.train_optimizer(made, keep_weights=True, runs_dir=tmp_path)
    assert set(kinds) == {torch.bfloat16}
    weights = torch.load(tmp_path / outcome.folder / "weights.pt", weights_only=True)
    assert weights["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train nosuch.py:recipe", "recipe must be in a file that exists, got nosuch"),
        ("train own.py:recip", "recipe must be a name in own.py, got recip; did you m"),
        ("train own.py:WIDTH", "recipe must be a Recipe, .* got a int from own.py"),
        (
            "train broken.py",
            "recipe must be in a file .* (NameError in line 2: name 'x",
        ),
        ("train nosuch:recipe", "recipe must .* got nosuch (ModuleNotFoundError: "),
        ("train own.py --set task.a=1", "field in set must be one of , got task.a"),
        (
            "compare own.py --optimizers own.py:WIDTH",
            "optimizer must be a function or a class, got a int from own.py:WIDTH",
        ),
        (
            "compare own.py --optimizers broken.py:adamw",
            "optimizer must be in a file .* got broken.py",
        ),
        (
            "train own.py --optimizer own.py:my_optimizer",
            "lr must be given for my_optimizer",
        ),
        (
            "compare own.py --optimizers adamw --setting adamw.beta=1",
            "setting of adamw must be one of betas, eps, got beta; did you mean betas?",
        ),
        (
            "train own.py --setting adamw.betas=0.9",
            "setting adamw.betas must be like 0.9,0.95, got 0.9",
        ),
        (
            "train own.py --setting sgd.momentum=0.5",
            "optimizer in setting must be one of adamw, got sgd",
        ),
        (
            "compare own.py --optimizers adamw --weight-decay sgd=1",
            "optimizer in weight_decay must be one of adamw, got sgd",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    command: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("y = 1\nx + y\n")
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    parts = sentence.split(".*")
    assert error.startswith(f"saiopt: {parts[0]}")
    assert all(part in error for part in parts)
    assert error.count("\n") == 1


def test_the_same_is_done_from_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain(params: Any, lr: float, momentum: float = 0.5) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=lr, momentum=momentum)

    made = recipe()
    comparison = lab.compare_optimizers(
        made, ["adamw", plain], (0, 1), {"plain": 0.1}, runs_dir=tmp_path
    )
    assert [row.optimizer for row in comparison.rows] == ["adamw", "plain"]
    assert "the best mean" in capsys.readouterr().out
    assert "Comparison of adamw, plain on own" in repr(comparison)
    outcome = lab.train_optimizer(
        made, plain, 0.1, settings={"momentum": 0.0}, weight_decay=0.1,
        keep_weights=True, runs_dir=tmp_path,
    )  # fmt: skip
    assert outcome.run.all_settings == {"momentum": 0.0}
    weights = torch.load(tmp_path / outcome.folder / "weights.pt", weights_only=True)
    assert weights.keys() == {"weight", "bias"}
    found = lab.find_rates(made, [plain], (0.05, 0.1), runs_dir=tmp_path)
    assert found.findings[0].best is not None
    rows = lab.list_runs(tmp_path)
    assert {row["optimizer"] for row in rows} == {"adamw", "plain"}
    assert len({len(row) for row in rows}) == 1
    assert lab.report_runs(tmp_path, tmp_path / "r.html").exists()


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> Any:
            return torch.tensor([float(index)]), torch.rand(1)

    first, second = (OwnTask(recipe(Noisy).task.__dict__["_parts"]) for _ in range(2))
    state = torch.get_rng_state()
    batches = [first.batch(0, step, 4) for step in (0, 1, 0)]
    again = second.batch(0, 0, 4)
    assert torch.equal(torch.get_rng_state(), state)
    for key in ("0", "1"):
        assert torch.equal(batches[0][key], batches[2][key])
        assert torch.equal(batches[0][key], again[key])
        assert not torch.equal(batches[0][key], batches[1][key])
    assert first.fingerprint == second.fingerprint


def test_every_tenth_example_is_held_out_and_never_trained_on() -> None:
    task = recipe(lambda: points(50)).task.load()
    seen = {tuple(row.tolist()) for s in range(9) for row in task.batch(0, s, 5)["0"]}
    assert len(seen) == 45


def test_a_loader_gives_its_data_collation_and_batch_size() -> None:
    def doubled(items: list[Any]) -> Any:
        return torch.stack([x for x, _ in items]) * 2, torch.stack(
            [y for _, y in items]
        )

    loader = DataLoader(points(), batch_size=5, shuffle=True, collate_fn=doubled)
    made = recipe(loader, batch_size=None)
    assert made.batch_size == 5
    batch = made.task.load().batch(0, 0, 5)
    assert torch.allclose(
        batch["0"].sum(dim=1, keepdim=True), 2 * batch["1"], atol=1e-5
    )


def test_batches_of_any_form_are_split_and_put_together_again() -> None:
    class Words(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            return {"x": torch.ones(3) * index, "y": {"z": torch.tensor([1.0])}}

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch["x"]), batch["y"]["z"]

    made = recipe(Words, forward=forward, micro_batches=2)
    [run] = plan(made, ["adamw"], [0], {})
    task = prepare([run])
    assert isinstance(task, OwnTask)
    assert task.evaluate(task.build_model(0)).keys() == {"loss"}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": Stream}, "data must be a dataset with a length"),
        ({"data": lambda: 3}, "data must be a dataset with a length .* got a int"),
        ({"data": lambda: points(5)}, "data must hold at least 10 examples"),
        ({"data": lambda: [1.5] * 20}, "data must give pairs"),
        ({"data": lambda: ["a"] * 20}, "data must give batches of tensors"),
        ({"model": lambda: 3}, "model must be a function that returns a torch.nn.Mod"),
        ({"batch_size": 400}, "batch_size must be at most 36, got 400"),
        (
            {"data": DataLoader(points(), sampler=[0] * 20)},
            "data must be a DataLoader without a sampler",
        ),
    ],
)
def test_parts_that_are_of_no_use_are_refused(
    changes: dict[str, Any], sentence: str
) -> None:
    def use() -> None:
        task = prepare(plan(recipe(**changes), ["adamw"], [0], {}))
        task.loss(task.build_model(0), task.batch(0, 0, 8))

    with pytest.raises(ValueError, match=sentence):
        use()


def test_an_unnamed_recipe_has_its_files_name(folder: Path) -> None:
    assert recipe_at("own.py").name == "own"
    (folder / "own.py").rename("rings.py")
    assert recipe_at("rings.py").name == "rings"
    with pytest.raises(ValueError, match="name must be of letters"):
        recipe(name="a/b")


def test_a_files_recipe_can_be_sent_to_another_process(folder: Path) -> None:
    made = recipe_at("own.py:recipe")
    sent = pickle.loads(pickle.dumps(made))
    assert sent.task.load().fingerprint == made.task.load().fingerprint


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: None, "optimizer must take params or model"),
        (lambda params, lr, rank: None, "got one that needs rank"),
        (lambda params, lr: 3, "optimizer must be a torch.optim.Optimizer, got a fun"),
    ],
)
def test_an_optimizer_of_no_use_is_refused(
    build: Callable[..., Any], sentence: str
) -> None:
    build.__name__ = "bad"

    def use() -> None:
        [name] = optimizer_names([build])
        build_optimizer(name, nn.Linear(2, 2), 0.1, 0.1, 0)

    with pytest.raises(ValueError, match=sentence):
        use()


def test_a_name_of_the_labs_is_not_taken_away() -> None:
    def adamw(params: Any, lr: float) -> Any:
        return torch.optim.SGD(params, lr=lr)

    with pytest.raises(ValueError, match="optimizer must have a name that the lab has"):
        optimizer_names([adamw])


def test_an_optimizer_gets_the_model_or_groups_that_decay_apart() -> None:
    seen: dict[str, Any] = {}

    def grouped(params: Any, lr: float, weight_decay: float, seed: int = 3) -> Any:
        seen.update(groups=params, decay=weight_decay, seed=seed)
        return torch.optim.SGD(params, lr=lr)

    def whole(model: nn.Module, lr: float) -> Any:
        seen.update(model=model)
        return torch.optim.SGD(model.parameters(), lr=lr)

    model = nn.Linear(2, 2)
    for name in optimizer_names([grouped, whole, "torch.optim:NAdam"]):
        build_optimizer(name, model, 0.1, 0.25, 7)
    assert [group["weight_decay"] for group in seen["groups"]] == [0.25, 0.0]
    assert (seen["decay"], seen["seed"], seen["model"]) == (0.25, 7, model)
    assert OPTIMIZERS["NAdam"].settings["betas"] == (0.9, 0.999)


def test_what_lies_beside_a_file_is_part_of_its_code(folder: Path) -> None:
    codes = []
    for width in (2, 3):
        (folder / "net.py").write_text(f"WIDTH = {width}\n")
        (folder / "mine.py").write_text(
            f"import net\ndef model(): return net  # {width}\n"
        )
        sys.modules.pop("net", None)
        codes.append(own_code([_module(folder / "mine.py").model]))
    assert codes[0] != codes[1]


def _module(path: Path) -> Any:
    from saiopt.lab.own.reference import _load_file

    return _load_file("recipe", path)


def typed(text: str) -> dict[str, Any]:
    """Run text as a notebook does, where it has no file."""
    names: dict[str, Any] = {"__name__": "typed_into_a_notebook"}
    exec(text, names)
    return names


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("def f(): return 1", "def f():  # a comment\n    return 1", True),
        ("def f(): return 1", "def f(): return 2", False),
        ("W = 1\ndef f(): return W", "W = 2\ndef f(): return W", False),
        (
            "def g(): return 1\ndef f(): return g()",
            "def g(): return 2\ndef f(): return g()",
            False,
        ),
        (
            "class N:\n    def h(self): return 1\ndef f(): return N()",
            "class N:\n    def h(self): return 2\ndef f(): return N()",
            False,
        ),
        ("def f(a=1): return a", "def f(a=2): return a", False),
        ("V = 1\ndef f(): return 1", "V = 2\ndef f(): return 1", True),
    ],
)
def test_what_is_typed_counts_with_all_that_it_names(
    first: str, second: str, is_same: bool
) -> None:
    codes = [own_code([typed(text)["f"]]) for text in (first, second)]
    assert (codes[0] == codes[1]) is is_same
