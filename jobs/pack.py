"""`python jobs/pack.py …` is `yolor-ray pack …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("pack")
