"""Every record of a union is a record of a member, relabelled to the names of the union."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from yolor_ray.data.rle import encode_runs
from yolor_ray.data.shards.dataset import Dataset, dataset_digest, encode_shard, open_dataset, read_row_group, to_records, write_dataset
from yolor_ray.data.shards.records import Objects, Record
from yolor_ray.data.shards.relabel import apply_mapping
from yolor_ray.data.shards.union import open_datasets, relabel_to, unite
from yolor_ray.errors import DataError
from yolor_ray.io import storage

NAMES = {
    "cats": {"classes": ("cat", "dog"), "image_classes": ("wet", "dry"), "keypoint_names": ("nose", "tail")},
    "dogs": {"classes": ("dog", "ant", "cat"), "image_classes": ("dry", "hot"), "keypoint_names": ("ear", "nose", "paw")},
    "cars": {"classes": ("car",), "image_classes": (), "keypoint_names": ()},
}
TASKS = {"cats": ("detect", "pose"), "dogs": ("classify", "detect"), "cars": ("detect",)}


def make_record(member: str, number: int) -> Record:
    """Make a record: by its number with or without objects, masks, keypoints and identities."""
    rng = np.random.default_rng((len(member), ord(member[0]), number))
    names, count = NAMES[member], number % 4
    keypoint_count = len(names["keypoint_names"])
    objects = Objects(
        boxes_xyxy=np.sort(rng.random((count, 4), np.float32), axis=1),
        labels=rng.integers(0, len(names["classes"]), count),
        crowd=rng.random(count) < 0.3,
        areas=rng.random(count, np.float32),
        masks=None if number % 3 else tuple(encode_runs([value, 64 * 48 - value], 64, 48) for value in rng.integers(0, 99, count)),
        keypoints=rng.integers(0, 3, (count, keypoint_count, 3)).astype(np.float32) if keypoint_count and number % 5 else None,
        identities=rng.integers(-1, 5, count) if number % 7 else None,
    )
    labels = np.flatnonzero(rng.random(len(names["image_classes"])) < 0.5)
    return Record(f"{number}.jpg", rng.bytes(300), 64, 48, objects, labels, TASKS[member], number % 3 - 1)


def write_member(folder: str, member: str, count: int) -> Dataset:
    made = [make_record(member, number) for number in range(count)]
    encoded = [encode_shard(made[:70], 0), encode_shard(made[70:], 1)] if count > 70 else [encode_shard(made, 0)]
    for data, shard in encoded:
        storage.write_bytes(storage.join(folder, shard.name), data)
    shards = tuple(shard for _, shard in encoded)
    labels = np.concatenate([record.objects.labels for record in made])
    names = NAMES[member]
    boxes = {name: int((labels == label).sum()) for label, name in enumerate(names["classes"])}
    digest = dataset_digest(shards, *names.values())
    dataset = Dataset(folder, *names.values(), TASKS[member], count, len(labels), boxes, shards, digest, {"bad_line": 1})
    write_dataset(dataset)
    return dataset


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("union")
    for member, count in (("cats", 100), ("dogs", 10), ("cars", 6)):
        write_member(str(root / member), member, count)
    return {member: str(root / member) for member in NAMES}


@pytest.fixture(scope="module")
def union(folders) -> Dataset:
    return open_datasets(",".join(folders.values()))


def test_names_are_united_in_the_order_of_their_first_appearance(union, folders):
    assert union.classes == ("cat", "dog", "ant", "car")
    assert union.image_classes == ("wet", "dry", "hot")
    assert union.keypoint_names == ("nose", "tail", "ear", "paw")
    assert union.tasks == ("classify", "detect", "pose")
    members = [open_dataset(folder) for folder in folders.values()]
    assert union.members == tuple(members)
    assert (union.images, union.boxes) == (116, sum(member.boxes for member in members))
    assert union.boxes_per_class == {name: sum(m.boxes_per_class.get(name, 0) for m in members) for name in union.classes}
    assert union.faults == {"bad_line": 3}


def test_row_groups_number_records_consecutively_over_the_members(union):
    numbered = [(group.member, group.first_record, group.rows) for group in union.row_groups]
    assert numbered == [(0, 0, 64), (0, 64, 6), (0, 70, 30), (1, 100, 10), (2, 110, 6)]


def test_every_record_keeps_its_meaning_in_the_names_of_the_union(union):
    """Compare by names, value by value, with the records that were written."""
    for group in union.row_groups:
        member, first = list(NAMES)[group.member], {0: 0, 1: 100, 2: 110}[group.member]
        for number, record in enumerate(to_records(read_row_group(union, group)), start=group.first_record - first):
            assert_same_meaning(record, make_record(member, number), union, member, group.member)


def assert_same_meaning(record: Record, written: Record, union: Dataset, member: str, number: int) -> None:
    names = NAMES[member]
    # Cameras of different members are different cameras.
    camera = written.camera if written.camera < 0 else written.camera + number * 2**40
    assert replace(record, objects=None, image_labels=None) == replace(written, objects=None, image_labels=None, camera=camera)
    assert [union.image_classes[i] for i in record.image_labels] == [names["image_classes"][i] for i in written.image_labels]
    objects, written_objects = record.objects, written.objects
    assert [union.classes[i] for i in objects.labels] == [names["classes"][i] for i in written_objects.labels]
    for name in ("boxes_xyxy", "crowd", "areas"):
        assert np.array_equal(getattr(objects, name), getattr(written_objects, name))
    assert objects.masks == written_objects.masks
    assert (objects.identities is None) == (written_objects.identities is None)
    if written_objects.identities is not None:
        assert objects.identities.tolist() == [-1 if i < 0 else i + number * 2**40 for i in written_objects.identities.tolist()]
    assert (objects.keypoints is None) == (written_objects.keypoints is None)
    if written_objects.keypoints is not None and len(written_objects.keypoints):
        assert objects.keypoints.shape == (len(written_objects.keypoints), 4, 3)
        for index, name in enumerate(union.keypoint_names):
            unknown = np.array([[0, 0, -1]] * len(written_objects.keypoints))
            is_known = name in names["keypoint_names"]
            expected = written_objects.keypoints[:, names["keypoint_names"].index(name)] if is_known else unknown
            assert np.array_equal(objects.keypoints[:, index], expected)


def test_a_subset_of_columns_of_a_union_can_be_read(union):
    table = read_row_group(union, union.row_groups[3], ["name", "labels", "boxes_xyxy"])
    assert set(table.column_names) == {"name", "labels", "boxes_xyxy"}
    all_columns = read_row_group(union, union.row_groups[3])
    assert table["labels"].equals(all_columns["labels"])
    assert read_row_group(union, union.row_groups[3], ["width"]).column_names == ["width"]


def test_relabelled_tables_keep_their_schema_and_share_the_encoded_images(union):
    group = union.row_groups[3]
    original = read_row_group(union.members[1], group)
    relabelled = apply_mapping(original, union.mapping_of(1))
    assert relabelled.schema.equals(original.schema)
    relabelled.validate(full=True)
    addresses, original_addresses = ([b.address for b in table["image"].chunk(0).buffers() if b] for table in (relabelled, original))
    assert addresses == original_addresses
    assert apply_mapping(original.slice(3, 4), union.mapping_of(1)).equals(relabelled.slice(3, 4))


def test_a_union_knows_the_image_classes_of_each_member(union):
    assert [union.image_classes_of(member).tolist() for member in range(3)] == [[True, True, False], [False, True, True], [False] * 3]
    single = union.members[1]
    assert single.image_classes_of(0).tolist() == [True, True]


def test_a_union_knows_the_object_classes_of_each_member(union):
    known = [[True, True, False, False], [True, True, True, False], [False, False, False, True]]
    assert [union.classes_of(member).tolist() for member in range(3)] == known
    assert union.members[1].classes_of(0).tolist() == [True] * 3


def test_images_of_a_member_without_classes_are_background_for_all_classes(union):
    nothing = replace(union.members[2], classes=(), boxes_per_class={}, boxes=0)
    assert unite([union.members[0], nothing]).classes_of(1).tolist() == [True, True]


def test_one_url_opens_the_dataset_itself_and_a_union_can_be_pickled(union, folders):
    assert open_datasets(folders["dogs"]) == open_dataset(folders["dogs"])
    sent = pickle.loads(pickle.dumps(union))
    assert sent == union
    assert read_row_group(sent, sent.row_groups[4]).equals(read_row_group(union, union.row_groups[4]))


def test_a_task_receives_the_shard_of_its_row_group_alone(union):
    for group in union.row_groups:
        sent = pickle.loads(pickle.dumps(union.with_shard_of(group)))
        assert [shard.name for member in sent.members for shard in member.shards] == [group.shard]
        assert read_row_group(sent, group).equals(read_row_group(union, group))


def test_the_digest_depends_on_the_members_and_their_order(union):
    cats, dogs, cars = union.members
    digests = {unite(members).digest for members in ([cats, dogs, cars], [dogs, cats, cars], [cats, dogs], [cats, cars])}
    assert len(digests) == 4
    assert union.digest in digests


def test_a_member_named_twice_or_not_at_all_is_refused(folders):
    cats, dogs = folders["cats"], folders["dogs"]
    with pytest.raises(DataError, match=rf"found {cats} more than once, expected each dataset once"):
        open_datasets(f"{cats},{dogs}, {cats}/")
    with pytest.raises(DataError, match="found no URL before or after a comma"):
        open_datasets(f"{cats},")
    with pytest.raises(DataError, match=r"gone/dataset\.json: not found"):
        open_datasets(f"{cats},{cats}/gone")


def test_a_dataset_is_relabelled_to_the_names_of_weights_with_more_classes(folders):
    dogs, names = open_dataset(folders["dogs"]), open_datasets(f"{folders['cats']},{folders['dogs']}")
    relabelled = relabel_to(dogs, names)
    assert (relabelled.classes, relabelled.image_classes, relabelled.keypoint_names) == (
        names.classes,
        names.image_classes,
        names.keypoint_names,
    )
    for group in dogs.row_groups:
        originals, changed = (to_records(read_row_group(dataset, group)) for dataset in (dogs, relabelled))
        for original, record in zip(originals, changed, strict=True):
            assert [relabelled.classes[i] for i in record.objects.labels] == [dogs.classes[i] for i in original.objects.labels]
            assert [relabelled.image_classes[i] for i in record.image_labels] == [dogs.image_classes[i] for i in original.image_labels]
    assert relabel_to(dogs, dogs) is dogs
    with pytest.raises(DataError, match=r"found classes dog, ant, expected some of cat|found classes .*ant.*, expected some of cat, dog"):
        relabel_to(dogs, open_dataset(folders["cats"]))
