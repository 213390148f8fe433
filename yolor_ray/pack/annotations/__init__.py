"""Readers of annotations in other tools' formats: PASCAL VOC, COCO, YOLO, file names. Every fault is counted and located."""
