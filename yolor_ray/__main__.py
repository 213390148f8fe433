"""`python -m yolor_ray JOB …` is `yolor-ray JOB …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main()
