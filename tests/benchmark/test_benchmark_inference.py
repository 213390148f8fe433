"""The inference benchmark on a tiny network; its numbers are checked on rounds with chosen durations."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolor_ray.benchmark import inference, peak
from yolor_ray.benchmark.inference import FORMS, STAGES, describe_limit, summarise
from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import ImplicitConfig, NetworkConfig
from yolor_ray.config.benchmark import InferenceConfig
from yolor_ray.config.presets import PRESETS
from yolor_ray.errors import ConfigError
from yolor_ray.inference import timing
from yolor_ray.inference.runtimes.torch_runtime import DecodedYolor
from yolor_ray.inference.timing import spread, time_interleaved
from yolor_ray.model.fuse import fuse
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, save_weights

REPOSITORY = Path(__file__).parents[2]
TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)
ANCHORS = torch.tensor([[[12.0, 12], [20, 20], [30, 30]], [[40, 40], [60, 60], [80, 80]], [[50, 90], [90, 50], [90, 90]]])
INFO = WeightsInfo("tiny", ("a", "b"), 64)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Yolor(TINY, 2, ANCHORS).eval()


@pytest.fixture
def weights(network, tmp_path):
    save_weights(str(tmp_path / "weights"), network, INFO)
    return str(tmp_path / "weights")


@pytest.fixture
def short_turns(monkeypatch):
    monkeypatch.setattr(timing, "MIN_TURN_S", 0.0)
    monkeypatch.setattr(peak, "MATRIX_SIDE", {"cpu": 32})
    monkeypatch.setattr(peak, "CELLS", 2)


@pytest.mark.usefixtures("short_turns")
def test_the_benchmark_measures_every_form_and_names_its_settings(weights):
    result = benchmark(InferenceConfig(weights=weights, batches=(1, 2), rounds=2, compute_threads=1))
    names = {f"{name}_{batch}" for name in (*FORMS, *STAGES) for batch in (1, 2)}
    assert [row.keys() - names for row in result["rounds"]] == [set(result["peak_gflop_per_s"])] * 2
    assert all(value > 0 for row in result["rounds"] for value in row.values())
    assert (result["benchmark"], result["engine"] in {"torch", "onnxruntime", "openvino"}) == ("inference", True)
    expected = {"weights": weights, "name": "tiny", "image_px": 64, "classes": 2, "batches": [1, 2]}
    assert expected.items() <= result["settings"].items()
    assert result["machine"]["compute_threads"] == 1
    assert {"command", "commit", "seconds", "limit", "ratio", "ratio_spread"} <= result.keys()
    json.dumps(result, allow_nan=False)


def test_a_presets_network_needs_no_weights_and_may_have_another_image_size():
    network, info = inference._load_network(InferenceConfig(preset="nano"))
    assert (info.name, info.image_px, network.config) == ("nano", 416, PRESETS["nano"].network)
    assert inference._load_network(InferenceConfig(preset="nano", image_px=32))[1].image_px == 32
    with torch.inference_mode():
        assert all(output.isfinite().all() for output in DecodedYolor(network)(torch.rand(1, 3, 64, 64)).values())


def round_of(**seconds):
    return {f"{name}_4": value for name, value in seconds.items() if name in (*FORMS, *STAGES)} | {
        name: value for name, value in seconds.items() if name not in (*FORMS, *STAGES)
    }


def test_ratios_compare_forms_within_a_round_and_shares_refer_to_the_higher_peak():
    stages = {"input": 0.1, "decode": 0.3, "select": 0.2, "matmul_float32": 2.0, "conv_float32": 1.0, "conv_bfloat16": 0.1}
    disturbed = {**stages, "conv_float32": 1.5}
    rows = [
        round_of(ancestor=12.0, unfused=9.0, fused=6.0, plain=6.0, served=4.0, **disturbed),
        round_of(ancestor=30.0, unfused=18.0, fused=12.0, plain=9.0, served=6.0, **stages),
        round_of(ancestor=10.0, unfused=8.0, fused=5.0, plain=5.0, served=5.0, **disturbed),
    ]
    summary = summarise(rows, [4], 10e9, {"matmul_float32": 10e9, "conv_float32": 20e9, "conv_bfloat16": 20e9}, "float32")
    batch = summary["batches"]["4"]
    assert (summary["ratio"], summary["ratio_spread"]) == (pytest.approx(3.0), pytest.approx(1.0))
    assert batch["ratios"] == pytest.approx({"served/ancestor": 3.0, "fused/unfused": 1.5, "fused/plain": 1.0})
    assert batch["ms"] == pytest.approx(
        {"ancestor": 12e3, "unfused": 9e3, "fused": 6e3, "plain": 6e3, "served": 5e3, "input": 100, "decode": 300, "select": 200}
    )
    assert batch["images_per_s"]["served"] == pytest.approx(0.8)
    assert batch["spreads"]["plain"] == pytest.approx(4 / 6)
    assert summary["peak_gflop_per_s"] == pytest.approx({"matmul_float32": 5.0, "conv_float32": 20.0, "conv_bfloat16": 200.0})
    # Four images of 10 GFLOP in 5 s, and 20 GFLOP/s at the higher peak of float32.
    assert batch["share_of_peak"]["served"] == pytest.approx(0.4)
    assert summary["limit"].startswith("memory traffic") and "conv_float32" in summary["limit"]


@pytest.mark.parametrize(
    ("seconds", "start"),
    [
        ((1.0, 0.05, 0.8), "compute: of 1000.0 ms, the network's operations account for 800.0 ms (80%)"),
        ((1.0, 0.3, 0.4), "input and selection: of 1000.0 ms"),
        ((1.0, 0.1, 0.4), "memory traffic and layers too small for the peak: of 1000.0 ms"),
    ],
)
def test_the_limit_is_the_largest_share_of_the_time(seconds, start):
    assert describe_limit(*seconds, "conv_float32").startswith(start)


def test_forms_take_turns_and_short_ones_are_called_again():
    now, order = [0.0], []

    def timed(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    functions = {"short": timed("s", 0.1), "long": timed("l", 2.0)}
    rows = time_interleaved(functions, 2, clock=lambda: now[0])
    assert [name for name, _ in itertools.groupby(order[4:])] == ["s", "l", "s", "l"]
    assert order[4:].count("s") == 6 and order[4:].count("l") == 2
    assert rows == [pytest.approx({"short": 0.1, "long": 2.0})] * 2
    assert spread([1.0, 2.0, 4.0]) == 1.5


def test_plain_is_the_same_network_without_implicit_knowledge(network):
    plain = inference._without_implicit(network)
    assert plain.config.implicit == ImplicitConfig(align="none", refine="none")
    names = set(network.state_dict()) - set(plain.state_dict())
    assert names == {f"head.levels.{level}.{operator}.z" for level in range(3) for operator in ("align", "refine")}
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=0, atol=0)
    count = sum(p.numel() for p in fuse(network).parameters())
    assert count == sum(p.numel() for p in fuse(plain).parameters())


def test_fused_weights_and_values_out_of_range_are_refused(network, tmp_path):
    save_weights(str(tmp_path / "fused"), fuse(network), INFO)
    with pytest.raises(ConfigError, match=r"weights: found fused weights at .*fused, expected unfused weights of a training run"):
        benchmark(InferenceConfig(weights=str(tmp_path / "fused")))
    with pytest.raises(ConfigError, match="image_px: found 48, expected a multiple of the coarsest stride, 32"):
        benchmark(InferenceConfig(image_px=48))
    with pytest.raises(ConfigError, match="batches: found \\(1, 0\\), expected one number or more, each 1 or more"):
        InferenceConfig(batches=(1, 0))
    with pytest.raises(ConfigError, match="rounds: found 0, expected 1 or more"):
        InferenceConfig(rounds=0)


def test_the_job_reads_its_flags(tmp_path):
    command = [sys.executable, "jobs/benchmark.py", "inference", "--weights", str(tmp_path), "--batches", "1", "2", "--preset", "csp"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "NotFoundError" in done.stderr and str(tmp_path) in done.stderr
