import numpy as np
import pytest

from ablation_study import failure, study, trial
from yolor_ray.study.ablation.summary import summarise
from yolor_ray.study.ablation.verdict import verdict

BASE = [0.30, 0.32, 0.31]
UP, DOWN = [0.32, 0.34, 0.33], [0.29, 0.31, 0.30]
"""Every seed two points above and one point below the baseline's."""
NOISE = [0.33, 0.29, 0.32]


def _said(made):
    return verdict(summarise(made))


def test_differences_beyond_noise_are_named_upwards_and_downwards():
    said = _said(study({"baseline": BASE, "fa-add": UP, "fa-multiply": NOISE, "pr-add": DOWN, "pr-multiply": UP}))
    assert said[0] == (
        "**+FA** (+2.00 [+2.00, +2.00]) and **×PR** (+2.00 [+2.00, +2.00]) raise AP by more than noise; "
        "**+PR** (−1.00 [−1.00, −1.00]) lowers AP by more than noise. The other difference is not."
    )
    assert said[1].endswith("Of 4 comparisons, fewer than one (0.2 on average) would look larger than noise by chance alone.")


def test_without_a_difference_beyond_noise_the_verdict_says_what_could_have_been_seen():
    said = _said(study({"baseline": BASE, "fa-add": NOISE, "pr-add": NOISE}))
    assert said[0] == "No difference in AP to the baseline is larger than noise: all 2 intervals hold 0."
    # The differences are 3, -3 and 1 points: t(0.975, 2) is 4.303 and their standard error 1.764 points.
    width = float(said[1].removeprefix("This study could see differences of about ").split()[0])
    assert width == pytest.approx(4.303 * 1.764, rel=0.05)


def test_one_comparison_is_said_to_look_so_in_one_study_of_twenty():
    said = _said(study({"baseline": BASE, "fa-add": UP}))
    assert said[0] == "**+FA** (+2.00 [+2.00, +2.00]) raises AP by more than noise."
    assert "one comparison in 20" in said[1]
    assert "the only interval holds 0" in _said(study({"baseline": BASE, "fa-add": NOISE}))[0]


def test_many_comparisons_are_said_to_hold_findings_by_chance():
    said = _said(study({"baseline": BASE, "fa-add": UP, "pr-add": NOISE}, settings=[f"optim.lr={k}" for k in range(20)]))
    assert "Of 40 comparisons, about 2 would look larger than noise by chance alone." in said[-1]


def test_with_one_seed_nothing_is_called_larger_than_noise():
    summary = summarise(study({"baseline": [0.30], "fa-add": [0.31], "fa-multiply-anchor": [0.25]}))
    said = verdict(summary)
    assert len(said) == 1
    assert said[0].startswith("No variant has more than one seed in common with the baseline, so the noise between seeds was not measured")
    assert "×FA\\*'s, −5.00 points" in said[0]
    assert not any(row.beyond_noise(name) for row in summary.rows if row.paired for name in row.differences)


def test_each_setting_has_a_verdict_of_its_own():
    made = study({"baseline": BASE, "fa-add": UP}, settings=("optim.lr=0.01", "optim.lr=0.02"))
    lower = tuple(trial("fa-add", k, ap, "optim.lr=0.02") for k, ap in enumerate(DOWN))
    trials = (*(t for t in made.trials if (t.variant, t.setting) != ("fa-add", "optim.lr=0.02")), *lower)
    said = _said(study({"baseline": BASE, "fa-add": UP}, settings=made.settings, trials=trials))
    assert said[0] == "With `optim.lr=0.01`: **+FA** (+2.00 [+2.00, +2.00]) raises AP by more than noise."
    assert said[1] == "With `optim.lr=0.02`: **+FA** (−1.00 [−1.00, −1.00]) lowers AP by more than noise."


def test_a_variant_whose_trials_failed_is_not_judged():
    made = study({"baseline": BASE, "fa-add": UP, "pr-add": [0.30, None, None]}, failures=(failure("pr-add", seed=1), failure("pr-add")))
    said = _said(made)
    assert said[0].endswith("+PR cannot be judged: fewer than two seeds were trained and measured along with the baseline.")
    assert said[-1] == "2 of 9 trainings failed: see Failures below."
    assert "this is one comparison" in said[1]


def test_pairs_are_of_one_seed():
    made = study({"baseline": [0.30, 0.40, None], "fa-add": [None, 0.43, 0.99]})
    row = summarise(made).rows[1]
    assert (row.seeds, row.paired) == ((1, 2), (1,))
    assert row.differences["AP"].mean == pytest.approx(0.03)
    assert row.seed_differences == pytest.approx((0.03,))


@pytest.mark.parametrize("aps", [{"baseline": BASE}, {"baseline": [], "fa-add": UP}, {"baseline": [0.3, None], "fa-add": [None, 0.3]}])
def test_where_nothing_is_in_common_with_the_baseline_nothing_is_compared(aps):
    assert _said(study(aps))[0].startswith("Nothing can be compared")


def test_a_validation_set_without_objects_gives_no_verdict():
    assert _said(study({"baseline": [np.nan] * 2, "fa-add": [np.nan] * 2})) == [
        "AP could not be measured: the validation set holds no object that counts."
    ]
