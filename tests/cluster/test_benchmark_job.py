import json
import os
import subprocess
import sys
from pathlib import Path

from yolor_ray.runtime.pack import pack_scenes
from yolor_ray.storage import join, list_names

REPOSITORY = Path(__file__).parents[2]
TINY = "--network.stem_width 8 --network.widths 8 16 16 16 --network.depths 1 1 1 1 --data.image_px 64 --optim.batch 8 --cluster.threads 1"


def test_workers_on_a_cluster_are_measured_together_and_leave_nothing_behind(s3):
    bucket = s3()
    data, runs = join(bucket, "data"), join(bucket, "runs")
    pack_scenes(data, 70, seed=0, size_px=96)
    flags = f"--rounds 2 nano --data.train {data} --data.val {data} --cluster.workers 2 --run.storage {runs} {TINY}"
    own_ray = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "jobs/benchmark.py", "ingest", *flags.split()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=own_ray, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["rounds"]) == 2
    assert all(value > 0 for row in found["rounds"] for value in row.values())
    assert found["settings"]["workers"] == 2
    # 35 records for each of two workers, four at a time.
    assert found["settings"]["steps"] == 9
    assert found["machine"]["compute_threads"] == 1
    assert list_names(runs) == []
