"""`python jobs/evaluate.py …` is `yolor-ray evaluate …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("evaluate")
