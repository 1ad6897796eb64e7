"""SIGTERM in one process: at once outside the loop, at the end of a step inside it."""

import signal

import pytest

from biedsnet_jax.errors import Preempted
from biedsnet_jax.preemption import Watch


def terminate():
    signal.raise_signal(signal.SIGTERM)


def test_outside_the_loop_it_stops_at_once_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="the same command goes on"), Watch():
        terminate()
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_the_loop_it_is_told_after_the_step():
    steps = []
    with pytest.raises(Preempted, match="step 3 is saved"), Watch() as watch, watch.loop():
        for step in range(1, 9):
            if step == 3:
                terminate()
            steps.append(step)
            if watch.reached(step):
                raise Preempted(f"step {step} is saved")
    assert steps == [1, 2, 3]


def test_after_the_last_question_it_stops_at_the_end_of_the_loop():
    with pytest.raises(Preempted), Watch() as watch:
        with watch.loop():
            assert not watch.reached(8)
            terminate()
        pytest.fail("went on to the test")


def test_no_library_takes_it_for_a_fault():
    assert not issubclass(Preempted, Exception)
