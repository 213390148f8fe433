"""`python jobs/predict.py …` is `yolor-ray predict …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("predict")
