"""Verdict of an ablation: differences beyond noise, differences expected by chance, and studies without a verdict."""

import numpy as np
import pytest

from ablation_study import make_failure, make_study, make_trial
from yolor_ray.study.ablation.summary import summarise
from yolor_ray.study.ablation.verdict import verdict

BASELINE = [0.30, 0.32, 0.31]
UP, DOWN = [0.32, 0.34, 0.33], [0.29, 0.31, 0.30]
"""Every seed two points above and one point below the baseline's."""
NOISE = [0.33, 0.29, 0.32]


def verdict_of(study):
    return verdict(summarise(study))


def test_differences_beyond_noise_are_listed_by_direction():
    study = make_study({"baseline": BASELINE, "fa-add": UP, "fa-multiply": NOISE, "pr-add": DOWN, "pr-multiply": UP})
    paragraphs = verdict_of(study)
    assert paragraphs[0] == (
        "**+FA** (+2.00 [+2.00, +2.00]) and **×PR** (+2.00 [+2.00, +2.00]) raise AP by more than noise; "
        "**+PR** (−1.00 [−1.00, −1.00]) lowers AP by more than noise. The other difference is not."
    )
    assert paragraphs[1].endswith("Of 4 comparisons, fewer than one (0.2 on average) would appear larger than noise by chance alone.")


def test_without_a_difference_beyond_noise_the_verdict_states_the_detectable_difference():
    paragraphs = verdict_of(make_study({"baseline": BASELINE, "fa-add": NOISE, "pr-add": NOISE}))
    assert paragraphs[0] == "No difference in AP to the baseline is larger than noise: all 2 intervals contain 0."
    # The differences are 3, -3 and 1 points: t(0.975, 2) is 4.303 and their standard error 1.764 points.
    width = float(paragraphs[1].removeprefix("This study can detect differences of about ").split()[0])
    assert width == pytest.approx(4.303 * 1.764, rel=0.05)


def test_one_comparison_is_beyond_noise_by_chance_in_one_study_of_twenty():
    paragraphs = verdict_of(make_study({"baseline": BASELINE, "fa-add": UP}))
    assert paragraphs[0] == "**+FA** (+2.00 [+2.00, +2.00]) raises AP by more than noise."
    assert "one comparison in 20" in paragraphs[1]
    assert "the only interval contains 0" in verdict_of(make_study({"baseline": BASELINE, "fa-add": NOISE}))[0]


def test_many_comparisons_have_an_expected_number_beyond_noise_by_chance():
    settings = [f"optim.lr={k}" for k in range(20)]
    paragraphs = verdict_of(make_study({"baseline": BASELINE, "fa-add": UP, "pr-add": NOISE}, settings=settings))
    assert "Of 40 comparisons, about 2 would appear larger than noise by chance alone." in paragraphs[-1]


def test_with_one_seed_nothing_is_larger_than_noise():
    summary = summarise(make_study({"baseline": [0.30], "fa-add": [0.31], "fa-multiply-anchor": [0.25]}))
    paragraphs = verdict(summary)
    assert len(paragraphs) == 1
    assert paragraphs[0].startswith(
        "No variant has more than one seed in common with the baseline, so the noise between seeds was not measured"
    )
    assert "that of ×FA\\*, −5.00 points" in paragraphs[0]
    assert not any(row.beyond_noise(name) for row in summary.rows if row.paired for name in row.differences)


def test_each_setting_has_its_own_verdict():
    study = make_study({"baseline": BASELINE, "fa-add": UP}, settings=("optim.lr=0.01", "optim.lr=0.02"))
    lower = tuple(make_trial("fa-add", k, ap, "optim.lr=0.02") for k, ap in enumerate(DOWN))
    trials = (*(t for t in study.trials if (t.variant, t.setting) != ("fa-add", "optim.lr=0.02")), *lower)
    paragraphs = verdict_of(make_study({"baseline": BASELINE, "fa-add": UP}, settings=study.settings, trials=trials))
    assert paragraphs[0] == "With `optim.lr=0.01`: **+FA** (+2.00 [+2.00, +2.00]) raises AP by more than noise."
    assert paragraphs[1] == "With `optim.lr=0.02`: **+FA** (−1.00 [−1.00, −1.00]) lowers AP by more than noise."


def test_a_variant_with_failed_trials_is_not_judged():
    failures = (make_failure("pr-add", seed=1), make_failure("pr-add"))
    paragraphs = verdict_of(make_study({"baseline": BASELINE, "fa-add": UP, "pr-add": [0.30, None, None]}, failures=failures))
    assert paragraphs[0].endswith("+PR cannot be judged: fewer than two seeds were trained and measured in common with the baseline.")
    assert paragraphs[-1] == "2 of 9 trials failed: see Failures below."
    assert "This study has one comparison" in paragraphs[1]


def test_differences_are_paired_by_seed():
    row = summarise(make_study({"baseline": [0.30, 0.40, None], "fa-add": [None, 0.43, 0.99]})).rows[1]
    assert (row.seeds, row.paired) == ((1, 2), (1,))
    assert row.differences["AP"].mean == pytest.approx(0.03)
    assert row.seed_differences == pytest.approx((0.03,))


@pytest.mark.parametrize("aps", [{"baseline": BASELINE}, {"baseline": [], "fa-add": UP}, {"baseline": [0.3, None], "fa-add": [None, 0.3]}])
def test_without_a_common_seed_nothing_is_compared(aps):
    assert verdict_of(make_study(aps))[0].startswith("Nothing can be compared")


def test_a_validation_set_without_objects_gives_no_verdict():
    assert verdict_of(make_study({"baseline": [np.nan] * 2, "fa-add": [np.nan] * 2})) == [
        "AP could not be measured: the validation set has no object that counts."
    ]
