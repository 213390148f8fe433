"""Read annotations as other tools write them: PASCAL VOC, COCO, YOLO or file names, with every fault counted and located."""
