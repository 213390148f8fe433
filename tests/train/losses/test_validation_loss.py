"""Loss on the validation set: means over the annotated images, whatever the spread over workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from packed import all_records
from yolor_ray.config import DataConfig, LossConfig, NetworkConfig, TrainConfig
from yolor_ray.config.network import TASKS
from yolor_ray.data.augment.label_spec import LabelSpec
from yolor_ray.inference.dataset_images import image_batches
from yolor_ray.inference.detect import to_input
from yolor_ray.model.network import Yolor
from yolor_ray.train.context import TrainContext
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.total import loss_terms
from yolor_ray.train.losses.validation import ValidationLoss, mean_losses

SIDE = 64
CONFIG = NetworkConfig(stem="reorg", stem_width=8, widths=(8, 8, 8), depths=(1, 1, 1), levels=2, neck_depth=1, tasks=TASKS)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
GAINS = LossConfig()
INDIVIDUALS = np.array([1, 2])


@pytest.fixture
def network() -> Yolor:
    torch.manual_seed(0)
    return Yolor(CONFIG, 2, ANCHORS, image_classes=2, keypoints=3, identities=(2,)).eval()


def label_spec_of(dataset, individuals=INDIVIDUALS) -> LabelSpec:
    image_classes = np.ones((1, len(dataset.image_classes)), bool)
    return LabelSpec(masks=True, keypoint_names=dataset.keypoint_names, identities=individuals, image_classes=image_classes)


@torch.inference_mode()
def totals(network, dataset, groups, batch=4, *, individuals=INDIVIDUALS, selects=lambda record: True):
    """Return the totals over the images of row groups for which `selects(record)` is true."""
    losses = ValidationLoss(network, GAINS, label_spec_of(dataset, individuals))
    for images in image_batches(dataset, groups, SIDE, batch):
        kept = [index for index, record in enumerate(images.records) if selects(record)]
        if kept:
            letterboxes, records = (tuple(items[index] for index in kept) for items in (images.letterboxes, images.records))
            images = replace(images, images=images.images[kept], letterboxes=letterboxes, records=records)
            losses.add(network(to_input(torch.from_numpy(images.images), torch.device("cpu"))), images)
    return losses.totals()


def test_the_loss_of_an_image_is_the_training_loss_of_its_boxes_in_the_letterbox(squares, network):
    network = Yolor(replace(CONFIG, tasks=("detect",)), 2, ANCHORS).eval()
    expected: dict[str, list[float]] = {}
    with torch.inference_mode():
        losses = ValidationLoss(network, GAINS, LabelSpec())
        for images in image_batches(squares, squares.row_groups[-1:], SIDE, 1):
            raw = network(to_input(torch.from_numpy(images.images), torch.device("cpu")))
            losses.add(raw, images)
            [record], [letterbox] = images.records, images.letterboxes
            corners = letterbox.to_input(record.objects.boxes_xyxy)[0]
            box = [*(corners[:2] + corners[2:]) / 2, *(corners[2:] - corners[:2])]
            targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([box], dtype=torch.float32))
            for name, term in loss_terms(raw, targets, network, GAINS).items():
                expected.setdefault(f"val_{name}", []).append(term.item())
    means = {name: np.mean(terms) for name, terms in expected.items()}
    found = mean_losses([losses.totals()])
    # A letterbox has whole pixels, which moves an edge by up to half a pixel.
    assert found == pytest.approx({"val_loss": sum(means.values()), **means}, rel=0.03)
    assert list(found) == ["val_loss", "val_box", "val_objectness", "val_cls"]


def test_the_loss_does_not_depend_on_the_spread_over_workers(squares, network):
    network = Yolor(replace(CONFIG, tasks=("detect",)), 2, ANCHORS).eval()
    one = mean_losses([totals(network, squares, squares.row_groups)])
    several = mean_losses([totals(network, squares, [group]) for group in squares.row_groups] + [{}])
    assert several == pytest.approx(one, rel=1e-9)


def test_an_image_counts_only_in_the_terms_of_its_tasks(rich, network):
    """Batches of one: an image without masks would otherwise add a zero to the mean of the masks."""
    found = totals(network, rich, rich.row_groups, batch=1)
    records = all_records(rich.url)
    for task in ("classify", "segment", "pose"):
        annotated = totals(network, rich, rich.row_groups, batch=1, selects=lambda record, task=task: task in record.tasks)
        assert found[task] == pytest.approx(annotated[task]) and found[task][0] > 0
        assert found[task][1] == sum(task in record.tasks for record in records)
    assert found["box"][1] == sum("detect" in record.tasks for record in records) < len(records)


def test_embeddings_count_on_images_with_individuals_of_the_training_set(rich, network):
    identities = [record.objects.identities for record in all_records(rich.url)]
    known = [individuals for individuals in identities if individuals is not None and individuals[0] in INDIVIDUALS]
    assert totals(network, rich, rich.row_groups, batch=1)["embed"][1] == len(known) > 0
    strangers = mean_losses([totals(network, rich, rich.row_groups, individuals=np.array([77, 78]))])
    assert "val_embed" not in strangers
    assert strangers["val_loss"] == pytest.approx(sum(loss for name, loss in strangers.items() if name != "val_loss"))


def test_no_image_at_all_gives_no_loss():
    assert mean_losses([{}, {}]) == {}


@pytest.mark.parametrize(("val", "known"), [("", True), ("train", True), ("other", False)])
def test_individuals_of_another_dataset_are_unknown_though_their_numbers_are_the_same(rich, val, known):
    config = TrainConfig(network=replace(CONFIG, head="free"), data=DataConfig(train="train", val=val, image_px=SIDE))
    context = TrainContext(config, "run", rich, replace(rich), None, None, INDIVIDUALS)  # type: ignore[arg-type]
    assert context.label_spec(context.train).identities.tolist() == INDIVIDUALS.tolist()
    assert context.label_spec(context.val).identities.tolist() == (INDIVIDUALS.tolist() if known else [])
