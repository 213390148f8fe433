"""A step launches few kernels, waits for the device only to read the finite check, and its loss traces into one graph."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from one_graph import make_batch, make_learner
from step_operations import StepOperations, operations_of_preset, operations_of_step
from yolor_ray.config import presets
from yolor_ray.train.optim.finite_check import CHECKED_UPDATES

KERNELS = {"nano": 900, "s4-s2d": 790}
"""Kernels of a step by preset, rounded up."""


@pytest.mark.parametrize("preset", KERNELS)
def test_a_step_launches_few_kernels_and_waits_for_nothing(preset):
    counts = operations_of_preset(preset)
    assert counts.waits == []
    assert KERNELS[preset] * 0.95 < counts.kernels.total() <= KERNELS[preset], counts.kernels


def test_the_host_reads_one_pair_of_numbers_from_the_device_every_few_updates():
    learner, batch = make_learner("nano"), make_batch()
    with StepOperations() as counts:
        for _ in range(CHECKED_UPDATES + 1):
            learner.learn(*batch, must_update=False)
    assert counts.waits == ["tolist"], "the counts of the finite check"


@pytest.mark.parametrize("head", ["free", "anchors"])
def test_the_losses_of_all_tasks_wait_for_the_number_of_masks_alone(head, monkeypatch):
    network = replace(presets.PRESETS["demo-tasks"].network, head=head, distance_bins=1)
    monkeypatch.setitem(presets.PRESETS, "tasks", replace(presets.PRESETS["demo-tasks"], network=network))
    learner, batch = make_learner("tasks"), make_batch(everything=True)
    learner.learn(*batch, must_update=False)
    assert operations_of_step(learner, *batch, monkeypatch).waits == ["loss: nonzero", "tolist"]


def test_network_and_loss_trace_into_one_graph():
    command = [sys.executable, "-W", "ignore", "-m", "one_graph", *KERNELS]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    differences = [float(line) for line in result.stdout.splitlines()]
    assert len(differences) == len(KERNELS) and max(differences) < 1e-6
