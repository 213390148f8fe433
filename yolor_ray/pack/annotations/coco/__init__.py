"""COCO JSON: its images, its objects, and the tasks of each image."""

from yolor_ray.pack.annotations.coco.read import read_coco as read_coco
