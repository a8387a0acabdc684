"""The ways in which a run is carried on elsewhere."""

import copy
import io
import pickle

import torch


def resumed(how, trained, optimizer, make):
    """Copies of what trains and of its optimizer.

    `how` is "deepcopy", "pickle", "state_dict" or "file"; for the last two
    `make` makes the optimizer of the copy that loads.
    """
    if how == "deepcopy":
        return copy.deepcopy((trained, optimizer))
    if how == "pickle":
        return pickle.loads(pickle.dumps((trained, optimizer)))
    saved = optimizer.state_dict()
    if how == "file":
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
    twin = copy.deepcopy(trained)
    fresh = make(twin)
    fresh.load_state_dict(saved)
    return twin, fresh
