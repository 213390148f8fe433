"""COCO JSON: its images and its objects."""

from yolor_ray.pack.annotations.coco.read import read_coco as read_coco
