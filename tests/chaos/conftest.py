"""Share a cluster of several hosts between the tests that hurt it, and tell at the end what each fault cost."""

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hosts
from hosts import Process
from lab import Lab
from lab import lab as start_lab
from runs import END_TIMEOUT_S, IMAGES, Outcome, Run
from yolor_ray.pack.run import pack_scenes

REPORT = "CHAOS_REPORT"
"""Variable with the file that the table is written to."""
TABLE = pytest.StashKey[list[str]]()
HEADER = "| fault | lives | steps lost | records an epoch | outage, s | weights |\n|---|---|---|---|---|---|"


@pytest.fixture(scope="session")
def running_lab(s3: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if lacking := hosts.missing():
        pytest.skip(lacking)
    upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    with start_lab(upstream, tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def lab(running_lab: Lab) -> Lab:
    """A cluster of a head and two nodes; whatever an earlier test did to it is repaired."""
    running_lab.repair()
    return running_lab


@pytest.fixture(scope="session")
def new_run(s3: Callable[[], str]) -> Callable[..., Run]:
    """Return a fresh run, `new_run(workers, epochs)`, of a training set that all of them share."""
    bucket = s3()
    for name, count, seed in (("train", IMAGES, 0), ("val", 8, 1)):
        pack_scenes(f"{bucket}/{name}", count, seed)

    def make(workers: str, epochs: int = 20) -> Run:
        return Run(f"{bucket}/train", f"{bucket}/val", f"{bucket}/runs", f"run-{uuid.uuid4().hex[:8]}", workers, epochs)

    return make


@pytest.fixture(scope="session")
def undisturbed(running_lab: Lab) -> Callable[[Run], Run]:
    """Return the same run undisturbed; it is made once per number of workers and length."""
    made: set[str] = set()

    def make(run: Run) -> Run:
        reference = run.undisturbed()
        if reference.name not in made:
            running_lab.repair()
            process = reference.start(running_lab)
            assert process.wait(END_TIMEOUT_S) == 0, process.output[-4000:]
            assert len(reference.lives()) == 1
            made.add(reference.name)
        return reference

    return make


@pytest.fixture
def under_way(lab: Lab, new_run: Callable[..., Run], undisturbed: Callable[[Run], Run]) -> Callable[..., tuple[Run, Process, Run]]:
    """Start a run, `under_way(workers, epochs)`; once it has what it must not lose, return it, its process and its undisturbed like."""

    def begin(*shape: Any) -> tuple[Run, Process, Run]:
        run = new_run(*shape)
        expected, process = undisturbed(run), run.start(lab)
        run.wait_for_hit(process)
        return run, process, expected

    return begin


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, Outcome], None]:
    """Add a row to the table of faults."""

    def add(fault: str, outcome: Outcome) -> None:
        records = ", ".join(map(str, sorted(outcome.records)))
        outages = ", ".join(f"{downtime_s:.1f}" for downtime_s in outcome.outages_s) or "none"
        workers = " → ".join(str(life["workers"]) for life in outcome.lives)
        row = f"| {fault} | {workers} workers | {outcome.lost_steps} | {records} | {outages} | {outcome.weights} |"
        request.config.stash.setdefault(TABLE, []).append(row)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(TABLE, [])
    if not rows:
        return
    table = "\n".join([HEADER, *rows])
    terminalreporter.section("what each fault cost")
    terminalreporter.write_line(table)
    if os.environ.get(REPORT):
        Path(os.environ[REPORT]).write_text(table + "\n")
