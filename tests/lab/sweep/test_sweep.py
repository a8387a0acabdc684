import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from tiny import TINY

from saiopt.cli import main
from saiopt.cli.sweep import Sweep as Command
from saiopt.cli.training import recipe_of
from saiopt.lab.comparison.compare import prepare
from saiopt.lab.optimizers import build_optimizer
from saiopt.lab.recipe import Recipe
from saiopt.lab.sweep.board import Board, Cell, open_storage
from saiopt.lab.sweep.claims import Claim
from saiopt.lab.sweep.findings import Finding, gather
from saiopt.lab.sweep.pictures import draw
from saiopt.lab.sweep.plan import Sweep
from saiopt.lab.sweep.published import published_grid
from saiopt.lab.sweep.workers import Place, boards, work_off
from saiopt.lab.training.outcome import Outcome, carry_out
from saiopt.lab.training.run import Run

CPU = torch.device("cpu")
NAMES = ("sgd", "adamw")


def grid(recipe: Recipe, **changes: Any) -> Sweep:
    arguments = {
        "recipe": recipe,
        "optimizer": "sgdsai",
        "lrs": (0.01, 0.1),
        "weight_decays": (0.0, 0.1),
        "seeds": (0,),
    }
    return Sweep(**{**arguments, **changes})


def place(folder: Path, device: torch.device = CPU) -> Place:
    return Place(folder, f"sqlite:///{folder / 'sweeps.db'}", device, 1)


def board(sweep: Sweep, folder: Path, locks: Path | None = None) -> Board:
    where = place(folder)
    storage = open_storage(where.storage, where.locks)
    return Board(sweep, {"torch": "x"}, storage, locks or where.locks)


def states(folder: Path) -> Counter[TrialState]:
    url = f"sqlite:///{folder / 'sweeps.db'}"
    [name] = optuna.get_all_study_names(url)
    trials = optuna.load_study(study_name=name, storage=url).get_trials()
    return Counter(trial.state for trial in trials)


def found(cells: dict[tuple[float, float], float], sweep: Sweep) -> Finding:
    return Finding(
        sweep,
        [Cell(lr, wd, {0: value}, {}, [], 1.0) for (lr, wd), value in cells.items()],
    )


def test_every_cell_is_an_ordinary_run(tiny: Recipe, tmp_path: Path) -> None:
    sweep = grid(tiny, seeds=(0, 1))
    task = prepare(sweep.runs({"lr": 0.01}))
    work_off([sweep], task, place(tmp_path), lambda *_: None)
    [opened] = boards([sweep], task, place(tmp_path))
    cells = opened.cells()
    assert [(c.lr, c.weight_decay) for c in cells] == [
        (0.01, 0.0),
        (0.01, 0.1),
        (0.1, 0.0),
        (0.1, 0.1),
    ]
    run = Run(tiny, "sgdsai", 0.1, 1, fixed_weight_decay=0.1)
    outcome = carry_out(run, task, tmp_path, CPU, lambda p: seen.append(p.status))
    assert cells[3].values[1] == outcome.value
    assert cells[3].folders[1] == outcome.folder


seen: list[str] = []


def test_a_finished_sweep_trains_nothing(tiny: Recipe, tmp_path: Path) -> None:
    sweep = grid(tiny, weight_decays=())
    task = prepare(sweep.runs({"lr": 0.01}))
    announced: list[Cell] = []
    for _ in range(2):
        work_off([sweep], task, place(tmp_path), lambda _, c: announced.append(c))
    assert [cell.lr for cell in announced] == [0.01, 0.1]
    assert announced[0].weight_decay == tiny.decay_per_step / 0.01


def test_the_process_that_sees_most_of_a_sweep_has_the_last_word(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = grid(tiny, weight_decays=())
    task = prepare(sweep.runs({"lr": 0.01}))
    drawn: list[int] = []

    def one_more_cell() -> None:
        [opened] = boards([sweep], task, place(tmp_path))
        claim = opened.claim()
        assert claim is not None
        [run] = sweep.runs(claim.trial.params)
        opened.finish(claim, [carry_out(run, task, tmp_path, CPU, lambda _: None)])

    def report() -> None:
        gather(boards([sweep], task, place(tmp_path)), tmp_path, None)

    def draw(tried: Any, *_: object) -> None:
        if len(tried[0][1]) == 1:
            one_more_cell()
            others.append(pool.submit(report))
            wait(others, timeout=1)
        drawn.append(len(tried[0][1]))

    monkeypatch.setattr("saiopt.lab.sweep.findings.draw", draw)
    others: list[Future[None]] = []
    one_more_cell()
    with ThreadPoolExecutor() as pool:
        report()
    others[0].result()
    assert drawn == [1, 2]
    [written] = tmp_path.glob("sweep-*/sweep.json")
    assert json.loads(written.read_text())["optimizers"][0]["missing"] == 0


def test_a_diverged_cell_is_recorded_as_such(tiny: Recipe, tmp_path: Path) -> None:
    sweep = grid(tiny, optimizer="sgd", lrs=(0.1, 1e30))
    task = prepare(sweep.runs({"lr": 0.1}))
    work_off([sweep], task, place(tmp_path), lambda *_: None)
    [opened] = boards([sweep], task, place(tmp_path))
    kept, lost = opened.cells()[:2], opened.cells()[2:]
    assert all(cell.mean is not None and not cell.diverged for cell in kept)
    assert all(cell.mean is None and set(cell.diverged) == {0} for cell in lost)


def test_two_boards_never_hold_the_same_cell(tiny: Recipe, tmp_path: Path) -> None:
    first, second = board(grid(tiny), tmp_path), board(grid(tiny), tmp_path)
    claims = [b.claim() for b in (first, second, second, first)]
    taken = {tuple(c.trial.params.values()) for c in claims if c is not None}
    assert len(taken) == 4
    assert first.claim() is None
    assert second.claim() is None
    for claim in claims:
        assert claim is not None
        claim.release()


def test_a_cell_that_was_let_go_is_put_up_again(tiny: Recipe, tmp_path: Path) -> None:
    opened = board(grid(tiny, lrs=(0.1,), weight_decays=()), tmp_path)
    claim = opened.claim()
    assert claim is not None
    assert opened.claim() is None
    # What the death of its process does: the lock is free, the trial is not told.
    claim.release()
    again = opened.claim()
    assert again is not None
    assert again.trial.params == claim.trial.params
    opened.give_up(again)
    assert states(tmp_path) == {TrialState.FAIL: 2}


def claim_of(opened: Board) -> Claim:
    claim = opened.claim()
    assert claim is not None
    return claim


def test_a_silent_machine_loses_its_cell(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = board(grid(tiny, lrs=(0.1,), weight_decays=()), tmp_path)
    claim = claim_of(opened)
    claim.trial.set_user_attr("host", "another")
    assert opened.claim() is None
    claim.trial.set_user_attr("beat", time.time() - 400)
    again = claim_of(opened)
    for held in (claim, again):
        held.release()


def test_a_sweep_with_other_locks_leaves_live_cells_alone(
    tiny: Recipe, tmp_path: Path
) -> None:
    sweep = grid(tiny, lrs=(0.1,), weight_decays=())
    first, second = board(sweep, tmp_path), board(sweep, tmp_path, tmp_path / "other")
    claim = claim_of(first)
    assert second.claim() is None
    claim.trial.set_user_attr("beat", time.time() - 400)
    again = claim_of(second)
    for held in (claim, again):
        held.release()


@pytest.mark.parametrize("ending", ["finish", "give_up"])
def test_whose_cell_was_taken_over_goes_on(
    tiny: Recipe, tmp_path: Path, ending: str
) -> None:
    opened = board(grid(tiny, lrs=(0.1,), weight_decays=()), tmp_path)
    claim = claim_of(opened)
    claim.trial.set_user_attr("host", "another")
    claim.trial.set_user_attr("beat", time.time() - 400)
    again = claim_of(opened)
    run = opened.sweep.runs({"lr": 0.1})[0]
    result = {"metrics": {"accuracy": 0.5}, "total_seconds": 1.0, "step": 12}
    outcome = Outcome(run, "folder", result, [])
    if ending == "finish":
        assert opened.finish(claim, [outcome]).values == {0: 0.5}
    else:
        opened.give_up(claim)
    assert opened.cells() == []
    opened.finish(again, [outcome])
    assert len(opened.cells()) == 1
    assert states(tmp_path) == {TrialState.FAIL: 1, TrialState.COMPLETE: 1}


def test_a_storage_out_of_reach_does_not_silence_a_process(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saiopt.lab.sweep.claims._BEAT_SECONDS", 0.01)
    opened = board(grid(tiny, lrs=(0.1,), weight_decays=()), tmp_path)
    claim = opened.claim()
    assert claim is not None
    beats: list[float] = []

    def unreachable(_: str, value: float) -> None:
        beats.append(value)
        raise OSError("no route to host")

    monkeypatch.setattr(claim.trial, "set_user_attr", unreachable)
    end = time.monotonic() + 10
    while len(beats) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    claim.release()


def test_tpe_makes_its_number_of_trials_within_the_ranges(
    tiny: Recipe, tmp_path: Path
) -> None:
    sweep = grid(tiny, weight_decays=(1e-4, 1.0), sampler="tpe", trials=5)
    task = prepare(sweep.runs({"lr": 0.01}))
    for _ in range(2):
        work_off([sweep], task, place(tmp_path), lambda *_: None)
    [opened] = boards([sweep], task, place(tmp_path))
    cells = opened.cells()
    assert len({(c.lr, c.weight_decay) for c in cells}) == 5
    assert all(0.01 <= c.lr <= 0.1 and 1e-4 <= c.weight_decay <= 1 for c in cells)


def test_processes_that_begin_together_propose_different_cells(
    tiny: Recipe, tmp_path: Path
) -> None:
    sweep = grid(tiny, weight_decays=(1e-4, 1.0), sampler="tpe", trials=4)
    claims = [opened.claim() for opened in (board(sweep, tmp_path),) * 2]
    claims += [opened.claim() for opened in [board(sweep, tmp_path) for _ in range(2)]]
    proposed = [claim.trial.params for claim in claims if claim is not None]
    for claim in claims:
        assert claim is not None
        claim.release()
    assert len({(p["lr"], p["weight_decay"]) for p in proposed}) == 4


def test_another_version_of_a_rivals_package_is_another_sweep(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lion, ours = (grid(tiny, optimizer=name) for name in ("lion", "sgdsai"))
    before = lion.study_name({}), ours.study_name({})
    monkeypatch.setattr("saiopt.lab.training.run.version", lambda _: "9.9.9")
    after = lion.study_name({}), ours.study_name({})
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)


def test_other_code_is_another_sweep(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps, task = [grid(tiny)], tiny.task.load()
    [before] = boards(sweeps, task, place(tmp_path))
    [again] = boards(sweeps, task, place(tmp_path))
    monkeypatch.setattr("saiopt.lab.training.outcome.code_hash", lambda *_: "edited")
    [after] = boards(sweeps, task, place(tmp_path))
    assert before.study_name == again.study_name != after.study_name


def test_a_published_grid_gives_torchs_sgd_its_coupled_decay() -> None:
    command = Command("resnet-digits", optimizers=NAMES, published="resnet18-cifar10")
    sweeps = command._sweeps(recipe_of(command))
    model = torch.nn.Linear(2, 2)
    for sweep in sweeps:
        decays = []
        for cell in sweep.cells():
            [run] = sweep.runs(cell)
            built = build_optimizer(sweep.optimizer, model, run.lr, run.weight_decay, 0)
            decays.append(max(group["weight_decay"] for group in built.param_groups))
        grid = published_grid("resnet18-cifar10")
        assert decays == pytest.approx(list(grid.weight_decays) * len(grid.lrs))


def test_a_cell_stands_above_the_published_one_of_the_same_decay(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    for name in ("plot_heat_maps", "plot_matched_decay"):
        keep = functools.partial(drawn.__setitem__, name)
        monkeypatch.setattr(
            f"saiopt.lab.sweep.pictures.{name}",
            lambda first, *_, keep=keep: keep(first),
        )
    cell = Cell(0.01, 0.05, {0: 0.5}, {}, [], 1.0)
    tried = [(grid(tiny, optimizer=name), [cell]) for name in NAMES]
    draw(tried, tmp_path, "resnet18-cifar10")
    ours, theirs = drawn["plot_heat_maps"]
    assert [list(panel.cells) for panel in ours] == [[(0.01, 0.005)], [(0.01, 0.05)]]
    assert all((0.01, 0.005) in panel.cells for panel in theirs)
    # Elsewhere it is the decay that the run was given.
    assert all(list(p.cells) == [(0.01, 0.05)] for p in drawn["plot_matched_decay"])


def test_the_border_is_named(tiny: Recipe) -> None:
    sweep = grid(tiny, lrs=(1.0, 2.0, 3.0), weight_decays=(0.1, 0.2, 0.3))
    cells = {(lr, wd): 0.5 for lr in sweep.lrs for wd in sweep.weight_decays}
    assert found({**cells, (2.0, 0.2): 0.9}, sweep).borders == []
    assert found({**cells, (3.0, 0.2): 0.9}, sweep).borders == ["largest lr"]
    corner = found({**cells, (1.0, 0.3): 0.9}, sweep)
    assert corner.borders == ["smallest lr", "largest weight decay"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lrs": (0.1, 0.1)}, "lrs must be given each once, got 0.1 0.1"),
        ({"lrs": (-1.0,)}, "lr must be positive and finite, got -1.0"),
        ({"weight_decays": (-1.0,)}, "weight_decay must be finite .* got -1.0"),
        ({"seeds": (-1,)}, "seed must be at least 0, got -1"),
        ({"sampler": "tpe", "trials": 0}, "trials must be at least 1, got 0"),
        ({"sampler": "tpe", "trials": 3}, "weight_decays must be positive for tpe"),
    ],
)
def test_a_bad_sweep_is_refused(
    tiny: Recipe, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        grid(tiny, **changes)


def sweep_command(runs_dir: Path) -> list[str]:
    return [
        *["sweep", "vit-digits", *TINY, "--steps", "150", "--optimizers", "sgdsai"],
        *["--lrs", "0.01", "0.02", "0.05", "--weight-decays", "0.1", "0.01"],
        *["--workers", "2", "--runs-dir", str(runs_dir), "--json"],
    ]


def children(process: "subprocess.Popen[str]") -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    lines = {
        int(pid): Path(f"/proc/{pid}/cmdline").read_text()
        for pid in path.read_text().split()
    }
    return [pid for pid, line in lines.items() if "spawn_main" in line]


def test_two_killed_workers_lose_and_double_no_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "saiopt", *sweep_command(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A third run folder beside two that are trained: one cell is finished at least.
    while len(list(tmp_path.glob("vit-*"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for pid in children(process):
        os.kill(pid, signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "2 of 2 workers ended before their time" in error
    assert 0 < states(tmp_path)[TrialState.COMPLETE] < 6
    alone = [a if a != "2" else "1" for a in sweep_command(tmp_path)]
    assert main(alone) == 0
    content = json.loads(capsys.readouterr().out)
    [result] = content["optimizers"]
    assert result["missing"] == 0
    assert len({(c["lr"], c["weight_decay"]) for c in result["cells"]}) == 6
    count = states(tmp_path)
    assert count[TrialState.COMPLETE] == 6
    assert count[TrialState.RUNNING] == count[TrialState.WAITING] == 0
    assert count[TrialState.FAIL] >= 1
    assert len(list(tmp_path.glob("vit-*/result.json"))) == 6


def test_a_storage_that_cannot_be_opened_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", "vit-digits", *TINY, "--runs-dir", str(tmp_path)]
    assert main([*command, "--storage", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saiopt: storage must be a database that can be opened")
    assert error.count("\n") == 1
