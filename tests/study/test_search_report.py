"""The report of a hyper-parameter search: which trial is the best, what is said of it, and that machines read the same."""

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
from yolor_ray.study.search import text as search_text
from yolor_ray.study.search.report import Tried, best, search_files
from yolor_ray.study.search.results import rank_correlations

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


def trial(AP=0.3, state="finished", epochs=27, reason="", run="s3://bucket/runs/one", **values):
    named = {name.replace("_", "."): value for name, value in values.items()}
    return Tried(values=START | named, AP=AP, epochs=epochs, state=state, run=run, reason=reason, minutes=2.5)


WON = trial(AP=0.4321, run="s3://bucket/runs/won", optim_lr=0.0123456, cluster_gpu=True, network_depths=(2, 2))
TRIED = [
    trial(AP=0.4),
    WON,
    trial(AP=0.9, state="stopped", epochs=3, optim_lr=0.09),
    trial(AP=None, state="failed", epochs=0, reason="DataError: a | b\nand `more`", run="s3://bucket/runs/broken"),
]


def report(tried, space=SPACE, start=START):
    return search_text.report(tried, space, start, SUMMARY)


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows(text: str, heading: str) -> list[list[str]]:
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [columns(line) for line in section.splitlines() if line.startswith("|")]


def test_the_best_trial_finished_however_good_the_stopped_ones_looked():
    assert best(TRIED) is WON
    assert best([trial(AP=math.nan), trial(AP=None), trial(AP=0.0)]) == trial(AP=0.0)
    assert best([trial(AP=0.2, state="stopped"), trial(AP=0.1, state="stopped")]).AP == 0.2
    assert best([trial(AP=0.5, state="failed")]) is None


def test_the_report_says_what_is_best_and_how_to_run_it():
    text = report(TRIED)
    assert "reached **43.21** points of AP" in text
    assert "The start values reached 40.00: 3.21 less, with one seed each." in text
    assert "4 trials: 2 finished, 1 were stopped early, 1 failed." in text
    assert "\npython jobs/train.py --preset-file 's3://bucket/my runs/preset.json'\n" in text
    assert "one's lead is luck" in text


def test_the_best_settings_stand_beside_those_at_the_start():
    assert rows(report(TRIED), "Best settings")[2:] == [
        ["`optim.lr`", "0.001 to 0.1, log", "0.01", "0.01235"],
        ["`optim.batch`", "4 to 64", "16", "16"],
        ["`network.depths`", "1 2, 2 2", "1 2", "2 2"],
        ["`cluster.gpu`", "false, true", "false", "true"],
        ["`loss.box`", "fixed", "0.05", "0.05"],
    ]


def test_finished_trials_come_before_those_that_were_stopped_and_fixed_settings_are_left_out():
    table = rows(report(TRIED), "Best trials")
    assert table[0] == ["state", "AP", "epochs", "minutes", "lr", "batch", "depths", "gpu", "run"]
    assert [row[:2] for row in table[2:]] == [["finished", "43.21"], ["finished", "40.00"], ["stopped", "90.00"]]


def test_settings_of_the_same_last_word_keep_their_whole_names():
    space = {"network.depths": Choice((1, 2)), "other.depths": Choice((1, 2)), "optim.lr": Choice((1, 2))}
    tried = replace(TRIED[0], values=dict.fromkeys(space, 1))
    text = report([tried], space, tried.values)
    assert rows(text, "Best trials")[0][4:-1] == ["network.depths", "other.depths", "lr"]


def test_only_the_best_twenty_are_shown_and_all_are_in_the_file():
    files = search_files([trial(AP=k / 100) for k in range(30)], SPACE, START, b"", SUMMARY)
    table = rows(files["report.md"].decode(), "Best trials")
    assert [row[1] for row in table[2:]] == [f"{k:.2f}" for k in range(29, 9, -1)]
    assert len(files["trials.csv"].decode().splitlines()) == 31


def test_failures_are_named_in_cells_of_their_own():
    found = rows(report(TRIED), "Failures")
    assert found[2:] == [["DataError: a \\| b and \\`more\\`", "`s3://bucket/runs/broken`"]]
    assert "## Failures" not in report(TRIED[:2])


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        ([trial(AP=0.4)], "Those are the start values: nothing better was found."),
        ([WON], "The start values were not trained to their end, so there is no gain to tell."),
        ([TRIED[2]], "the best of the stopped ones reached **90.00** points of AP after 3 epochs"),
        ([TRIED[3]], "No trial was measured, so there is no best one."),
    ],
)
def test_the_report_does_not_claim_what_was_not_measured(tried, said):
    text = report(tried)
    assert said in text
    assert ("## Best settings" in text) == (tried != [TRIED[3]])


def test_ranks_are_compared_by_the_ranks_of_pearson():
    rng = np.random.default_rng(0)
    rates, scores = rng.permutation(10) / 100 + 0.001, rng.permutation(10) / 50
    tried = [trial(AP=float(s), optim_lr=float(r), cluster_gpu=bool(r > 0.05)) for r, s in zip(rates, scores, strict=True)]
    by_hand = np.corrcoef(np.argsort(np.argsort(rates)), np.argsort(np.argsort(scores)))[0, 1]
    # The other range had one value only, and choices have no order.
    assert rank_correlations(tried, SPACE) == pytest.approx({"optim.lr": by_hand})
    assert f"{by_hand:+.2f}".replace("-", "−") in rows(report(tried), "What goes with AP")[2][1]


def test_too_few_finished_trials_or_equal_ones_have_no_ranks():
    stopped = [trial(AP=0.1, state="stopped")] * 5
    few = [trial(AP=k / 10, optim_lr=k / 100 + 0.01) for k in range(7)]
    assert rank_correlations(few + stopped, SPACE) == {}
    assert rank_correlations([trial(AP=0.1, optim_lr=k / 100 + 0.01) for k in range(9)], SPACE) == {}
    assert "## What goes with AP" not in report(few + stopped)
    risen = [*few, trial(AP=0.9, optim_lr=0.09)]
    assert rank_correlations(risen, SPACE)["optim.lr"] == pytest.approx(1)


def test_machines_read_what_the_report_says():
    files = search_files([*TRIED, trial(AP=math.nan)], SPACE, START, b'{"optim": 1}', SUMMARY)
    assert files["preset.json"] == b'{"optim": 1}'
    content = json.loads(files["report.json"])
    assert content["best"]["run"] == WON.run
    assert content["summary"] == {**SUMMARY, "loss": None}
    assert content["start"]["network.depths"] == [1, 2]
    assert [one["AP"] for one in content["trials"]] == [0.4, 0.4321, 0.9, None, None]
    table = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert [row["AP"] for row in table] == ["0.4", "0.4321", "0.9", "", ""]
    assert table[1]["optim.lr"] == "0.0123456"
    assert table[3]["reason"] == TRIED[3].reason


def points_of(png: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """Return (N, 2) rows and columns of the picture's pixels of a colour."""
    return np.argwhere((np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == colour).all(axis=2))


def test_the_picture_shows_the_best_above_the_others_at_its_place():
    space = {"optim.lr": SPACE["optim.lr"]}
    tried = [trial(AP=ap, optim_lr=lr) for ap, lr in ((0.2, 0.001), (0.3, 0.01), (0.4, 0.1))]
    files = search_files([*tried, trial(AP=0.01, state="stopped", optim_lr=0.03)], space, START, b"", SUMMARY)
    legend = 40
    height = Image.open(io.BytesIO(files["parameters.png"])).height
    star = [p for p in points_of(files["parameters.png"], (0xFF, 0x4D, 0x6D)) if p[0] < height - legend]
    dots = [p for p in points_of(files["parameters.png"], (0x2F, 0x8D, 0xFF)) if p[0] < height - legend]
    assert np.mean(star, axis=0)[0] < min(p[0] for p in dots)
    assert np.mean(star, axis=0)[1] > max(p[1] for p in dots)


def test_a_search_without_a_varied_setting_still_has_a_picture():
    fixed = {"loss.box": SPACE["loss.box"]}
    assert search_files([TRIED[0]], fixed, START, b"", SUMMARY)["parameters.png"].startswith(b"\x89PNG")
