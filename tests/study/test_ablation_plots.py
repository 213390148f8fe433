import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ablation_study import learned, study
from yolor_ray.config.variants import VARIANTS
from yolor_ray.report.plots import COLOURS
from yolor_ray.study.ablation.forest_plot import BEYOND, PAPER, WITHIN, differences_png
from yolor_ray.study.ablation.priors_plot import priors_png
from yolor_ray.study.ablation.summary import summarise

FLAT = [0.30, 0.30]


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _count(png, colour_name):
    """How many pixels are nearly of a colour given as #rrggbb, without the legend at the foot."""
    rgb = [int(colour_name[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(_pixels(png)[:-70] - rgb).max(axis=2) < 30).sum())


def _forest(aps, **words):
    return differences_png(summarise(study(aps, **words)))


def test_a_difference_beyond_noise_has_its_own_colour():
    above = _forest({"baseline": FLAT, "fa-add-pyramid": [0.31, 0.31]})
    noise = _forest({"baseline": FLAT, "fa-add-pyramid": [0.31, 0.28]})
    assert _count(above, BEYOND) and not _count(noise, BEYOND)
    # Edges of letters are as grey, but few.
    assert _count(noise, WITHIN) > _count(above, WITHIN) + 500


def test_one_seed_is_never_drawn_as_beyond_noise():
    png = _forest({"baseline": [0.30], "fa-add-pyramid": [0.40]})
    assert not _count(png, BEYOND)


def test_the_papers_difference_is_drawn_where_it_has_the_variant():
    with_row, without = (_forest({"baseline": FLAT, name: [0.31, 0.31]}) for name in ("fa-add", "fa-add-pyramid"))
    assert _count(with_row, PAPER) and not _count(without, PAPER)


def test_settings_get_a_panel_each_and_variants_a_row_each():
    few, many = {"baseline": FLAT, "fa-add": FLAT}, dict.fromkeys(VARIANTS, FLAT)
    one, rows, columns, lines = (
        _pixels(_forest(aps, settings=settings)).shape[:2]
        for aps, settings in ((few, ("",)), (many, ("",)), (few, ("a=1", "a=2")), (few, ("a=1", "a=2", "a=3")))
    )
    assert rows[0] > one[0] + 12 * 40 and rows[1] == one[1]
    assert columns[1] > one[1] + 500 and columns[0] == one[0]
    assert lines[0] > columns[0] + 100 and lines[1] == columns[1]


@pytest.mark.parametrize("aps", [{"baseline": FLAT}, {"baseline": [], "fa-add": FLAT}])
def test_where_nothing_can_be_compared_there_is_no_picture(aps):
    assert _forest(aps) is None


def test_unmeasured_differences_are_no_obstacle():
    assert _forest({"baseline": [np.nan] * 2, "fa-add": [np.nan] * 2}) is not None


def test_priors_get_a_panel_for_each_place_that_has_them():
    one, two = (_pixels(priors_png(learned([name]))).shape[:2] for name in ("pr-add", "fa-add-pr-multiply"))
    assert two[1] >= one[1] + 300
    everything = _pixels(priors_png(learned([name for name in VARIANTS if name != "baseline"]))).shape[0]
    # Four variants refine and ten align: five rows of three panels.
    assert everything > 5 * 300


def test_without_priors_there_is_no_picture_of_them():
    assert priors_png(study({"baseline": FLAT, "fa-add": FLAT})) is None


@pytest.mark.parametrize(("classes", "seeds"), [(1, 1), (3, 3), (12, 1), (80, 2)])
def test_priors_of_any_number_of_classes_are_drawn_for_every_level(classes, seeds):
    png = priors_png(learned(["pr-add"], classes, seeds))
    assert all(_count(png, COLOURS[level]) for level in range(3))


def test_names_with_dollars_and_great_length_are_text():
    odd = "$x^{$"
    made = replace(learned(["pr-multiply"], classes=2, settings=(odd, "$y$")), classes=(odd, "very long name $\\frac$"))
    assert priors_png(made) is not None
    assert differences_png(summarise(made)) is not None
