"""Provenance of measurements: cores, machine, command and commit."""

import os
import re
import sys

import pytest

from yolor_ray.report import provenance


def test_available_cores_are_those_of_the_cpu_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert provenance.available_cores() == 3


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (None, 1)])
def test_available_cores_are_all_cores_on_a_platform_without_cpu_affinity(count, cores, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert provenance.available_cores() == cores


def test_the_machine_has_the_available_cores_and_the_names_of_its_parts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    machine = provenance.machine()
    assert machine["cores"] == 2
    assert machine["memory_gb"] > 0
    assert all(machine[name] for name in ("cpu", "python", "torch", "ray", "compute_threads"))


def test_the_command_can_be_pasted_into_a_shell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "nano", "--run.name", "two words"])
    assert provenance.command() == "python jobs/train.py nano --run.name 'two words'"


def test_the_commit_is_a_hash_or_unknown(monkeypatch):
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", provenance.commit())
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == "unknown"
