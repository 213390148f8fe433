"""A teacher: boxes and unsure places on images without annotated boxes, soft class targets, and a student without any annotation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from packed import pack, square_record
from tiny_run import TINY, assert_equal_tensors, tiny_run, train_until_killed
from yolor_ray.config import AugmentConfig, DataConfig, LossConfig, NetworkConfig, OptimConfig
from yolor_ray.data.shards.dataset import Dataset
from yolor_ray.data.shards.records import Record, objects_from_boxes
from yolor_ray.errors import ConfigError, DataError, WeightsError
from yolor_ray.model.fuse import fuse, is_fused
from yolor_ray.model.network import Yolor
from yolor_ray.model.weights import WeightsInfo, load_weights, save_weights
from yolor_ray.train.losses.assign import Targets
from yolor_ray.train.losses.total import loss_terms
from yolor_ray.train.run import prepare, train
from yolor_ray.train.teacher import Teacher, load_teacher

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = NetworkConfig(stem="reorg", stem_width=8, widths=(16, 24, 32), depths=(1, 1, 1), levels=2, neck_depth=1)
ANCHORS = torch.tensor([[[8.0, 10.0], [16.0, 12.0], [12.0, 24.0]], [[30.0, 30.0], [60.0, 32.0], [40.0, 80.0]]])
PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class KnownBoxes(nn.Module):
    """A detection head that answers the same boxes for any image."""

    def __init__(self, boxes: list[list[float]], scores: list[list[float]]) -> None:
        super().__init__()
        self.boxes, self.scores = torch.tensor(boxes), torch.tensor(scores)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return features

    def decode(self, raw: list[Tensor]) -> tuple[Tensor, Tensor]:
        count = len(raw[0])
        return self.boxes.expand(count, -1, -1), self.scores.expand(count, -1, -1)


class WhiteBox(KnownBoxes):
    """A detection head of one class, 1 of 2, that answers the bounding box of all white pixels."""

    def __init__(self) -> None:
        super().__init__([], [])

    def decode(self, raw: list[Tensor]) -> tuple[Tensor, Tensor]:
        white = raw[0].amin(dim=1) > 0.8
        boxes = torch.zeros(len(white), 1, 4)
        for image, mask in enumerate(white):
            rows, columns = (mask.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
            if len(rows):
                low, high = torch.stack((columns[0], rows[0])), torch.stack((columns[-1] + 1, rows[-1] + 1))
                boxes[image, 0] = torch.cat(((low + high) / 2, (high - low).float()))
        return boxes, torch.tensor([0.0, 0.9]).expand(len(white), 1, 2)


def teacher_of(
    head: nn.Module, labels: tuple[int, ...] = (0, 1, 2), teacher_labels: tuple[int, ...] = (0, 1, 2), classes: int = 3
) -> Teacher:
    network = Yolor(SMALL, 3, ANCHORS).eval()
    network.head = head
    return Teacher(network, torch.tensor(labels), torch.tensor(teacher_labels), classes)


def targets_of(boxes: list[list[float]], known: list[bool] | None, images: list[int] | None = None) -> Targets:
    return Targets(
        torch.tensor(images or [0] * len(boxes), dtype=torch.long),
        torch.zeros(len(boxes), dtype=torch.long),
        torch.tensor(boxes).view(-1, 4),
        boxes_known=None if known is None else torch.tensor(known),
    )


CONFIDENT, UNSURE = [20.0, 20.0, 16.0, 16.0], [48.0, 48.0, 16.0, 16.0]
TWO = KnownBoxes([CONFIDENT, [20.0, 21.0, 16.0, 16.0], UNSURE], [[0.1, 0.0, 0.8], [0.0, 0.7, 0.0], [0.2, 0.0, 0.0]])
"""A confident detection that suppresses one of another class, and an unsure detection."""


def test_confident_detections_become_boxes_of_images_without_annotated_boxes():
    targets = teacher_of(TWO).add_targets(PIXELS, targets_of([], [True, False]))
    assert targets.images.tolist() == [1]
    assert targets.labels.tolist() == [2]
    assert targets.boxes_cxcywh.tolist() == [CONFIDENT]
    assert targets.boxes_known is None, "the teacher knows all classes"
    assert (targets.unsure_images.tolist(), targets.unsure_cxcywh.tolist()) == ([1], [UNSURE])


def test_annotated_images_get_no_boxes():
    targets = teacher_of(TWO).add_targets(PIXELS, targets_of([], None))
    assert len(targets.boxes_cxcywh) == 0
    assert targets.unsure_images is None


@pytest.mark.parametrize(("shift", "added"), [(2.0, 0), (20.0, 1)])
def test_a_detection_of_an_annotated_object_is_not_added(shift, added):
    annotated = [[20.0 + shift, 20.0, 16.0, 16.0]]
    targets = teacher_of(TWO).add_targets(PIXELS, targets_of(annotated, [False, True]))
    assert len(targets.boxes_cxcywh) == 1 + added
    assert targets.boxes_cxcywh[:1].tolist() == annotated


def test_classes_are_matched_and_the_background_stays_unknown_if_the_teacher_lacks_a_class():
    teacher = teacher_of(TWO, labels=(1,), teacher_labels=(2,))
    assert not teacher.knows_all_classes
    targets = teacher.add_targets(PIXELS, targets_of([], [True, False]))
    assert targets.labels.tolist() == [1]
    assert targets.boxes_known.tolist() == [True, False]
    assert targets.unsure_images is None
    assert targets.soft_labels.tolist() == [[0, 1, 0]]


def test_other_annotations_of_added_boxes_are_unknown():
    annotated = replace(
        targets_of([[50.0, 20.0, 8.0, 8.0]], [False, True]),
        keypoints=torch.ones(1, 2, 3),
        identities=torch.tensor([4]),
        has_mask=torch.tensor([True]),
    )
    targets = teacher_of(TWO).add_targets(PIXELS, annotated)
    assert (targets.keypoints[1, :, 2] == -1).all()
    assert targets.identities.tolist() == [4, -1]
    assert targets.has_mask.tolist() == [True, False]


def test_class_targets_are_half_label_and_half_teacher_where_the_teacher_detects_the_object():
    boxes = [CONFIDENT, [50.0, 20.0, 8.0, 8.0]]
    targets = teacher_of(TWO).add_targets(PIXELS, targets_of(boxes, None))
    assert targets.soft_labels.tolist() == [pytest.approx([0.5 + 0.5 / 9, 0, 0.5 * 8 / 9]), [1, 0, 0]]
    unknown_label = teacher_of(TWO, labels=(1, 2), teacher_labels=(1, 2)).add_targets(PIXELS, targets_of(boxes, None))
    assert unknown_label.soft_labels.tolist() == [[1, 0, 0]] * 2


def test_a_teacher_without_a_detection_changes_no_label():
    blind = KnownBoxes([CONFIDENT], [[0.05, 0.0, 0.0]])
    targets = teacher_of(blind).add_targets(PIXELS, targets_of([CONFIDENT], [False, True]))
    assert targets.soft_labels.tolist() == [[1, 0, 0]]
    assert len(targets.unsure_images) == 0


def test_unsure_boxes_are_resized_with_the_image():
    targets = teacher_of(TWO).add_targets(PIXELS, targets_of([], [True, False])).resize(2.0, 128)
    assert targets.unsure_cxcywh.tolist() == [[2 * number for number in UNSURE]]


@pytest.mark.parametrize("head", ["anchors", "free"])
def test_the_background_is_learned_except_where_the_teacher_is_unsure(head):
    torch.manual_seed(0)
    network = Yolor(replace(SMALL, head=head), 3, ANCHORS if head == "anchors" else None)
    targets = teacher_of(TWO).add_targets(PIXELS, targets_of([], [True, False]))
    raw = network(PIXELS)
    [gradient] = torch.autograd.grad(sum(loss_terms(raw, targets, network, LossConfig()).values()), [raw["detect"][0]])
    learns = (gradient[..., 4:] != 0).any(dim=-1).any(dim=1)
    # The cells of 8 px whose centres lie in the unsure box of the second image.
    expected = torch.ones(2, 8, 8, dtype=torch.bool)
    expected[1, 5:7, 5:7] = False
    assert torch.equal(learns, expected)


@pytest.mark.parametrize("head", ["anchors", "free"])
def test_boxes_are_learned_where_the_background_is_unknown(head):
    torch.manual_seed(0)
    network = Yolor(replace(SMALL, head=head), 3, ANCHORS if head == "anchors" else None)
    raw = network(PIXELS)
    targets = targets_of([CONFIDENT], [False, False])
    [gradient] = torch.autograd.grad(sum(loss_terms(raw, targets, network, LossConfig()).values()), [raw["detect"][0]])
    learns = (gradient[..., 4:] != 0).any(dim=-1).any(dim=1)
    assert 0 < learns[0].sum() <= 9
    assert not learns[1].any()


@pytest.mark.parametrize("head", ["anchors", "free"])
def test_a_soft_label_lowers_the_class_of_the_label_and_raises_that_of_the_teacher(head):
    torch.manual_seed(0)
    network = Yolor(replace(SMALL, head=head), 3, ANCHORS if head == "anchors" else None)
    raw = [level.detach().requires_grad_() for level in network(PIXELS)["detect"]]
    soft = torch.tensor([[0.6, 0.0, 0.4]])
    hard_targets = targets_of([CONFIDENT], None)

    def class_gradient(targets: Targets) -> Tensor:
        terms = loss_terms({"detect": raw}, targets, network, LossConfig())
        return torch.autograd.grad(terms["cls"], raw[0])[0][..., -3:].sum(dim=(0, 1, 2, 3))

    hard, mixed = class_gradient(hard_targets), class_gradient(replace(hard_targets, soft_labels=soft))
    assert mixed[0] > hard[0] and mixed[2] < hard[2]
    assert mixed[1] == pytest.approx(hard[1].item(), abs=1e-6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of unfused weights of the classes cat and square, at 64 px."""
    url = str(tmp_path_factory.mktemp("weights") / "unfused")
    torch.manual_seed(0)
    save_weights(url, Yolor(SMALL, 2, ANCHORS).eval(), WeightsInfo("test", ("cat", "square"), 64))
    return url


def test_fused_and_unfused_weights_teach_the_same(weights: str, tmp_path: Path) -> None:
    network, info = load_weights(weights)
    save_weights(str(tmp_path / "fused"), fuse(network), info)
    teachers = [load_teacher(url, ("nothing", "square"), 64, torch.device("cpu")) for url in (weights, str(tmp_path / "fused"))]
    for teacher in teachers:
        assert is_fused(teacher.network)
        assert (teacher.labels.tolist(), teacher.teacher_labels.tolist(), teacher.classes) == ([1], [1], 2)
    first, second = (teacher.network(PIXELS)["detect"] for teacher in teachers)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weights_that_cannot_teach_are_refused(weights: str) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(WeightsError, match="found weights of the classes cat, square, expected a teacher of some of dog"):
        load_teacher(weights, ("dog",), 64, cpu)
    with pytest.raises(ConfigError, match=r"data\.image_px, for optim\.teacher .*: found 72, expected a multiple of .* 16"):
        load_teacher(weights, ("cat",), 72, cpu)


def unlabelled(record: Record) -> Record:
    return replace(record, objects=objects_from_boxes(np.zeros((0, 4)), np.zeros(0)), tasks=())


def pack_squares(folder: Path) -> tuple[Dataset, Dataset]:
    """Pack squares, and the same images without annotations."""
    records = [square_record(index) for index in range(24)]
    return pack(str(folder / "annotated"), [records]), pack(str(folder / "unlabelled"), [[unlabelled(record) for record in records]])


@pytest.mark.parametrize("head", ["anchors", "free"])
def test_training_data_without_a_box_needs_a_teacher_of_all_classes(head: str, weights: str, tmp_path: Path) -> None:
    annotated, empty = pack_squares(tmp_path)
    config = tiny_run(tmp_path, "run")
    config = replace(config, network=replace(TINY, head=head), data=replace(config.data, train=empty.url, val=annotated.url))
    with pytest.raises(
        DataError, match=r"found annotations for no task, expected some for network\.tasks: detect too, or optim\.teacher for detect"
    ):
        prepare(config, str(tmp_path / "run"))
    taught = replace(config, optim=replace(config.optim, teacher=weights))
    with pytest.raises(DataError, match=r"found no box, and no class nothing in .*; expected a teacher of all classes"):
        prepare(taught, str(tmp_path / "run"))
    backgrounds = pack(
        str(tmp_path / "backgrounds"), [[replace(unlabelled(square_record(index)), tasks=("detect",)) for index in range(3)]]
    )
    taught = replace(taught, data=replace(taught.data, train=backgrounds.url))
    with pytest.raises(DataError, match="found no box to learn on 3 images, all annotated for detect, expected"):
        prepare(taught, str(tmp_path / "run"))


def test_a_student_learns_from_images_without_any_annotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(WhiteBox(), labels=(0, 1), teacher_labels=(0, 1), classes=2)
    teacher.network.backbone, teacher.network.neck = nn.Identity(), nn.Identity()
    teacher.network.head.forward = lambda pixels: [pixels]
    for module in ("datasets.boxes", "context"):
        monkeypatch.setattr(f"yolor_ray.train.{module}.load_teacher", lambda *_: teacher)
    annotated, empty = pack_squares(tmp_path)
    config = tiny_run(tmp_path, "run")
    config = replace(
        config,
        network=SMALL,
        data=DataConfig(train=empty.url, val=annotated.url, image_px=64, allow_shared_images=True),
        augment=AugmentConfig(mosaic=0, scale=0, hue=0, saturation=0, value=0),
        optim=OptimConfig(epochs=15, batch=8, nominal_batch=8, lr=0.01, teacher="white"),
        run=replace(config.run, validate_epochs=15, checkpoint_epochs=15),
    )
    assert train(config)["metrics"]["AP50"] > 0.3


def test_a_taught_run_resumes_exactly_and_keeps_its_teacher(
    folder: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = str(uninterrupted / "weights")
    first, second = (tiny_run(folder, name) for name in ("taught", "taught-killed"))
    first, second = (replace(config, optim=replace(config.optim, teacher=teacher, epochs=2)) for config in (first, second))
    with caplog.at_level("INFO"):
        train(first)
    assert f"event=teacher url={teacher} images_without_boxes=0" in caplog.text
    train_until_killed(second, monkeypatch, 8)
    train(second)
    assert_equal_tensors(folder / "taught-killed", folder / "taught")
    with pytest.raises(ConfigError, match=r"optim\.teacher was '.*' and is now ''"):
        train(replace(second, optim=replace(second.optim, teacher="")))
