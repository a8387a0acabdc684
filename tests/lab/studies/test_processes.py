import time

import pytest

from saiopt.lab.studies.processes import in_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done(workers):
    jobs = [(2, power) for power in range(5)]
    assert sorted(in_processes(pow, jobs, workers)) == [1, 2, 4, 8, 16]


def test_a_failure_is_raised_after_what_was_done_beside_it():
    made = []
    with pytest.raises(ValueError, match="non-negative"):
        made.extend(in_processes(time.sleep, [(1,), (-1,), *[(0.1,)] * 40], 2))
    assert 0 < len(made) < 40


def test_whoever_stops_ends_what_is_being_made():
    jobs = in_processes(time.sleep, [(0,), (300,)], 2)
    next(jobs)
    began = time.monotonic()
    jobs.close()
    assert time.monotonic() - began < 60
