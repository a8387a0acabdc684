import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lab_ranks
import pytest
import torch

from saiopt.lab.comparison.compare import prepare
from saiopt.lab.optimizers import OPTIMIZERS as OPTIMIZERS_BY_NAME
from saiopt.lab.recipes import get_recipe
from saiopt.lab.training.ranks import ALONE, Ranks, together
from saiopt.lab.training.run import Run

CPU = torch.device("cpu")
# Seconds after which a command hangs: on a busy machine it takes minutes.
_HANGS = 600
OPTIMIZERS = ["sgdsai", "adamw", "sgd"]
MOMENTA = [
    *("sgdsai", "sgdsai-bf16", "sgdsai-int8", "sgdsai-int4"),
    # Stopped while it calibrates.
    "sgdsai-factored-int4",
    "sgdsai-orthogonal-int4",
]
SHARDED = [
    name
    for name, spec in OPTIMIZERS_BY_NAME.items()
    if spec.shards and not name.endswith("-frozen-a")
]
STRATEGIES = ["ddp", "fsdp2"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    runs_dir = tmp_path_factory.mktemp("alone")
    return {name: lab_ranks.train(runs_dir, name) for name in OPTIMIZERS}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ranks_give_the_numbers_of_one_process(
    workers, tmp_path, alone, strategy, optimizer
):
    metrics, curve, state_bytes = alone[optimizer]
    for found in workers.run(2, lab_ranks.train, tmp_path, optimizer, strategy):
        assert found[0] == pytest.approx(metrics, rel=1e-4)
        assert found[1] == [(s, pytest.approx(v, rel=1e-4)) for s, v in curve]
        assert found[2] == state_bytes


@pytest.mark.parametrize("optimizer", ["schedule-free-adamw", "lion", "adam-mini"])
def test_shards_of_rivals_give_the_numbers_of_one_process(workers, tmp_path, optimizer):
    alone = lab_ranks.train(tmp_path / "alone", optimizer)
    for found in workers.run(2, lab_ranks.train, tmp_path, optimizer, "fsdp2"):
        assert found[0] == pytest.approx(alone[0], rel=1e-4)
        assert found[1] == [(s, pytest.approx(v, rel=1e-4)) for s, v in alone[1]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_orthogonal_steps_on_ranks_give_the_numbers_of_one_process(
    workers, tmp_path, strategy
):
    name = "sgdsai-orthogonal"
    alone = lab_ranks.train(tmp_path / "alone", name)
    for found in workers.run(2, lab_ranks.train, tmp_path, name, strategy):
        assert found[0] == pytest.approx(alone[0], rel=1e-4)
        assert found[2] == alone[2]


@pytest.mark.parametrize("optimizer", ["adafactor", "prodigy"])
def test_what_needs_whole_parameters_is_refused_under_fsdp2(optimizer):
    run = Run(get_recipe("vit-digits"), optimizer, 0.1, 0)
    with pytest.raises(ValueError, match=f"strategy must be ddp with {optimizer}"):
        prepare([run], Ranks(0, 2, "fsdp2"))


def test_what_cannot_be_sharded_is_refused_before_training(workers):
    for told in workers.run(2, lab_ranks.refused, "gpt-stdlib", "adam-mini"):
        assert told.startswith("strategy must be ddp with adam-mini on GPT-2")


def test_released_shards_give_the_numbers_of_one_process(workers, tmp_path):
    settings = lab_ranks.SETTINGS | lab_ranks.RELEASED
    alone = lab_ranks.train(tmp_path / "alone", "sgdsai", settings=settings)
    arguments = (tmp_path, "sgdsai", "fsdp2", None, settings)
    for found in workers.run(2, lab_ranks.train, *arguments):
        assert found[0] == pytest.approx(alone[0], rel=1e-4)
        assert found[2] == alone[2]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("first", "then"),
    [((2, "fsdp2"), (1, None)), ((2, "ddp"), (3, "fsdp2")), ((1, None), (2, "fsdp2"))],
    ids=["2 to 1", "2 to 3", "1 to 2"],
)
def test_another_number_of_ranks_goes_on_from_a_checkpoint(
    workers, tmp_path, alone, optimizer, first, then
):
    results = []
    for (world, strategy), stop in ((first, 10), (then, None)):
        if strategy is None:
            results.append(lab_ranks.train(tmp_path, optimizer, None, stop))
        else:
            args = (tmp_path, optimizer, strategy, stop)
            results.append(workers.run(world, lab_ranks.train, *args)[0])
    assert results[0] is None
    assert results[1][0] == pytest.approx(alone[optimizer][0], rel=1e-4)
    assert len(results[1][1]) == len(alone[optimizer][1])


@pytest.mark.parametrize("optimizer", MOMENTA)
def test_a_stopped_run_of_shards_ends_with_the_bits_of_one_that_was_not(
    workers, tmp_path, optimizer
):
    whole, stopped = (
        (tmp_path / name, optimizer, "fsdp2", stop, lab_ranks.WIDE)
        for name, stop in (("whole", None), ("stopped", 10))
    )
    expected = workers.run(2, lab_ranks.train, *whole)
    assert workers.run(2, lab_ranks.train, *stopped) == [None, None]
    resumed = (*stopped[:3], None, lab_ranks.WIDE)
    assert workers.run(2, lab_ranks.train, *resumed) == expected


def on(world, workers, function, *arguments):
    if world == 1:
        return [function(*arguments)]
    return workers.run(world, function, *arguments)


def differences(found, expected):
    """Where two nested contents differ in a bit, a dtype or a key."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return [
            f"{key}.{where}"
            for key in expected
            for where in differences(found[key], expected[key])
        ]
    if isinstance(expected, torch.Tensor):
        same = found.dtype == expected.dtype and torch.equal(found, expected)
    else:
        same = found == expected
    return [] if same else [""]


@pytest.mark.parametrize(
    ("optimizer", "first", "then"),
    [
        *((name, *ranks) for name in MOMENTA for ranks in ((1, 2), (2, 1))),
        # Adam-mini's package cannot split a head over two ranks.
        *((name, 2, 2 if name == "adam-mini" else 3) for name in SHARDED),
    ],
)
def test_a_checkpoint_keeps_every_bit_on_any_number_of_ranks(
    workers, tmp_path, optimizer, first, then
):
    saved, loaded = tmp_path / "saved.pt", tmp_path / "loaded.pt"
    on(first, workers, lab_ranks.save_trained, saved, optimizer)
    assert all(on(then, workers, lab_ranks.save_loaded, saved, loaded, optimizer))
    contents = [torch.load(path) for path in (loaded, saved)]
    for name in ("model", "optimizer"):
        assert not differences(*(content[name] for content in contents))


def test_a_finished_run_says_that_it_was_made_by_other_processes(workers, tmp_path):
    workers.run(2, lab_ranks.train, tmp_path, "sgdsai", "ddp")
    assert lab_ranks.endings(tmp_path, "sgdsai") == ["2 processes with ddp"]


def torchrun(runs_dir: Path) -> "subprocess.Popen[str]":
    settings = {**lab_ranks.SETTINGS, "steps": "160", "checkpoint_every": "20"}
    settings["eval_every"] = "80"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("-m", "saiopt", "train", "vit-digits", "--strategy", "fsdp2"),
            *("--set", *(f"{name}={value}" for name, value in settings.items())),
            *("--lr", "0.05", "--runs-dir", str(runs_dir)),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rank_pids(launcher: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(launcher), "-o", "pid="], capture_output=True, text=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def final_metrics(runs_dir: Path) -> list[dict[str, float]]:
    return [
        json.loads(p.read_text())["metrics"] for p in runs_dir.glob("*/result.json")
    ]


def test_a_killed_rank_ends_the_run_with_a_sentence_and_the_run_goes_on(tmp_path):
    with torchrun(tmp_path / "whole") as process:
        process.communicate(timeout=_HANGS)
    with torchrun(tmp_path / "killed") as killed:
        while not list((tmp_path / "killed").glob("*/checkpoint.pt")):
            assert killed.poll() is None
            time.sleep(0.01)
        os.kill(rank_pids(killed.pid)[-1], signal.SIGKILL)
        _, errors = killed.communicate(timeout=_HANGS)
    assert killed.returncode != 0
    # The other rank finds itself alone, or torchrun tells it to end before.
    assert re.search(
        "saiopt: .*another process of this run has ended|told to end", errors
    )
    assert "goes on from the last checkpoint" in errors
    assert not final_metrics(tmp_path / "killed")
    with torchrun(tmp_path / "killed") as process:
        process.communicate(timeout=_HANGS)
    assert len(final_metrics(tmp_path / "whole")) == 1
    assert final_metrics(tmp_path / "killed") == final_metrics(tmp_path / "whole")


def test_a_strategy_needs_several_processes():
    with (
        pytest.raises(ValueError, match="strategy must be left out in one process"),
        together("fsdp2", CPU, 12),
    ):
        pass


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    with (
        pytest.raises(ValueError, match="batch_size must be a multiple of the 5"),
        together("ddp", CPU, 12),
    ):
        pass


def test_shares_are_disjoint_and_complete():
    batch = {"x": torch.arange(12), "y": torch.arange(24).view(12, 2)}
    shares = [Ranks(rank, 3, "ddp").share(batch) for rank in range(3)]
    for name, tensor in batch.items():
        assert torch.equal(torch.cat([share[name] for share in shares]), tensor)
    assert torch.equal(ALONE.share(batch)["x"], batch["x"])


def test_what_the_first_rank_raises_every_rank_raises(workers):
    assert workers.run(2, lab_ranks.raise_on_first) == [True, True]


def test_shards_are_gathered_one_tensor_at_a_time_and_kept_by_the_first(workers):
    first, second = workers.run(2, lab_ranks.gather)
    assert first[0] == first[1] == first[2]
    assert second == (1, first[1], first[2])


def test_every_rank_draws_its_own_random_numbers_and_the_first_those_of_one_process(
    workers, tmp_path
):
    begun = workers.run(2, lab_ranks.seeds, tmp_path, 10)
    assert begun[0] == {0}
    assert len(begun[1]) == 1
    assert begun[0] != begun[1]
    assert workers.run(2, lab_ranks.seeds, tmp_path) == begun
