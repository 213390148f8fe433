"""Report of a comparison of tasks on made-up numbers with known differences and intervals."""

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from yolor_ray.config.network import TASKS
from yolor_ray.evaluate.metrics import MAIN_METRICS
from yolor_ray.study.results import Failure
from yolor_ray.study.tasks.report import tasks_files
from yolor_ray.study.tasks.results import (
    ALONE,
    IMPLICIT,
    JOINT,
    MEAN,
    SECOND_METRICS,
    TasksStudy,
    TaskTrialResult,
    best_arm,
    compare,
    make_arms,
)
from yolor_ray.study.tasks.verdict import verdict

THREE = ("detect", "classify", "segment")
DETECT, CLASSIFY, SEGMENT = [0.30, 0.34, 0.32], [0.70, 0.72, 0.71], [0.20, 0.22, 0.24]
"""Main metric of each task learned alone, by seed."""
GAINS = {"detect": [-0.02, -0.02, -0.02], "classify": [0.03, 0.05, 0.04], "segment": [0.02, -0.03, 0.01]}
"""Difference by joint learning, by seed."""


def make_trial(arm, seed, size=1000, **main_metrics):
    """Return a trial with main metrics by task; its second metrics are half of the main metrics."""
    metrics = {MAIN_METRICS[task]: value for task, value in main_metrics.items()}
    metrics |= {SECOND_METRICS[task]: value / 2 for task, value in main_metrics.items()}
    return TaskTrialResult(arm, seed, f"file:///runs/{arm}-{seed}", metrics, size + 8, size, 2.0 + seed)


def make_study(seeds=3, tasks=THREE, implicit=0.0, failures=(), trials=None):
    """Return a study with the numbers above; implicit knowledge adds `implicit` to every main metric of the joint arm."""
    finished = []
    for seed in range(seeds):
        alone = {"detect": DETECT[seed], "classify": CLASSIFY[seed], "segment": SEGMENT[seed]}
        joint = {task: alone[task] + GAINS[task][seed] for task in tasks}
        finished += [make_trial(arm.name, seed, **{task: alone[task] for task in arm.tasks}) for arm in make_arms(tasks)[:-2]]
        finished.append(make_trial(JOINT, seed, 1500, **joint))
        finished.append(make_trial(IMPLICIT, seed, 1500, **{task: value + implicit for task, value in joint.items()}))
    summary = {"study": "s3://b/tasks", "seeds": seeds}
    return TasksStudy(make_arms(tasks), tuple(finished if trials is None else trials), tuple(failures), summary)


def report_of(study):
    return tasks_files(study)["report.md"].decode()


def cells(text, heading, row):
    """Return the cells of the row whose first cell is `row`, in the table under a heading."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {row} ")).strip("|").split("|")]


def test_there_is_an_arm_for_each_task_and_two_joint_arms():
    arms = {arm.name: arm.tasks for arm in make_arms(TASKS[::-1])}
    assert list(arms) == [*TASKS, JOINT, IMPLICIT]
    assert arms["detect"] == ("detect",) and arms["classify"] == ("classify",), "labels of whole images need no boxes"
    assert all(arms[task] == ("detect", task) for task in ("embed", "segment", "pose")), "these tasks need detected boxes"
    assert arms[JOINT] == arms[IMPLICIT] == TASKS


def test_a_task_whose_arm_would_equal_the_joint_arm_has_no_arm():
    assert [arm.name for arm in make_arms(("detect", "pose"))] == ["detect", JOINT, IMPLICIT]
    assert [arm.name for arm in make_arms(("detect", "classify"))] == ["detect", "classify", JOINT, IMPLICIT]


def test_differences_are_paired_by_seed_and_have_a_students_t_interval():
    differences = compare(make_study(), JOINT, ALONE).differences
    for task in THREE:
        expected = stats.ttest_1samp(GAINS[task], 0).confidence_interval(0.95) if task != "detect" else (-0.02, -0.02)
        assert differences[task].mean == pytest.approx(np.mean(GAINS[task]))
        assert (differences[task].low, differences[task].high) == pytest.approx(tuple(expected))
    means = np.mean(list(GAINS.values()), axis=0)
    low, high = stats.ttest_rel(means, [0, 0, 0]).confidence_interval(0.95)
    assert (differences[MEAN].mean, differences[MEAN].low, differences[MEAN].high) == pytest.approx((means.mean(), low, high))


def test_a_seed_that_only_one_side_finished_is_left_out():
    complete = make_study()
    study = make_study(trials=[trial for trial in complete.trials if (trial.arm, trial.seed) != ("segment", 1)])
    comparison = compare(study, JOINT, ALONE)
    assert comparison.seeds == {"detect": (0, 1, 2), "classify": (0, 1, 2), "segment": (0, 2), MEAN: (0, 2)}
    assert comparison.differences["segment"].mean == pytest.approx((0.02 + 0.01) / 2)


def test_an_arm_has_metrics_of_its_tasks_alone():
    text = report_of(make_study())
    assert cells(text, "Metrics", "arm")[3:] == [
        "detect AP", "detect AP50", "classify mAP", "classify F1", "segment AP", "segment AP50", "mean of the tasks",
    ]  # fmt: skip
    assert cells(text, "Metrics", "classify alone")[1:5] == ["classify", "3", "–", "–"]
    assert cells(text, "Metrics", "detect alone")[5:] == ["–"] * 5
    # The seeds have AP of 30, 34 and 32 points: t(0.975, 2) is 4.303 and their standard error 2 / sqrt(3).
    assert cells(text, "Metrics", "segment alone")[3] == f"32.0 ± {4.303 * 2 / 3**0.5:.1f}"
    assert cells(text, "Metrics", "joint")[-1].startswith(f"{100 * np.mean([0.30, 0.75, 0.22]):.1f} ± ")


def test_differences_are_in_points_and_bold_beyond_noise():
    text = report_of(make_study(implicit=0.01))
    heads = cells(text, "Differences", "metric")
    assert heads[2:] == ["joint − alone", "joint + implicit − joint", "joint + implicit − alone"]
    assert cells(text, "Differences", "detect AP") == ["detect AP", "3", *(f"**{x} [{x}, {x}]**" for x in ("−2.00", "+1.00", "−1.00"))]
    assert cells(text, "Differences", "segment AP")[2].startswith("+0.00 [−")
    assert "covers seeds only" in text


def test_the_verdict_has_a_paragraph_for_each_comparison():
    alone, implicit, both, chance = verdict(make_study(implicit=0.01))
    raised = r"Learning all tasks jointly instead of each alone.* raises \*\*classify mAP\*\* \(\+4\.00 \[.*\]\) and lowers "
    assert re.match(raised, alone)
    assert "lowers **detect AP** (−2.00 [−2.00, −2.00]) by more than noise. The other difference is not." in alone
    assert implicit.startswith(
        "Adding implicit knowledge to the joint network raises **detect AP** (+1.00 [+1.00, +1.00]), **classify mAP**"
    )
    assert implicit.endswith("The mean of the tasks changes by +1.00 [+1.00, +1.00], larger than noise.")
    assert both.startswith("Learning all tasks jointly with implicit knowledge instead of each alone without implicit knowledge raises")
    assert chance.startswith("Of 9 comparisons, fewer than one (0.45 on average)") and "seeds only" in chance


def test_equal_arms_differ_by_no_more_than_noise():
    assert verdict(make_study(implicit=0.0))[1].startswith(
        "Adding implicit knowledge to the joint network changes no task by more than noise: all 3 intervals contain 0."
    )


def test_with_one_seed_there_are_differences_and_no_intervals():
    study = make_study(seeds=1, implicit=0.01)
    paragraphs = verdict(study)
    assert len(paragraphs) == 3
    assert all("with one seed nothing can be called larger than noise" in paragraph for paragraph in paragraphs)
    assert "**detect AP** (−2.0)" in paragraphs[0]
    text = report_of(study)
    assert cells(text, "Differences", "classify mAP")[1:] == ["1", "+3.0", "+1.0", "+4.0"]
    assert "±" not in text.split("## Metrics")[1].split("|", 1)[1].split("## Differences")[0]
    assert "[" not in cells(text, "Differences", "mean of the tasks")[2]


def test_the_best_arm_is_the_joint_arm_with_the_higher_mean_over_equally_many_seeds():
    assert best_arm(make_study(implicit=0.01)) == IMPLICIT
    assert best_arm(make_study(implicit=-0.01)) == JOINT
    fewer_seeds = [trial for trial in make_study(implicit=0.01).trials if (trial.arm, trial.seed) != (IMPLICIT, 0)]
    assert best_arm(make_study(trials=fewer_seeds)) == JOINT
    assert best_arm(make_study(trials=[trial for trial in fewer_seeds if trial.arm in THREE])) is None


def test_a_task_without_its_own_arm_is_compared_between_the_joint_arms_only():
    study = make_study(tasks=("detect", "segment"))
    text = report_of(study)
    assert cells(text, "Differences", "segment AP")[1:3] == ["0, 3, 0", "–"]
    assert "Segment needs detected boxes, so with these tasks its network alone is the joint network." in text
    assert compare(study, JOINT, ALONE).differences[MEAN].mean == pytest.approx(-0.02), "the mean covers the compared tasks"


def test_failures_are_listed_and_leave_the_other_comparisons():
    failures = (Failure("segment", "", 1, "file:///runs/segment-1", "ran out of | memory"),)
    finished = [trial for trial in make_study().trials if trial.arm != "segment" or trial.seed == 0]
    study = make_study(trials=finished, failures=failures)
    assert "1 of 14 trials failed" in verdict(study)[-1]
    assert "**segment AP** cannot" not in verdict(study)[0] and "segment AP cannot be judged" in verdict(study)[0]
    assert r"| segment alone | 1    | ran out of \| memory |" in report_of(study)
    without_joint = make_study(trials=[trial for trial in finished if trial.arm not in (JOINT, IMPLICIT)])
    assert all("cannot be judged: no seed has" in paragraph for paragraph in verdict(without_joint)[:3])


def test_an_unmeasured_task_leaves_the_mean_of_the_others_known():
    trials = [
        replace(trial, metrics=trial.metrics | {"segment/AP": math.nan}) if "segment/AP" in trial.metrics else trial
        for trial in make_study().trials
    ]
    differences = compare(make_study(trials=trials), JOINT, ALONE).differences
    assert math.isnan(differences["segment"].mean)
    assert differences[MEAN].mean == pytest.approx((-0.02 + 0.04) / 2)
    assert best_arm(make_study(trials=trials)) == JOINT


def test_the_parameters_of_one_joint_network_are_compared_with_the_sum_of_the_single_ones():
    text = report_of(make_study())
    assert "one network for all tasks has 1,500 parameters, and the 3 networks of single tasks have 3,000" in text
    assert cells(text, "Costs", "joint + implicit")[1:] == ["1,508", "1,500", "3.0"]


def test_the_report_has_the_papers_table():
    assert cells(report_of(make_study()), "The paper's numbers", "JDE + implicit")[1:3] == ["48.3", "66.8"]


def test_csv_and_json_have_the_numbers_of_the_report():
    files = tasks_files(make_study(implicit=0.01, failures=[Failure("detect", "", 3, "file:///r", "lost")]))
    rows = list(csv.DictReader(io.StringIO(files["report.csv"].decode())))
    difference = next(row for row in rows if (row["form"], row["against"], row["task"]) == (JOINT, ALONE, "classify"))
    assert float(difference["mean"]) == pytest.approx(0.04)
    assert (difference["metric"], difference["beyond_noise"]) == ("classify/mAP", "true")
    content = json.loads(files["report.json"])
    assert content["best"] == IMPLICIT and content["comparisons"][1]["differences"]["detect"]["mean"] == pytest.approx(0.01)
    trials = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert len(trials) == 16 and trials[-1]["reason"] == "lost"
    alone = next(row for row in trials if (row["form"], row["seed"]) == ("classify", "1"))
    assert alone["AP"] == "" and float(alone["classify/mAP"]) == 0.72
