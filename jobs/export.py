"""`python jobs/export.py …` is `yolor-ray export …`."""

from yolor_ray.cli import main

if __name__ == "__main__":
    main("export")
