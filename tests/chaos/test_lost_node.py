"""A short kill matrix: a node of a training cluster is lost while S3 refuses a third of all requests."""

from collections.abc import Callable

import pytest

from lab import Lab
from runs import Run, check_end

pytestmark = pytest.mark.chaos

EPOCHS = 12


def test_training_resumes_on_one_node_when_the_network_loses_the_other(lab: Lab, new_run: Callable[..., Run]) -> None:
    run = new_run("1-2", EPOCHS)
    lab.s3.set_faults(share_503=0.33)
    process = run.start(lab)
    run.wait_for_fault_step(process)
    lab.cut(run.leader(process, lab))
    attempts = check_end(run, process)
    assert [attempt["workers"] for attempt in attempts] == [2, 1]
    assert lab.s3.struck["share_503"] > 0
