import pytest

from yolor_ray.benchmark.run import benchmark
from yolor_ray.config import ClusterConfig, DataConfig, NetworkConfig, OptimConfig, RunConfig, TrainConfig
from yolor_ray.config.benchmark import IngestConfig
from yolor_ray.io.storage import join, list_names
from yolor_ray.pack.run import pack_scenes

TINY = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 16, 16, 16), depths=(1, 1, 1, 1), neck_depth=1)


# Ray Data reads deprecated settings of Ray.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("ray_cluster")
def test_workers_on_a_cluster_are_measured_together_and_their_run_is_deleted(s3):
    bucket = s3()
    data, runs = join(bucket, "data"), join(bucket, "runs")
    pack_scenes(data, 70, seed=0, size_px=96)
    train = TrainConfig(
        network=TINY,
        data=DataConfig(train=data, val=data, image_px=64),
        optim=OptimConfig(batch=8),
        cluster=ClusterConfig(workers="2", compute_threads=1),
        run=RunConfig(storage=runs),
    )
    result = benchmark(IngestConfig(train, rounds=1))
    assert len(result["rounds"]) == 1
    assert all(value > 0 for row in result["rounds"] for value in row.values())
    assert result["settings"]["workers"] == 2
    # Each of two workers has 35 records, in batches of 4.
    assert result["settings"]["steps"] == 9
    assert result["machine"]["compute_threads"] == 1
    assert list_names(runs) == []
    assert result["workers_ratio"] == result["rounds"][0]["step"] / result["rounds"][0]["alone"]
