"""Recognise the layout of a folder of annotated images: its splits, and the images and annotations of each split."""
