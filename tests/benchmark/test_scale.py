"""The benchmark of scale, with few images."""

import json

import numpy as np
import pytest

from yolor_ray.benchmark.run import benchmark
from yolor_ray.benchmark.scale import PARTS, exponent, measure
from yolor_ray.config.benchmark import ScaleConfig
from yolor_ray.errors import ConfigError


def test_each_part_has_seconds_and_memory_for_each_number_of_images():
    result = benchmark(ScaleConfig(images=(16, 80)))
    assert result["benchmark"] == "scale" and tuple(result["parts"]) == PARTS
    for part in result["parts"].values():
        assert list(part["seconds"]) == list(part["mb"]) == ["16", "80"]
        assert min(part["seconds"].values()) > 0 and min(part["mb"].values()) >= 0
        assert isinstance(part["seconds_exponent"], float)
    assert result["start_s"].keys() == {"16", "80"}
    measured = sum(result["parts"][part]["seconds"]["80"] for part in PARTS[1:])
    assert result["start_s"]["80"] == pytest.approx(measured, abs=0.002)
    assert result["settings"]["images"] == [16, 80] and result["machine"]["cores"] >= 1
    json.dumps(result, allow_nan=False)


def test_memory_is_the_peak_of_the_part_alone():
    large, cost = measure(lambda: int(np.ones(60_000_000, np.uint8).sum()))
    assert large == 60_000_000 and 55 < cost.mb < 90 and cost.seconds > 0
    _, small = measure(lambda: None)
    assert small.mb < 5


@pytest.mark.parametrize(("power", "expected"), [(0, 0.0), (1, 1.0), (1.5, 1.5)])
def test_an_exponent_says_by_which_power_a_cost_grows(power, expected):
    numbers = [1000, 10_000, 100_000]
    assert exponent(numbers, [3 * number**power for number in numbers]) == pytest.approx(expected)


def test_one_number_or_no_cost_has_no_exponent():
    assert exponent([1000], [2.0]) is None
    assert exponent([1000, 2000], [0.0, 1.0]) is None


@pytest.mark.parametrize("images", [(), (15,), (100, 100)])
def test_impossible_numbers_of_images_are_refused(images):
    with pytest.raises(ConfigError, match=r"images: found .* expected one number or more, each 16 or more and all different"):
        ScaleConfig(images=images)
