"""Read annotations as other tools write them: PASCAL VOC, COCO and YOLO, with every fault counted and located."""
