"""Faults of a cloud in a training run on several hosts: the run ends as an undisturbed one does.

| fault | workers | expected |
|---|---|---|
| a worker process is killed during a step | 2 | resumes with 2; weights as undisturbed |
| a worker process is stopped for ever | 2 | resumes with 2, names the worker; weights as undisturbed |
| a worker process runs 10 % of the time | 2 | names the worker; weights as undisturbed |
| the node of rank 0 is cut off, later connected again | 1-2 | resumes with 1; the old rank 0 does no harm |
| a node is lost for good and replaced | 1-2 | resumes with 1, then with 2 |
| the driver is killed, the same command is given again | 2 | resumes; weights as undisturbed |
| S3 is out of reach for 30 s | 2 | continues; weights as undisturbed |
| S3 answers 503 to half of all requests | 2 | continues; weights as undisturbed |
| the disk is full while checkpoints are written, then free | 0 | logs the failure, continues; weights as undisturbed |
| SIGTERM to the driver, the same command is given again | 2 | exits as preempted, loses no step; weights as undisturbed |
| a node is drained, then lost | 1-2 | loses no step; resumes with 1 |
| SIGTERM to a node's `ray start --block` | 1-2 | resumes with 1 |

Each epoch takes every record once, and no attempt resumes from an older checkpoint than the newest complete one before the fault. Run by
`make chaos`, as root, in almost an hour. tests/train/checkpoint/test_kill_points.py kills each step of writing a checkpoint.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lab import Lab
from runs import Outcome, finish

pytestmark = pytest.mark.chaos

AddRow = Callable[..., None]
LONG = 120
"""Epochs of a run that outlasts a node's loss and return."""
SLOW = 40
"""Epochs of a run that outlasts two comparisons of its workers, one of which is slow."""
PREEMPTED = 143
NOTICE_S = 25
DISK_MB = 24
HUNG_END_S = 150
"""60 s until a worker counts as hung, 40 s until Ray has ended it, and a reserve for a busy machine."""
WARNING_TIMEOUT_S = 200
LOSS_TOLERANCE = 0.2
"""Relative difference of the last loss after a change of the number of workers, which changes the batch normalisation of each batch. Over
the last five epochs of LONG, the losses of undisturbed runs in one process (`--cluster.workers 0 --run.seed 0` to `3`) lie between 0.93
and 1.07."""


def assert_similar_loss(outcome: Outcome) -> None:
    assert outcome.loss == pytest.approx(outcome.undisturbed_loss, rel=LOSS_TOLERANCE)


def worker_counts(outcome: Outcome) -> list[int]:
    return [attempt["workers"] for attempt in outcome.attempts]


def test_a_worker_killed_during_a_step_costs_less_than_a_checkpoint_interval(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("2")
    os.kill(lab.workers("node1")[0], signal.SIGKILL)
    outcome = finish(run, process, expected)
    add_row("worker process killed during a step", outcome)
    assert worker_counts(outcome) == [2, 2]
    assert outcome.equal


def test_a_stopped_worker_is_ended_and_named(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("2")
    [stopped] = lab.workers("node1")
    stopped_at = time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    run.wait_for(lambda: "event=attempt_failed" in process.output, "the end of the attempt", process)
    assert time.monotonic() - stopped_at < HUNG_END_S
    run.wait_for_attempt(workers=2, attempt=2, process=process)
    assert not Path(f"/proc/{stopped}").exists(), "a stopped worker could continue and write later"
    outcome = finish(run, process, expected)
    add_row("worker process stopped for ever", outcome)
    reason = outcome.attempts[1]["restart_reason"]
    assert re.fullmatch(rf"rank [01] on node {lab.nodes['node1'].address} did not answer for 60 s after step \d+", reason)
    assert outcome.equal


def test_a_slow_worker_is_named(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("2", SLOW)
    [slow] = lab.workers("node1")
    deadline = time.monotonic() + WARNING_TIMEOUT_S
    while "event=slow_worker" not in process.output:
        assert time.monotonic() < deadline, process.output[-4000:]
        for number, seconds in ((signal.SIGSTOP, 0.09), (signal.SIGCONT, 0.01)):
            os.kill(slow, number)
            time.sleep(seconds)
    outcome = finish(run, process, expected)
    add_row("worker process that ran 10 % of the time", outcome)
    assert set(re.findall(r"event=slow_worker rank=[01] node=(\S+)", process.output)) == {lab.nodes["node1"].address}
    assert len(outcome.attempts) == 1
    assert outcome.equal


def test_a_node_that_is_cut_off_does_no_harm_when_it_returns(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("1-2", LONG)
    leader = run.leader(process, lab)
    lab.cut(leader)
    run.wait_for_attempt(workers=1, attempt=2, process=process)
    lab.heal(leader)
    outcome = finish(run, process, expected)
    add_row("node of rank 0 cut off, later connected again", outcome)
    assert worker_counts(outcome)[:2] == [2, 1]
    assert_similar_loss(outcome)


def test_a_run_continues_without_a_lost_node_until_another_one_joins(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("1-2", LONG)
    follower = next(name for name in lab.nodes if name != run.leader(process, lab))
    lab.lose(follower)
    run.wait_for_attempt(workers=1, attempt=2, process=process)
    lab.start_node(follower)
    run.wait_for_attempt(workers=2, attempt=3, process=process)
    outcome = finish(run, process, expected)
    add_row("node lost for good, later replaced", outcome)
    assert worker_counts(outcome) == [2, 1, 2]
    assert_similar_loss(outcome)


def test_the_same_command_resumes_after_a_killed_driver(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("2")
    process.stop()
    outcome = finish(run, run.start(lab), expected)
    add_row("driver killed, same command again", outcome)
    assert len(outcome.attempts) == 2
    assert outcome.equal


def test_thirty_seconds_without_s3_change_nothing(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("2")
    before = lab.s3.struck["down_s"]
    lab.s3.set_faults(down_s=30)
    outcome = finish(run, process, expected)
    add_row("S3 out of reach for 30 s", outcome)
    assert lab.s3.struck["down_s"] > before
    assert outcome.equal


def test_refusals_of_half_of_all_requests_change_nothing(lab: Lab, new_run, undisturbed, add_row: AddRow) -> None:
    run = new_run("2")
    expected = undisturbed(run)
    before = lab.s3.struck["share_503"]
    lab.s3.set_faults(share_503=0.5)
    outcome = finish(run, run.start(lab), expected)
    add_row("S3 answers 503 to half of all requests", outcome)
    assert lab.s3.struck["share_503"] > before
    assert outcome.equal


def test_a_full_disk_is_logged_and_costs_only_checkpoints(lab: Lab, new_run, undisturbed, add_row: AddRow) -> None:
    undisturbed_run = new_run("0", LONG)
    expected = undisturbed(undisturbed_run)
    disk = lab.head.folder / "disk"
    lab.head.check("sh", "-c", f"mkdir -p {disk} && mount -t tmpfs -o size={DISK_MB}m disk {disk}")
    run = replace(undisturbed_run, storage_url=str(disk), outside_url=str(lab.head.outside_path(disk)))
    process = run.start(lab)
    run.wait_for_fault_step(process)
    lab.head.check("sh", "-c", f"! cat /dev/zero > {disk}/ballast")
    run.wait_for(lambda: "event=checkpoint_failed" in process.output, "a failed checkpoint", process)
    lab.head.check("rm", f"{disk}/ballast")
    outcome = finish(run, process, expected)
    add_row("disk full while checkpoints are written, then free", outcome)
    assert outcome.equal


def test_sigterm_to_the_driver_loses_no_step(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("2")
    process.send(signal.SIGTERM)
    assert process.wait(NOTICE_S) == PREEMPTED
    assert "preempted" in process.output
    outcome = finish(run, run.start(lab), expected)
    add_row("SIGTERM to the driver, same command again", outcome)
    assert outcome.lost_steps == 0
    assert outcome.equal


def test_a_drained_node_takes_no_step_with_it(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("1-2", LONG)
    leader = run.leader(process, lab)
    lab.announce_loss(leader, NOTICE_S)
    run.wait_for_attempt(workers=1, attempt=2, process=process)
    lab.lose(leader)
    outcome = finish(run, process, expected)
    add_row(f"node of rank 0 drained with {NOTICE_S} s of notice, then lost", outcome)
    assert worker_counts(outcome) == [2, 1]
    assert outcome.lost_steps == 0
    assert_similar_loss(outcome)


def test_the_end_of_ray_on_a_node_costs_less_than_a_checkpoint_interval(lab: Lab, start_run, add_row: AddRow) -> None:
    run, process, expected = start_run("1-2", LONG)
    lab.end_ray("node1")
    run.wait_for_attempt(workers=1, attempt=2, process=process)
    outcome = finish(run, process, expected)
    add_row("SIGTERM to `ray start --block` of a node", outcome)
    assert worker_counts(outcome) == [2, 1]
    assert_similar_loss(outcome)
