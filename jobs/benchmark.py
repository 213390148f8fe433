"""`python jobs/benchmark.py …` is `yolor-ray benchmark …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("benchmark")
