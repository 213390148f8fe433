"""`python jobs/release.py …` is `yolor-ray release …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("release")
