import subprocess
import sys

HEAVY = ("matplotlib", "tyro", "transformers", "rich", "sklearn", "triton")


def modules_after(statement):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_saiopt_loads_torch_and_nothing_heavy():
    loaded = modules_after("import saiopt")
    assert "saiopt.optimizer" in loaded
    assert not [name for name in HEAVY if name in loaded]


def test_importing_saiopt_brings_no_package_that_torch_does_not():
    roots = [
        {name.partition(".")[0] for name in modules_after(statement)}
        for statement in ("import torch, torch.optim", "import saiopt")
    ]
    assert roots[1] - roots[0] <= {"saiopt"}
