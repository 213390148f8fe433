"""Report of an ablation: tables, costs, the paper's numbers, and the same numbers in CSV and JSON."""

import csv
import io
import json

import numpy as np
import pytest

from ablation_study import make_cost, make_failure, make_study, make_study_with_priors, make_trial
from yolor_ray.config.variants import VARIANTS
from yolor_ray.study.ablation.report import ablation_files
from yolor_ray.study.estimates import Estimate
from yolor_ray.study.paper_results import BASELINE_ROW, JOINT_TASK_ROWS, OVERHEADS, ROWS, paper_difference
from yolor_ray.study.results import METRICS
from yolor_ray.study.wording import format_difference, format_mean, points_decimals

APS = {"baseline": [0.30, 0.32, 0.34], "fa-add": [0.32, 0.34, 0.36], "fa-multiply-anchor": [0.33, 0.29, 0.35]}


def report_of(study):
    return ablation_files(study)["report.md"].decode()


def section(report, heading):
    return report.split(f"## {heading}\n")[1].split("\n## ")[0]


def cells(text, first):
    """Return the cells of the row whose first cell is `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def read_rows(files, name):
    return list(csv.DictReader(io.StringIO(files[name].decode())))


@pytest.fixture(scope="module")
def files():
    costs = {"baseline": make_cost(), "fa-add": make_cost(3557, 2e9 + 2.1e6, 11.0, 15.0)}
    failures = (make_failure("fa-multiply-anchor", "NaN | at\nstep 3", seed=3),)
    return ablation_files(make_study(APS, failures=failures, costs=costs))


def test_differences_and_means_are_in_points(files):
    report = files["report.md"].decode()
    differences, means = section(report, "Accuracy").split("Means over seeds")
    assert cells(differences, "+FA") == ["+FA", "align add", "3", *["**+2.0 [+2.0, +2.0]**"] * 6]
    anchor = cells(differences, "×FA\\*")
    assert anchor[:3] == ["×FA\\*", "align multiply, align_per anchor", "3"]
    assert anchor[3].startswith("+0.3 [−") and "**" not in anchor[3]
    # Student's t of two degrees of freedom is 4.303, the standard error of 30, 32 and 34 is 2 / sqrt(3).
    assert cells(means, "baseline") == ["baseline", "3", *["32.0 ± 5.0"] * 6]
    assert "ΔAPS" in differences and "APL" in means


def test_costs_are_compared_with_the_baseline(files):
    costs = section(files["report.md"].decode(), "Costs")
    assert "The baseline has 1,000 parameters and 2 G FLOPs as trained, 900 and 1.5 G fused." in costs
    assert cells(costs, "+FA") == ["+FA", "+2,557", "+2.1 M", "0", "0", "15.00", "11.00", "1.50×", "1.10×"]
    assert cells(costs, "×FA\\*") == ["×FA\\*", *["–"] * 8]


def test_the_papers_numbers_have_this_studys_differences_beside_them(files):
    paper = section(files["report.md"].decode(), "The paper's numbers")
    row = ["+iFA", "+FA", "1, 4, 6", *["47.9", "66.6", "52.3", "30.6", "53.1", "62.6", "+0.1"], "+2.0 [+2.0, +2.0]"]
    assert cells(paper, "+iFA") == row
    assert cells(paper, "+icFA")[-2:] == ["+0.2", "–"]
    assert "no repeats" in paper and "trained each row once" in paper


def test_failures_are_listed_with_reason_and_run(files):
    failures = section(files["report.md"].decode(), "Failures")
    assert cells(failures, "×FA\\*")[2:] == ["3", "NaN \\| at step 3", "`file:///runs/fa-multiply-anchor-3`"]
    assert "## Failures" not in report_of(make_study(APS))


def test_the_sections_have_a_fixed_order(files):
    headings = [line[3:] for line in files["report.md"].decode().splitlines() if line.startswith("## ")]
    order = ["Setup", "Accuracy", "Costs", "The paper's numbers", "Pictures", "Failures", "How to read this"]
    assert headings == order


def test_every_setting_has_a_table_and_a_column_beside_the_paper():
    report = report_of(make_study(APS, settings=("optim.lr=0.01", "optim.lr=0.02")))
    assert all(f"## Accuracy with `optim.lr={lr}`" in report for lr in (0.01, 0.02))
    assert cells(section(report, "The paper's numbers"), "paper")[-2:] == ["ΔAP, study, `optim.lr=0.01`", "ΔAP, study, `optim.lr=0.02`"]


def test_a_metric_without_any_number_is_left_out_with_a_note():
    trials = tuple(make_trial(v, seed, ap, APs=np.nan) for v in APS for seed, ap in enumerate(APS[v]))
    files = ablation_files(make_study(APS, trials=trials))
    accuracy = section(files["report.md"].decode(), "Accuracy")
    assert "ΔAPS" not in accuracy and "Left out: APS." in accuracy
    row = next(row for row in read_rows(files, "report.csv") if (row["variant"], row["metric"]) == ("fa-add", "APs"))
    assert [row[name] for name in ("mean", "low", "difference", "difference_low", "beyond_noise")] == ["", "", "", "", "false"]
    assert json.loads(files["report.json"])["rows"][1]["metrics"]["APs"] == {"mean": None, "low": None, "high": None}


def test_one_seed_has_intervals_of_images_but_nothing_bold():
    accuracy = section(report_of(make_study({"baseline": [0.3], "fa-add": [0.35]})), "Accuracy")
    assert "covers the validation images alone" in accuracy
    assert "**" not in "".join(cells(accuracy, "+FA"))


def test_csv_and_json_hold_the_same_numbers(files):
    content, csv_rows = json.loads(files["report.json"]), read_rows(files, "report.csv")
    assert len(csv_rows) == 3 * len(METRICS)
    rows = {(row["setting"], row["variant"]): row for row in content["rows"]}
    for row in csv_rows:
        expected = rows[row["setting"], row["variant"]]
        assert float(row["mean"]) == expected["metrics"][row["metric"]]["mean"]
        difference = expected["differences"].get(row["metric"])
        assert (row["difference"] == "") if difference is None else (float(row["difference_high"]) == difference["high"])
    assert float(csv_rows[6]["difference"]) == pytest.approx(0.02)
    assert [csv_rows[k]["beyond_noise"] for k in (0, 6, 12)] == ["", "true", "false"]
    assert [csv_rows[k]["parameters"] for k in (0, 6, 12)] == ["1000", "3557", ""]


def test_failed_trials_are_listed_after_finished_trials(files):
    rows = read_rows(files, "trials.csv")
    assert [row["state"] for row in rows] == ["finished"] * 9 + ["failed"]
    assert (rows[4]["variant"], rows[4]["seed"], rows[4]["AP"], rows[4]["run"]) == ("fa-add", "1", "0.34", "file:///runs/fa-add-1")
    assert (rows[-1]["reason"], rows[-1]["AP"], rows[-1]["title"]) == ("NaN | at\nstep 3", "", "×FA*")


def test_json_has_priors_and_the_setup():
    study = make_study_with_priors(["fa-add-pr-multiply"])
    content = json.loads(ablation_files(study)["report.json"])
    assert content["summary"] == {"images": 100}
    for prior, written in zip(study.trials[-1].priors, content["trials"][-1]["priors"], strict=True):
        assert (prior.role, prior.level) == (written["place"], written["level"])
        assert np.array_equal(prior.values, written["values"])


def test_a_study_with_only_failed_trials_has_a_report():
    files = ablation_files(make_study({"baseline": [], "fa-add": []}, failures=(make_failure(), make_failure("baseline"))))
    assert set(files) == {"report.md", "report.csv", "report.json", "trials.csv"}
    assert "Nothing can be compared" in files["report.md"].decode()


def test_narrow_intervals_have_two_decimals_and_wide_ones_have_one():
    narrow, wide, unknown = Estimate(0.0062, 0.0021, 0.0103), Estimate(-0.02, -0.06, 0.02), Estimate(0.4, np.nan, np.nan)
    assert tuple(points_decimals(estimates) for estimates in ([narrow], [wide], [unknown], [])) == (2, 1, 1, 1)
    assert format_difference(narrow, 2) == "+0.62 [+0.21, +1.03]"
    assert format_difference(wide, 1) == "−2.0 [−6.0, +2.0]"
    assert (format_mean(narrow, 2), format_mean(unknown, 1)) == ("0.62 ± 0.41", "40.0")


def test_every_row_of_the_paper_has_a_variant():
    rows = {variant.paper for variant in VARIANTS.values() if variant.paper}
    assert rows == set(ROWS)
    assert VARIANTS["baseline"].paper == BASELINE_ROW


def test_the_papers_numbers_are_consistent():
    assert [paper_difference(name) for name in ("+iFA", "×iFA", "×iPR*", BASELINE_ROW)] == [0.1, -0.4, 0.3, 0.0]
    csp, p6 = OVERHEADS["YOLOv4-CSP-fast"], OVERHEADS["YOLOv4-P6-light"]
    # One number for each channel before the predictions, and for each of their 255 outputs.
    assert csp.implicit_parameters - csp.parameters == 256 + 512 + 1024 + 3 * 255 == 2557
    assert p6.implicit_parameters - p6.parameters == 256 + 384 + 512 + 640 + 4 * 255 == 2812
    for name, row in {**ROWS, **JOINT_TASK_ROWS}.items():
        ap, ap50, ap75, small, medium, large = row.points
        assert small < ap < ap75 < ap50 and small < medium < large, name
