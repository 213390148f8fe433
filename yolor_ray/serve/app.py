"""Former name, until version 0.2, of `yolor_ray.serve.deployment`: Serve configs of users import `yolor_ray.serve.app:build`."""

from yolor_ray.serve.deployment import build as build
