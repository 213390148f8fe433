"""Report of a hyper-parameter search: the best trial, its settings, and the same numbers in CSV and JSON."""

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from yolor_ray.config.search_space import Choice, Range
from yolor_ray.study.search.report import search_files
from yolor_ray.study.search.results import SearchTrialResult, best_trial, rank_correlations
from yolor_ray.study.search.text import search_report

SPACE = {
    "optim.lr": Range(0.001, 0.1, log=True, integer=False),
    "optim.batch": Range(4, 64, log=False, integer=True),
    "network.depths": Choice(((1, 2), (2, 2))),
    "cluster.gpu": Choice((False, True)),
    "loss.box": Choice((0.05,)),
}
START = {"optim.lr": 0.01, "optim.batch": 16, "network.depths": (1, 2), "cluster.gpu": False, "loss.box": 0.05}
SUMMARY = {
    "command": "python jobs/tune.py search --search 'a|b'",
    "epochs": 27,
    "loss": math.nan,
    "preset": "s3://bucket/my runs/preset.json",
}


def make_trial(AP=0.3, state="finished", epochs=27, reason="", run="s3://bucket/runs/one", **values):
    """Return a trial; `optim_lr=0.1` sets `optim.lr`, and other settings have their start values."""
    named = {name.replace("_", ".", 1): value for name, value in values.items()}
    return SearchTrialResult(values=START | named, AP=AP, epochs=epochs, state=state, run=run, reason=reason, minutes=2.5)


BEST = make_trial(AP=0.4321, run="s3://bucket/runs/won", optim_lr=0.0123456, cluster_gpu=True, network_depths=(2, 2))
TRIALS = [
    make_trial(AP=0.4),
    BEST,
    make_trial(AP=0.9, state="stopped", epochs=3, optim_lr=0.09),
    make_trial(AP=None, state="failed", epochs=0, reason="DataError: a | b\nand `more`", run="s3://bucket/runs/broken"),
]


def report_of(trials, space=SPACE, start=START):
    return search_report(trials, space, start, SUMMARY)


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table_rows(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [columns(line) for line in section.splitlines() if line.startswith("|")]


def test_the_best_trial_is_finished_even_if_a_stopped_trial_had_a_higher_ap():
    assert best_trial(TRIALS) is BEST
    assert best_trial([make_trial(AP=math.nan), make_trial(AP=None), make_trial(AP=0.0)]) == make_trial(AP=0.0)
    assert best_trial([make_trial(AP=0.2, state="stopped"), make_trial(AP=0.1, state="stopped")]).AP == 0.2
    assert best_trial([make_trial(AP=0.5, state="failed")]) is None


def test_the_report_has_the_best_ap_and_the_command_to_train_with_it():
    text = report_of(TRIALS)
    assert "reached **43.21** points of AP" in text
    assert "The start values reached 40.00: 3.21 less, with one seed each." in text
    assert "4 trials: 2 finished, 1 stopped early, 1 failed." in text
    assert "\npython jobs/train.py --preset-file 's3://bucket/my runs/preset.json'\n" in text
    assert "more of the best trial's lead is luck" in text


def test_the_best_settings_are_beside_the_start_values():
    assert table_rows(report_of(TRIALS), "Best settings")[2:] == [
        ["`optim.lr`", "0.001 to 0.1, log", "0.01", "0.01235"],
        ["`optim.batch`", "4 to 64", "16", "16"],
        ["`network.depths`", "1 2, 2 2", "1 2", "2 2"],
        ["`cluster.gpu`", "false, true", "false", "true"],
        ["`loss.box`", "fixed", "0.05", "0.05"],
    ]


def test_finished_trials_come_before_stopped_ones_and_fixed_settings_are_left_out():
    table = table_rows(report_of(TRIALS), "Best trials")
    assert table[0] == ["state", "AP", "epochs", "minutes", "lr", "batch", "depths", "gpu", "run"]
    assert [row[:2] for row in table[2:]] == [["finished", "43.21"], ["finished", "40.00"], ["stopped", "90.00"]]


def test_settings_with_an_equal_last_part_keep_their_full_names():
    space = {"network.depths": Choice((1, 2)), "other.depths": Choice((1, 2)), "optim.lr": Choice((1, 2))}
    trial = replace(TRIALS[0], values=dict.fromkeys(space, 1))
    text = report_of([trial], space, trial.values)
    assert table_rows(text, "Best trials")[0][4:-1] == ["network.depths", "other.depths", "lr"]


def test_the_report_has_the_best_twenty_trials_and_the_csv_has_all():
    files = search_files([make_trial(AP=k / 100) for k in range(30)], SPACE, START, b"", SUMMARY)
    table = table_rows(files["report.md"].decode(), "Best trials")
    assert [row[1] for row in table[2:]] == [f"{k:.2f}" for k in range(29, 9, -1)]
    assert len(files["trials.csv"].decode().splitlines()) == 31


def test_failures_are_listed_with_reason_and_run():
    assert table_rows(report_of(TRIALS), "Failures")[2:] == [["DataError: a \\| b and \\`more\\`", "`s3://bucket/runs/broken`"]]
    assert "## Failures" not in report_of(TRIALS[:2])


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        ([make_trial(AP=0.4)], "The best settings are the start values: the search found no better ones."),
        ([BEST], "No finished trial had the start values, so the gain is not known."),
        ([TRIALS[2]], "the best stopped trial reached **90.00** points of AP after 3 epochs"),
        ([TRIALS[3]], "No trial was measured, so there is no best trial."),
    ],
)
def test_the_report_claims_no_gain_without_a_measurement(trials, sentence):
    text = report_of(trials)
    assert sentence in text
    assert ("## Best settings" in text) == (trials != [TRIALS[3]])


def test_rank_correlation_is_pearsons_correlation_of_ranks():
    rng = np.random.default_rng(0)
    rates, scores = rng.permutation(10) / 100 + 0.001, rng.permutation(10) / 50
    trials = [make_trial(AP=float(s), optim_lr=float(r), cluster_gpu=bool(r > 0.05)) for r, s in zip(rates, scores, strict=True)]
    expected = np.corrcoef(np.argsort(np.argsort(rates)), np.argsort(np.argsort(scores)))[0, 1]
    # The other range has a single value, and choices have no order.
    assert rank_correlations(trials, SPACE) == pytest.approx({"optim.lr": expected})
    assert f"{expected:+.2f}".replace("-", "−") in table_rows(report_of(trials), "Correlation with AP")[2][1]


def test_too_few_finished_trials_or_equal_aps_have_no_rank_correlation():
    stopped = [make_trial(AP=0.1, state="stopped")] * 5
    few = [make_trial(AP=k / 10, optim_lr=k / 100 + 0.01) for k in range(7)]
    assert rank_correlations(few + stopped, SPACE) == {}
    assert rank_correlations([make_trial(AP=0.1, optim_lr=k / 100 + 0.01) for k in range(9)], SPACE) == {}
    assert "## Correlation with AP" not in report_of(few + stopped)
    enough = [*few, make_trial(AP=0.9, optim_lr=0.09)]
    assert rank_correlations(enough, SPACE)["optim.lr"] == pytest.approx(1)


def test_json_and_csv_have_the_numbers_of_the_report():
    files = search_files([*TRIALS, make_trial(AP=math.nan)], SPACE, START, b'{"optim": 1}', SUMMARY)
    assert files["preset.json"] == b'{"optim": 1}'
    content = json.loads(files["report.json"])
    assert content["best"]["run"] == BEST.run
    assert content["summary"] == {**SUMMARY, "loss": None}
    assert content["start"]["network.depths"] == [1, 2]
    assert [trial["AP"] for trial in content["trials"]] == [0.4, 0.4321, 0.9, None, None]
    csv_rows = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert [row["AP"] for row in csv_rows] == ["0.4", "0.4321", "0.9", "", ""]
    assert csv_rows[1]["optim.lr"] == "0.0123456"
    assert csv_rows[3]["reason"] == TRIALS[3].reason


def pixels_of(png: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """Return (N, 2) rows and columns of the pixels of a colour."""
    return np.argwhere((np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == colour).all(axis=2))


def test_the_picture_has_the_best_trial_above_the_others_at_its_value():
    space = {"optim.lr": SPACE["optim.lr"]}
    trials = [make_trial(AP=ap, optim_lr=lr) for ap, lr in ((0.2, 0.001), (0.3, 0.01), (0.4, 0.1))]
    files = search_files([*trials, make_trial(AP=0.01, state="stopped", optim_lr=0.03)], space, START, b"", SUMMARY)
    legend = 40
    height = Image.open(io.BytesIO(files["parameters.png"])).height
    star = [p for p in pixels_of(files["parameters.png"], (0xFF, 0x4D, 0x6D)) if p[0] < height - legend]
    dots = [p for p in pixels_of(files["parameters.png"], (0x2F, 0x8D, 0xFF)) if p[0] < height - legend]
    assert np.mean(star, axis=0)[0] < min(p[0] for p in dots)
    assert np.mean(star, axis=0)[1] > max(p[1] for p in dots)


def test_a_search_without_a_varied_setting_has_a_picture():
    fixed = {"loss.box": SPACE["loss.box"]}
    assert search_files([TRIALS[0]], fixed, START, b"", SUMMARY)["parameters.png"].startswith(b"\x89PNG")
