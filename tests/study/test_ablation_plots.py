"""Pictures of an ablation: the forest plot of differences and the plot of learned priors."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ablation_study import make_study, make_study_with_priors, make_trial
from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.plots import COLOURS
from yolor_ray.study.ablation.forest_plot import BEYOND_NOISE, PAPER, WITHIN_NOISE, differences_png
from yolor_ray.study.ablation.priors_plot import priors_png
from yolor_ray.study.ablation.summary import summarise
from yolor_ray.study.results import Prior

EQUAL = [0.30, 0.30]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count_pixels(png, colour):
    """Return the number of pixels close to a colour given as #rrggbb, without the legend at the bottom."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(png)[:-70] - rgb).max(axis=2) < 30).sum())


def forest_plot(aps, **fields):
    return differences_png(summarise(make_study(aps, **fields)))


def test_a_difference_beyond_noise_has_its_own_colour():
    beyond = forest_plot({"baseline": EQUAL, "fa-multiply-pyramid": [0.31, 0.31]})
    within = forest_plot({"baseline": EQUAL, "fa-multiply-pyramid": [0.31, 0.28]})
    assert count_pixels(beyond, BEYOND_NOISE) and not count_pixels(within, BEYOND_NOISE)
    # Edges of letters have the same grey, but few pixels.
    assert count_pixels(within, WITHIN_NOISE) > count_pixels(beyond, WITHIN_NOISE) + 500


def test_one_seed_is_never_drawn_as_beyond_noise():
    png = forest_plot({"baseline": [0.30], "fa-multiply-pyramid": [0.40]})
    assert not count_pixels(png, BEYOND_NOISE)


def test_the_papers_difference_is_drawn_for_variants_of_the_paper():
    in_paper, not_in_paper = (forest_plot({"baseline": EQUAL, name: [0.31, 0.31]}) for name in ("fa-add", "fa-multiply-pyramid"))
    assert count_pixels(in_paper, PAPER) and not count_pixels(not_in_paper, PAPER)


def test_each_setting_has_a_panel_and_each_variant_a_row():
    two_variants, all_variants = {"baseline": EQUAL, "fa-add": EQUAL}, dict.fromkeys(VARIANTS, EQUAL)
    single, tall, wide, two_lines = (
        pixels(forest_plot(aps, settings=settings)).shape[:2]
        for aps, settings in (
            (two_variants, ("",)),
            (all_variants, ("",)),
            (two_variants, ("a=1", "a=2")),
            (two_variants, ("a=1", "a=2", "a=3")),
        )
    )
    assert tall[0] > single[0] + 12 * 40 and tall[1] == single[1]
    assert wide[1] > single[1] + 500 and wide[0] == single[0]
    assert two_lines[0] > wide[0] + 100 and two_lines[1] == wide[1]


@pytest.mark.parametrize("aps", [{"baseline": EQUAL}, {"baseline": [], "fa-add": EQUAL}])
def test_without_comparable_trials_there_is_no_forest_plot(aps):
    assert forest_plot(aps) is None


def test_the_forest_plot_accepts_differences_without_numbers():
    assert forest_plot({"baseline": [np.nan] * 2, "fa-add": [np.nan] * 2}) is not None


def test_priors_have_a_panel_for_each_variant_and_role():
    narrow, wide = (pixels(priors_png(make_study_with_priors([name]))).shape[:2] for name in ("pr-add", "fa-add-pr-multiply"))
    assert wide[1] >= narrow[1] + 300
    seven = ["pr-add", "pr-multiply", "fa-add", "fa-multiply", "fa-concat", "fa-multiply-pyramid", "fa-multiply-anchor"]
    # Seven panels are three rows of three panels.
    assert pixels(priors_png(make_study_with_priors(seven))).shape[0] > 3 * 300


def test_without_priors_there_is_no_picture_of_priors():
    assert priors_png(make_study({"baseline": EQUAL, "fa-add": EQUAL})) is None


@pytest.mark.parametrize(("classes", "seeds"), [(1, 1), (3, 3), (12, 1), (80, 2)])
def test_priors_are_drawn_for_every_level_and_any_number_of_classes(classes, seeds):
    png = priors_png(make_study_with_priors(["pr-add"], classes, seeds))
    assert all(count_pixels(png, COLOURS[level]) for level in range(3))


@pytest.mark.parametrize("bins", [1, 16])
@pytest.mark.parametrize("classes", [3, 80])
def test_priors_of_a_head_without_anchors_are_drawn(classes, bins):
    values = np.linspace(0.9, 1.1, 4 * bins + classes)[None]
    trials = [make_trial("pr-multiply", 0, 0.3, "", tuple(Prior("refine", level, "multiply", values) for level in range(3)))]
    study = make_study({"baseline": (), "pr-multiply": ()}, trials=tuple(trials), classes=tuple(f"class {k}" for k in range(classes)))
    assert all(count_pixels(priors_png(study), COLOURS[level]) for level in range(3))


def test_long_names_and_dollar_signs_are_drawn_as_text():
    name = "$x^{$"
    study = make_study_with_priors(["pr-multiply"], classes=2, settings=(name, "$y$"))
    study = replace(study, classes=(name, "very long name $\\frac$"))
    assert priors_png(study) is not None
    assert differences_png(summarise(study)) is not None
