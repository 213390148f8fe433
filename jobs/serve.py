"""`python jobs/serve.py …` is `yolor-ray serve …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("serve")
