"""The report of a soak: tables of its trainings, requests, faults and slopes, and the broken promises."""

import json
from collections import Counter

import numpy as np

from soak_faults import LIMITS_S, Fault, Faults, Trainer
from soak_requests import Answer
from soak_usage import MEASURES, ROLES, Slope, Usage, common_slope


def report(faults: Faults, usage: Usage, actors: str) -> tuple[list[str], list[str]]:
    """Return the lines of the report, and the broken promises; `actors` has a line of JSON with time and number for each count."""
    slopes = {role: [usage.slope(role, measure) for measure in range(len(MEASURES))] for role in ROLES}
    cluster = {
        "actors": common_slope([np.array([json.loads(line) for line in actors.splitlines() if line.startswith("[")])]),
        "processes": common_slope([np.array(usage.counts)]),
    }
    answers = sorted(faults.load.answers, key=lambda answer: answer.ended_at)
    fault_rows, failed = tabulate_faults(faults.caused, answers)
    slope_rows, growing = tabulate_slopes(slopes)
    run_rows, differing = tabulate_runs(faults.trainer)
    count_rows = [f"{name} of the cluster, mean: change per hour [95 %]: {slope}" for name, slope in cluster.items()]
    growing += [f"{name}: {slope}" for name, slope in cluster.items() if slope and not slope.is_flat]
    count_rows.append(f"worker processes that a node started per hour: {usage.workers_per_hour():.0f}")
    count_rows += [f"new threads of {role}: {dict(names)}" for role in ROLES if (names := usage.new_threads(role))]
    lines = [*run_rows, *tabulate_requests(answers), *fault_rows, "", "mean: change per hour [95 %]", *slope_rows, *count_rows]
    return lines, failed + growing + differing


def failures(fault: Fault, following: float, answers: list[Answer]) -> list[float]:
    """Return the seconds from a fault to each wrong answer before the following fault."""
    return sorted(answer.ended_at - fault.at for answer in answers if not answer.is_right and fault.at <= answer.ended_at < following)


def tabulate_faults(faults: list[Fault], answers: list[Answer]) -> tuple[list[str], list[str]]:
    """Return rows of a table, and the broken promises."""
    ends = [*(fault.at for fault in faults[1:]), float("inf")]
    wrong_s = [failures(fault, end, answers) for fault, end in zip(faults, ends, strict=True)]
    header = "| fault | times | failed requests | last failure after, s | stated, s | whole again after, s |"
    rows, broken = [header, "|---|---|---|---|---|---|"], []
    for kind, limit_s in LIMITS_S.items():
        found = [(fault, seconds) for fault, seconds in zip(faults, wrong_s, strict=True) if fault.kind == kind]
        last_s = max((seconds[-1] for _, seconds in found if seconds), default=0.0)
        recovered = ", ".join(f"{fault.recovered_s:.0f}" for fault, _ in found)
        rows.append(f"| {kind} | {len(found)} | {sum(len(s) for _, s in found)} | {last_s:.1f} | {limit_s:.0f} | {recovered} |")
        if last_s > limit_s:
            broken.append(f"requests failed until {last_s:.1f} s after {kind}, stated are {limit_s:.0f} s")
    early = [answer for answer in answers if not answer.is_right and (not faults or answer.ended_at < faults[0].at)]
    return rows, broken + ([f"{len(early)} requests failed before the first fault"] if early else [])


def tabulate_slopes(slopes: dict[str, list[Slope | None]]) -> tuple[list[str], list[str]]:
    """Return rows of a table, and the slopes that are not flat."""
    rows = [f"| process | {' | '.join(MEASURES)} |", "|---|---|---|---|"]
    rows += [f"| {role} | {' | '.join(str(slope or 'too few samples') for slope in found)} |" for role, found in slopes.items()]
    growing = [f"{role}: {slope}" for role, found in slopes.items() for slope in found if slope and not slope.is_flat]
    return rows, growing


def tabulate_requests(answers: list[Answer]) -> list[str]:
    statuses = Counter(answer.status for answer in answers)
    seconds = np.percentile([answer.seconds for answer in answers], [50, 99, 100])
    bad = sum(answer.is_bad_request for answer in answers)
    wrong = Counter((answer.status, answer.code) for answer in answers if not answer.is_right)
    return [
        f"{len(answers)} requests, {bad} of them bad; by status {dict(sorted(statuses.items()))} (0: no answer)",
        f"seconds per request: median {seconds[0]:.3f}, 99 % {seconds[1]:.3f}, longest {seconds[2]:.1f}; wrong: {dict(wrong)}",
    ]


def tabulate_runs(trainer: Trainer) -> tuple[list[str], list[str]]:
    outcomes = trainer.outcomes
    attempts = [len(outcome.attempts) for outcome in outcomes]
    records = sorted(set().union(*(outcome.records for outcome in outcomes)))
    equal = sum(outcome.equal for outcome in outcomes)
    row = f"{len(outcomes)} runs, attempts {attempts}; records per epoch {records}; {equal} equal bit for bit to a twin"
    broken = [f"{len(outcomes) - equal} runs differ from the undisturbed one"] if equal < len(outcomes) else []
    return [row], broken + ([f"training failed: {trainer.error}"] if trainer.error else [])
