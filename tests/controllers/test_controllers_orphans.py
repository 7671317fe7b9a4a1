"""What a request leaves behind in the model that wrote for it: nothing, whatever the way out."""

import pytest
import steered


def live(backend):
    """Calls that the worker has."""
    worker = backend._worker
    return len(worker._running) + len(worker._waiting)


@pytest.mark.parametrize("how", steered.WAYS_OUT)
def test_no_child_outlives_its_request(how):
    backend = steered.in_process()
    steered.check_no_child_outlives(backend, how, lambda: live(backend))
    assert not backend._worker._slots


def test_children_that_nobody_aborts_are_orphans():
    backend = steered.in_process()
    steered.check_orphans(backend, lambda: live(backend))
