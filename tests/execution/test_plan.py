"""How long the jobs will still take, from those that ran or run."""

from __future__ import annotations

import pytest

from autoseg.execution.plan import seconds_left


def test_nothing_is_known_before_a_job_has_said_something() -> None:
    assert seconds_left([], [(1.0, 3.0, None)], [1.0, 1.0], 2) is None


def test_waiting_jobs_take_what_running_ones_say_of_themselves() -> None:
    assert seconds_left([], [(1.0, 40.0, 60.0)], [], 1) == 60.0
    assert seconds_left([], [(1.0, 40.0, 60.0), (1.0, 50.0, 50.0)], [1.0, 1.0], 2) == 160.0
    assert seconds_left([], [(2.0, 100.0, 100.0)], [1.0], 2) == 100.0  # it starts on the free slot


def test_jobs_that_are_done_tell_of_those_that_say_nothing() -> None:
    assert seconds_left([(2.0, 100.0)], [(2.0, 30.0, None)], [1.0], 1) == pytest.approx(70.0 + 50.0)
    assert seconds_left([(2.0, 100.0)], [(2.0, 130.0, None)], [], 1) == 0.0
    assert seconds_left([(2.0, 100.0)], [], [], 3) == 0.0
