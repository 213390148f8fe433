"""The report of a study of tasks: on made-up numbers, whose differences and intervals are known."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from yolor_ray.config.network import TASKS
from yolor_ray.evaluate.metrics import FITNESS
from yolor_ray.study.results import Failure
from yolor_ray.study.tasks.report import tasks_files
from yolor_ray.study.tasks.results import ALONE, IMPLICIT, JOINT, MEAN, MORE, TasksStudy, TaskTrialResult, best, compare, make_arms
from yolor_ray.study.tasks.verdict import verdict

THREE = ("detect", "classify", "segment")
DETECT, CLASSIFY, SEGMENT = [0.30, 0.34, 0.32], [0.70, 0.72, 0.71], [0.20, 0.22, 0.24]
"""What each task reaches alone, by seed."""
GAINS = {"detect": [-0.02, -0.02, -0.02], "classify": [0.03, 0.05, 0.04], "segment": [0.02, -0.03, 0.01]}
"""What learning jointly adds."""


def trained(form, seed, size=1000, **mains):
    """A network whose main numbers are given by task, and whose second numbers are half of them."""
    metrics = {FITNESS[task]: value for task, value in mains.items()} | {MORE[task]: value / 2 for task, value in mains.items()}
    return TaskTrialResult(form, seed, f"file:///runs/{form}-{seed}", metrics, size + 8, size, 2.0 + seed)


def study(seeds=3, tasks=THREE, implicit=0.0, failures=(), **words):
    """Alone as above, joint with its gains, and joint with implicit knowledge by so much better at everything."""
    made = []
    for seed in range(seeds):
        alone = {"detect": DETECT[seed], "classify": CLASSIFY[seed], "segment": SEGMENT[seed]}
        joint = {task: alone[task] + GAINS[task][seed] for task in tasks}
        made += [trained(form.name, seed, **{task: alone[task] for task in form.tasks}) for form in make_arms(tasks)[:-2]]
        made += [trained(JOINT, seed, 1500, **joint), trained(IMPLICIT, seed, 1500, **{task: x + implicit for task, x in joint.items()})]
    return TasksStudy(make_arms(tasks), words.get("trained", tuple(made)), tuple(failures), {"study": "s3://b/tasks", "seeds": seeds})


def report(made):
    return tasks_files(made)["report.md"].decode()


def cells(text, heading, row):
    """The cells of the row that begins so in the table under a heading."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {row} ")).strip("|").split("|")]


def test_every_task_is_learned_alone_and_then_all_together_twice():
    forms = {form.name: form.tasks for form in make_arms(TASKS[::-1])}
    assert list(forms) == [*TASKS, JOINT, IMPLICIT]
    assert forms["detect"] == ("detect",) and forms["classify"] == ("classify",), "labels of whole images need no boxes"
    assert all(forms[task] == ("detect", task) for task in ("embed", "segment", "pose")), "all of these are of detected boxes"
    assert forms[JOINT] == forms[IMPLICIT] == TASKS


def test_nothing_is_trained_twice_when_detection_and_one_task_of_its_boxes_are_all():
    assert [form.name for form in make_arms(("detect", "pose"))] == ["detect", JOINT, IMPLICIT]
    assert [form.name for form in make_arms(("detect", "classify"))] == ["detect", "classify", JOINT, IMPLICIT]


def test_differences_are_of_one_seed_and_their_interval_is_students():
    found = compare(study(), JOINT, ALONE).differences
    for task in THREE:
        expected = stats.ttest_1samp(GAINS[task], 0).confidence_interval(0.95) if task != "detect" else (-0.02, -0.02)
        assert found[task].mean == pytest.approx(np.mean(GAINS[task]))
        assert (found[task].low, found[task].high) == pytest.approx(tuple(expected))
    means = np.mean(list(GAINS.values()), axis=0)
    low, high = stats.ttest_rel(means, [0, 0, 0]).confidence_interval(0.95)
    assert (found[MEAN].mean, found[MEAN].low, found[MEAN].high) == pytest.approx((means.mean(), low, high))


def test_a_seed_that_only_one_of_two_finished_is_left_out():
    whole = study()
    made = study(trained=tuple(one for one in whole.trained if (one.form, one.seed) != ("segment", 1)))
    found = compare(made, JOINT, ALONE)
    assert found.seeds == {"detect": (0, 1, 2), "classify": (0, 1, 2), "segment": (0, 2), MEAN: (0, 2)}
    assert found.differences["segment"].mean == pytest.approx((0.02 + 0.01) / 2)


def test_the_report_has_a_number_only_where_a_form_has_learned_the_task():
    text = report(study())
    assert cells(text, "Numbers", "form")[3:] == [
        "detect AP", "detect AP50", "classify mAP", "classify F1", "segment AP", "segment AP50", "mean of the tasks",
    ]  # fmt: skip
    assert cells(text, "Numbers", "classify alone")[1:5] == ["classify", "3", "–", "–"]
    assert cells(text, "Numbers", "detect alone")[5:] == ["–"] * 5
    # The seeds' AP of 30, 34 and 32 points: t(0.975, 2) is 4.303 and their standard error 2 / sqrt(3).
    assert cells(text, "Numbers", "segment alone")[3] == f"32.0 ± {4.303 * 2 / 3**0.5:.1f}"
    assert cells(text, "Numbers", "joint")[-1].startswith(f"{100 * np.mean([0.30, 0.75, 0.22]):.1f} ± ")


def test_differences_are_written_in_points_and_bold_beyond_noise():
    text = report(study(implicit=0.01))
    heads = cells(text, "Differences", "number")
    assert heads[2:] == ["joint − alone", "joint + implicit − joint", "joint + implicit − alone"]
    assert cells(text, "Differences", "detect AP") == ["detect AP", "3", *(f"**{x} [{x}, {x}]**" for x in ("−2.00", "+1.00", "−1.00"))]
    assert cells(text, "Differences", "segment AP")[2].startswith("+0.00 [−")
    assert "covers seeds only" in text


def test_the_verdict_has_one_sentence_for_each_comparison():
    alone, implicit, both, chance = verdict(study(implicit=0.01))
    assert re.match(r"To learn all tasks jointly instead of each alone.* raises \*\*classify mAP\*\* \(\+4\.00 \[.*\]\) and lowers ", alone)
    assert "lowers **detect AP** (−2.00 [−2.00, −2.00]) by more than noise. The other difference is not larger." in alone
    assert implicit.startswith("To give the joint network implicit knowledge raises **detect AP** (+1.00 [+1.00, +1.00]), **classify mAP**")
    assert implicit.endswith("The mean of the tasks changes by +1.00 [+1.00, +1.00], larger than noise.")
    assert both.startswith("To learn all tasks jointly with implicit knowledge instead of each alone without any raises")
    assert chance.startswith("Of 9 comparisons, fewer than one (0.45 on average)") and "seeds only" in chance


def test_equal_networks_differ_by_no_more_than_noise():
    assert verdict(study(implicit=0.0))[1].startswith(
        "To give the joint network implicit knowledge changes no task by more than noise: all 3 intervals hold 0."
    )


def test_with_one_seed_there_are_differences_and_no_intervals():
    made = study(seeds=1, implicit=0.01)
    said = verdict(made)
    assert len(said) == 3 and all("with one seed nothing can be called larger than noise" in one for one in said)
    assert "**detect AP** (−2.0)" in said[0]
    text = report(made)
    assert cells(text, "Differences", "classify mAP")[1:] == ["1", "+3.0", "+1.0", "+4.0"]
    assert "±" not in text.split("## Numbers")[1].split("|", 1)[1].split("## Differences")[0]
    assert "[" not in cells(text, "Differences", "mean of the tasks")[2]


def test_best_is_the_joint_form_with_the_higher_mean_over_as_many_seeds():
    assert best(study(implicit=0.01)) == IMPLICIT
    assert best(study(implicit=-0.01)) == JOINT
    lucky = tuple(one for one in study(implicit=0.01).trained if (one.form, one.seed) != (IMPLICIT, 0))
    assert best(study(trained=lucky)) == JOINT
    assert best(study(trained=tuple(one for one in lucky if one.form in THREE))) is None


def test_a_task_without_a_form_of_its_own_is_compared_with_and_without_implicit_knowledge_alone():
    made = study(tasks=("detect", "segment"))
    text = report(made)
    assert cells(text, "Differences", "segment AP")[1:3] == ["0, 3, 0", "–"]
    assert "Segment is of detected boxes, so that with these tasks alone and jointly are the same network." in text
    assert compare(made, JOINT, ALONE).differences[MEAN].mean == pytest.approx(-0.02), "the mean is over what was compared"


def test_failures_are_told_and_leave_what_is_known():
    lost = (Failure("segment", "", 1, "file:///runs/segment-1", "ran out of | memory"),)
    kept = tuple(one for one in study().trained if one.form != "segment" or one.seed == 0)
    made = study(trained=kept, failures=lost)
    assert "1 of 14 trainings failed" in verdict(made)[-1]
    assert "**segment AP** cannot" not in verdict(made)[0] and "segment AP cannot be judged" in verdict(made)[0]
    assert r"| segment alone | 1    | ran out of \| memory |" in report(made)
    nothing = study(trained=tuple(one for one in kept if one.form not in (JOINT, IMPLICIT)))
    assert all("cannot be judged: there is no seed" in said for said in verdict(nothing)[:3])


def test_a_task_that_could_not_be_measured_hides_no_other():
    blank = tuple(
        TaskTrialResult(one.form, one.seed, one.run, one.metrics | {"segment/AP": math.nan}, 1, 1, 1.0)
        if "segment/AP" in one.metrics
        else one
        for one in study().trained
    )
    found = compare(study(trained=blank), JOINT, ALONE).differences
    assert math.isnan(found["segment"].mean)
    assert found[MEAN].mean == pytest.approx((-0.02 + 0.04) / 2)
    assert best(study(trained=blank)) == JOINT


def test_one_network_is_set_against_the_sum_of_those_that_it_replaces():
    text = report(study())
    assert "one network for all has 1,500 parameters, and the 3 of single tasks have 3,000" in text
    assert cells(text, "Costs", "joint + implicit")[1:] == ["1,508", "1,500", "3.0"]


def test_the_papers_table_stands_beside():
    assert cells(report(study()), "The paper's numbers", "JDE + implicit")[1:3] == ["48.3", "66.8"]


def test_tables_for_machines_hold_what_the_report_tells():
    files = tasks_files(study(implicit=0.01, failures=[Failure("detect", "", 3, "file:///r", "lost")]))
    rows = list(csv.DictReader(io.StringIO(files["report.csv"].decode())))
    moved = next(row for row in rows if (row["form"], row["against"], row["task"]) == (JOINT, ALONE, "classify"))
    assert float(moved["mean"]) == pytest.approx(0.04) and (moved["metric"], moved["beyond_noise"]) == ("classify/mAP", "true")
    told = json.loads(files["report.json"])
    assert told["best"] == IMPLICIT and told["comparisons"][1]["differences"]["detect"]["mean"] == pytest.approx(0.01)
    trials = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert len(trials) == 16 and trials[-1]["reason"] == "lost"
    alone = next(row for row in trials if (row["form"], row["seed"]) == ("classify", "1"))
    assert alone["AP"] == "" and float(alone["classify/mAP"]) == 0.72
