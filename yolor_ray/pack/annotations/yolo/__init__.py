"""Reader of YOLO text files: boxes, polygons, oriented boxes and poses, with class names from a text or YAML file."""
