"""Serve weights over HTTP: `python jobs/serve.py --weights URL [--port 8000]`; `--help` lists every flag."""

from yolor_ray import cli, config

if __name__ == "__main__":
    cli.run(config.ServeConfig, "yolor_ray.serve.run:serve")
