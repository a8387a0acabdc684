import pytest
import torch
from workers import Workers

# The tests' tensors are small: a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def workers():
    workers = Workers()
    yield workers
    workers.stop()
