"""Fixtures of the fault tests: a cluster of several hosts that the tests share, and a table of the cost of each fault."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hosts
from hosts import Process
from lab import Lab, start_lab
from runs import END_TIMEOUT_S, IMAGES, Outcome, Run
from yolor_ray.pack.run import pack_scenes

REPORT = "CHAOS_REPORT"
"""Environment variable with the file that receives the table, of the faults or of the soak."""
TABLE = pytest.StashKey[list[str]]()
SOAK = pytest.StashKey[list[str]]()
HEADER = "| fault | attempts | lost steps | records per epoch | downtime, s | weights |\n|---|---|---|---|---|---|"


@pytest.fixture(scope="session")
def running_lab(s3: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if lacking := hosts.missing():
        pytest.skip(lacking)
    upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    with start_lab(upstream, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def lab(running_lab: Lab) -> Lab:
    """Return a cluster of a head and two nodes, without the faults of earlier tests."""
    running_lab.repair()
    return running_lab


@pytest.fixture(scope="session")
def new_run(s3: Callable[[], str]) -> Callable[..., Run]:
    """Return a factory of runs, `new_run(workers, epochs)`, which share a training set."""
    bucket = s3()
    for name, count, seed in (("train", IMAGES, 0), ("val", 8, 1)):
        pack_scenes(f"{bucket}/{name}", count, seed)

    def make(workers: str, epochs: int = 20) -> Run:
        return Run(f"{bucket}/train", f"{bucket}/val", f"{bucket}/runs", f"run-{uuid.uuid4().hex[:8]}", workers, epochs)

    return make


@pytest.fixture(scope="session")
def undisturbed(running_lab: Lab) -> Callable[[Run], Run]:
    """Return a factory of undisturbed runs, which trains each number of workers and epochs once."""
    finished: set[str] = set()

    def make(run: Run) -> Run:
        reference = run.undisturbed()
        if reference.name not in finished:
            running_lab.repair()
            process = reference.start(running_lab)
            assert process.wait(END_TIMEOUT_S) == 0, process.output[-4000:]
            assert len(reference.attempts()) == 1
            finished.add(reference.name)
        return reference

    return make


@pytest.fixture
def start_run(lab: Lab, new_run: Callable[..., Run], undisturbed: Callable[[Run], Run]) -> Callable[..., tuple[Run, Process, Run]]:
    """Return a function that starts a run and waits for its FAULT_STEP: `start_run(workers, epochs)`.

    The function returns the run, its process and its undisturbed twin.
    """

    def start(*shape: Any) -> tuple[Run, Process, Run]:
        run = new_run(*shape)
        expected, process = undisturbed(run), run.start(lab)
        run.wait_for_fault_step(process)
        return run, process, expected

    return start


@pytest.fixture
def add_row(request: pytest.FixtureRequest) -> Callable[[str, Outcome], None]:
    """Return a function that adds a row to the table of faults."""

    def add(fault: str, outcome: Outcome) -> None:
        records = ", ".join(map(str, sorted(outcome.records)))
        downtimes = ", ".join(f"{downtime_s:.1f}" for downtime_s in outcome.downtimes_s) or "none"
        workers = " → ".join(str(attempt["workers"]) for attempt in outcome.attempts)
        row = f"| {fault} | {workers} workers | {outcome.lost_steps} | {records} | {downtimes} | {outcome.weights} |"
        request.config.stash.setdefault(TABLE, []).append(row)

    return add


@pytest.fixture
def add_report(request: pytest.FixtureRequest) -> Callable[[list[str]], None]:
    """Return a function that adds lines to the report of the soak."""
    return lambda lines: request.config.stash.setdefault(SOAK, []).extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash.get(TABLE, []):
        show(terminalreporter, "cost of each fault", [HEADER, *rows])
    if lines := config.stash.get(SOAK, []):
        show(terminalreporter, "soak", lines)


def show(terminalreporter: pytest.TerminalReporter, title: str, lines: list[str]) -> None:
    terminalreporter.section(title)
    terminalreporter.write_line("\n".join(lines))
    if os.environ.get(REPORT):
        Path(os.environ[REPORT]).write_text("\n".join(lines) + "\n")
