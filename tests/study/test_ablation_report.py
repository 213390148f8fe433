import csv
import io
import json

import numpy as np
import pytest

from ablation_study import cost, failure, learned, study, trial
from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.markdown import code, escape, joined, points, table
from yolor_ray.study.ablation.report import ablation_files
from yolor_ray.study.estimates import Estimate
from yolor_ray.study.paper_results import BASELINE_ROW, JOINT, OVERHEADS, ROWS, paper_difference
from yolor_ray.study.results import METRICS
from yolor_ray.study.wording import decimals, difference_text, spread_text

APS = {"baseline": [0.30, 0.32, 0.34], "fa-add": [0.32, 0.34, 0.36], "fa-multiply-anchor": [0.33, 0.29, 0.35]}


def _report(made):
    return ablation_files(made)["report.md"].decode()


def _section(report, heading):
    return report.split(f"## {heading}\n")[1].split("\n## ")[0]


def _cells(text, first):
    """The cells of the row that starts so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def _rows(files, name):
    return list(csv.DictReader(io.StringIO(files[name].decode())))


@pytest.fixture(scope="module")
def files():
    costs = {"baseline": cost(), "fa-add": cost(3557, 2e9 + 2.1e6, 11.0, 15.0)}
    return ablation_files(study(APS, failures=(failure("fa-multiply-anchor", "NaN | at\nstep 3", seed=3),), costs=costs))


def test_tables_say_differences_and_means_in_points(files):
    report = files["report.md"].decode()
    moved, means = _section(report, "Accuracy").split("Means over seeds")
    assert _cells(moved, "+FA") == ["+FA", "align add", "3", *["**+2.0 [+2.0, +2.0]**"] * 6]
    anchor = _cells(moved, "×FA\\*")
    assert anchor[:3] == ["×FA\\*", "align multiply, align_per anchor", "3"]
    assert anchor[3].startswith("+0.3 [−") and "**" not in anchor[3]
    # Student's t of two degrees of freedom is 4.303, the standard error of 30, 32 and 34 is 2 / sqrt(3).
    assert _cells(means, "baseline") == ["baseline", "3", *["32.0 ± 5.0"] * 6]
    assert "ΔAPS" in moved and "APL" in means


def test_costs_are_told_against_the_baseline(files):
    costs = _section(files["report.md"].decode(), "Costs")
    assert "The baseline has 1,000 parameters and 2 G FLOPs as trained, 900 and 1.5 G fused." in costs
    assert _cells(costs, "+FA") == ["+FA", "+2,557", "+2.1 M", "0", "0", "15.00", "11.00", "1.50×", "1.10×"]
    assert _cells(costs, "×FA\\*") == ["×FA\\*", *["–"] * 8]


def test_the_papers_differences_stand_beside_this_studys(files):
    paper = _section(files["report.md"].decode(), "The paper's numbers")
    row = ["+iFA", "+FA", "1, 4, 6", *["47.9", "66.6", "52.3", "30.6", "53.1", "62.6", "+0.1"], "+2.0 [+2.0, +2.0]"]
    assert _cells(paper, "+iFA") == row
    assert _cells(paper, "+icFA")[-2:] == ["+0.2", "–"]
    assert "no repeats" in paper and "trained each row once" in paper


def test_failures_are_named_with_reason_and_run(files):
    failures = _section(files["report.md"].decode(), "Failures")
    assert _cells(failures, "×FA\\*")[2:] == ["3", "NaN \\| at step 3", "`file:///runs/fa-multiply-anchor-3`"]
    assert "## Failures" not in _report(study(APS))


def test_the_sections_come_in_the_order_in_which_they_are_read(files):
    headings = [line[3:] for line in files["report.md"].decode().splitlines() if line.startswith("## ")]
    order = ["What was done", "Accuracy", "Costs", "The paper's numbers", "Pictures", "Failures", "How to read this"]
    assert headings == order


def test_every_setting_has_its_tables_and_its_column_beside_the_paper():
    report = _report(study(APS, settings=("optim.lr=0.01", "optim.lr=0.02")))
    assert all(f"## Accuracy with `optim.lr={lr}`" in report for lr in (0.01, 0.02))
    assert _cells(_section(report, "The paper's numbers"), "paper")[-2:] == ["ΔAP here, `optim.lr=0.01`", "ΔAP here, `optim.lr=0.02`"]


def test_a_metric_that_no_trial_was_measured_on_is_left_out_and_said_so():
    trials = tuple(trial(v, seed, ap, APs=np.nan) for v in APS for seed, ap in enumerate(APS[v]))
    made = ablation_files(study(APS, trials=trials))
    accuracy = _section(made["report.md"].decode(), "Accuracy")
    assert "ΔAPS" not in accuracy and "Left out: APS." in accuracy
    row = next(row for row in _rows(made, "report.csv") if (row["variant"], row["metric"]) == ("fa-add", "APs"))
    assert [row[name] for name in ("mean", "low", "difference", "difference_low", "beyond_noise")] == ["", "", "", "", "false"]
    assert json.loads(made["report.json"])["rows"][1]["metrics"]["APs"] == {"mean": None, "low": None, "high": None}


def test_one_seed_has_intervals_of_images_but_nothing_bold():
    accuracy = _section(_report(study({"baseline": [0.3], "fa-add": [0.35]})), "Accuracy")
    assert "of the validation images alone" in accuracy
    assert "**" not in "".join(_cells(accuracy, "+FA"))


def test_csv_and_json_hold_the_same_numbers(files):
    content, table_rows = json.loads(files["report.json"]), _rows(files, "report.csv")
    assert len(table_rows) == 3 * len(METRICS)
    rows = {(row["setting"], row["variant"]): row for row in content["rows"]}
    for row in table_rows:
        found = rows[row["setting"], row["variant"]]
        assert float(row["mean"]) == found["metrics"][row["metric"]]["mean"]
        moved = found["differences"].get(row["metric"])
        assert (row["difference"] == "") if moved is None else (float(row["difference_high"]) == moved["high"])
    assert float(table_rows[6]["difference"]) == pytest.approx(0.02)
    assert [table_rows[k]["beyond_noise"] for k in (0, 6, 12)] == ["", "true", "false"]
    assert [table_rows[k]["parameters"] for k in (0, 6, 12)] == ["1000", "3557", ""]


def test_trials_are_listed_with_those_that_failed(files):
    rows = _rows(files, "trials.csv")
    assert [row["state"] for row in rows] == ["finished"] * 9 + ["failed"]
    assert (rows[4]["variant"], rows[4]["seed"], rows[4]["AP"], rows[4]["run"]) == ("fa-add", "1", "0.34", "file:///runs/fa-add-1")
    assert (rows[-1]["reason"], rows[-1]["AP"], rows[-1]["title"]) == ("NaN | at\nstep 3", "", "×FA*")


def test_json_holds_priors_failures_and_what_was_done():
    made = learned(["fa-add-pr-multiply"])
    content = json.loads(ablation_files(made)["report.json"])
    assert content["summary"] == {"images": 100}
    for prior, written in zip(made.trials[-1].priors, content["trials"][-1]["priors"], strict=True):
        assert (prior.place, prior.level) == (written["place"], written["level"])
        assert np.array_equal(prior.values, written["values"])


def test_a_study_in_which_everything_failed_has_a_report():
    made = ablation_files(study({"baseline": [], "fa-add": []}, failures=(failure(), failure("baseline"))))
    assert set(made) == {"report.md", "report.csv", "report.json", "trials.csv"}
    assert "Nothing can be compared" in made["report.md"].decode()


@pytest.mark.parametrize(
    ("text", "line"),
    [("a|b\nc", "a\\|b c"), ("×FA*", "×FA\\*"), ("__init__ of my_name", "\\_\\_init\\_\\_ of my_name"), ("<x> [y](z)", "\\<x> \\[y\\](z)")],
)
def test_words_from_outside_mean_only_themselves(text, line):
    assert escape(text) == line


def test_code_survives_bars_and_backticks():
    assert (code("a|b"), code("a`b"), code("x\ny")) == ("`a\\|b`", "`` a`b ``", "`x y`")
    assert len(escape("x" * 5000)) == 300


def test_numbers_have_the_decimals_that_their_intervals_deserve():
    narrow, wide, unknown = Estimate(0.0062, 0.0021, 0.0103), Estimate(-0.02, -0.06, 0.02), Estimate(0.4, np.nan, np.nan)
    assert (decimals([narrow]), decimals([wide]), decimals([unknown]), decimals([])) == (2, 1, 1, 1)
    assert difference_text(narrow, 2) == "+0.62 [+0.21, +1.03]"
    assert difference_text(wide, 1) == "−2.0 [−6.0, +2.0]"
    assert (spread_text(narrow, 2), spread_text(unknown, 1)) == ("0.62 ± 0.41", "40.0")
    assert (points(-0.000001, 1, "+"), points(float("nan"), 1)) == ("+0.0", "–")
    assert [joined(items) for items in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_tables_line_up_as_plain_text():
    lines = table(("name", "n"), [["×FA\\*", "1"], ["a", "−12.5"]]).splitlines()
    assert lines == ["| name  |     n |", "| ----- | ----: |", "| ×FA\\* |     1 |", "| a     | −12.5 |"]


def test_every_variant_of_the_paper_has_its_row():
    named = {variant.paper for variant in VARIANTS.values() if variant.paper}
    assert named == set(ROWS)
    assert VARIANTS["baseline"].paper == BASELINE_ROW


def test_the_papers_numbers_add_up():
    assert [paper_difference(name) for name in ("+iFA", "×iFA", "×iPR*", BASELINE_ROW)] == [0.1, -0.4, 0.3, 0.0]
    csp, p6 = OVERHEADS["YOLOv4-CSP-fast"], OVERHEADS["YOLOv4-P6-light"]
    # One number for each channel before the predictions, and for each of their 255 outputs.
    assert csp.implicit_parameters - csp.parameters == 256 + 512 + 1024 + 3 * 255 == 2557
    assert p6.implicit_parameters - p6.parameters == 256 + 384 + 512 + 640 + 4 * 255 == 2812
    for name, row in {**ROWS, **JOINT}.items():
        ap, ap50, ap75, small, medium, large = row.points
        assert small < ap < ap75 < ap50 and small < medium < large, name
