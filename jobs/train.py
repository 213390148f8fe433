"""`python jobs/train.py …` is `yolor-ray train …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("train")
