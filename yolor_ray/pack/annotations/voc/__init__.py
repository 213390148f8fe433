"""PASCAL VOC XML: its images and its objects."""

from yolor_ray.pack.annotations.voc.read import read_voc as read_voc
