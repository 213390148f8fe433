"""`python jobs/tune.py …` is `yolor-ray tune …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("tune")
