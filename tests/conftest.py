import os

import pytest
import torch
from workers import Workers

# The tests' tensors are small: a second thread only waits for the first.
torch.set_num_threads(1)

# Read when triton is imported, which nothing has done yet. Without a GPU its kernels
# run in an interpreter on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def workers():
    workers = Workers()
    yield workers
    workers.stop()
