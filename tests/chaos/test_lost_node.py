"""Lose a node of a training cluster while S3 refuses a third of all requests: the kill matrix in short."""

from collections.abc import Callable

from lab import Lab
from runs import Run, check_end

EPOCHS = 12


def test_training_goes_on_with_one_node_when_the_network_loses_the_other(lab: Lab, new_run: Callable[..., Run]) -> None:
    run = new_run("1-2", EPOCHS)
    lab.s3.set_faults(share_503=0.33)
    process = run.start(lab)
    run.wait_for_hit(process)
    lab.cut(run.leader(process, lab))
    lives = check_end(run, process)
    assert [life["workers"] for life in lives] == [2, 1]
    assert lab.s3.struck["share_503"] > 0
