"""RLE of masks, compared with pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from yolor_ray.data.rle import decode_mask, decode_runs, encode_crop, encode_mask, encode_polygons, encode_runs, mask_area, mask_spans

# pycocotools itself is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@st.composite
def masks(draw) -> np.ndarray:
    """Masks of 1 to 12 cells a side; cells of up to 40 pixels give runs whose numbers take several characters."""
    cells = draw(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
    rows, columns = draw(st.tuples(st.integers(1, 40), st.integers(1, 3)))
    return cells.repeat(rows, axis=0).repeat(columns, axis=1)


def coco_encode(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@given(masks())
def test_a_mask_is_encoded_and_decoded_as_by_pycocotools(mask):
    height, width = mask.shape
    counts = coco_encode(mask)
    assert encode_mask(mask) == counts
    decoded = decode_mask(counts, width, height)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, coco_mask.decode({"size": [height, width], "counts": counts}))
    assert mask_area(counts, width, height) == mask.sum()


@given(masks())
def test_runs_alternate_outside_and_inside_and_survive_a_round_trip(mask):
    height, width = mask.shape
    runs = decode_runs(encode_mask(mask))
    assert runs.dtype == np.int64
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.T.ravel())
    assert encode_runs(runs, width, height) == encode_runs(runs.tolist(), width, height) == encode_mask(mask)


@given(st.lists(st.integers(0, 2**28), max_size=50))
def test_any_numbers_are_decoded_as_pycocotools_encodes_them(runs):
    assert decode_runs(encode_runs(runs, 1, sum(runs))).tolist() == runs


@given(st.lists(masks(), max_size=5))
def test_spans_of_many_masks_are_the_pixels_inside_each(drawn):
    mask_index, starts, ends = mask_spans([encode_mask(mask) for mask in drawn])
    assert len(mask_index) == len(starts) == len(ends)
    for index, mask in enumerate(drawn):
        spans = zip(starts[mask_index == index], ends[mask_index == index], strict=True)
        pixels = [pixel for start, end in spans for pixel in range(start, end)]
        assert pixels == np.flatnonzero(mask.T).tolist()


def test_a_mask_without_runs_has_no_spans():
    assert [len(values) for values in mask_spans([b"", encode_mask(np.ones((2, 2), bool)), b""])] == [1, 1, 1]
    assert decode_runs(b"").tolist() == []


@given(masks(), st.tuples(*[st.integers(0, 3)] * 4))
def test_a_crop_is_encoded_like_the_image_around_it(crop, margins):
    left, top, right, bottom = margins
    image = np.pad(crop, ((top, bottom), (left, right)))
    height, width = image.shape
    assert encode_crop(crop.T, left, top, width, height) == encode_mask(image)


def test_a_crop_without_pixels_is_an_empty_mask():
    for shape in ((0, 0), (0, 3), (3, 0)):
        assert encode_crop(np.zeros(shape, bool), 1, 2, 8, 6) == encode_mask(np.zeros((6, 8), bool))


@given(st.lists(hnp.arrays(np.float64, (4, 2), elements=st.floats(-5, 45)), min_size=1, max_size=3))
def test_polygons_are_united(corners):
    polygons = [polygon.ravel().tolist() for polygon in corners]
    single = [decode_mask(encode_polygons([polygon], 30, 40), 30, 40) for polygon in polygons]
    assert np.array_equal(decode_mask(encode_polygons(polygons, 30, 40), 30, 40), np.logical_or.reduce(single))
    assert encode_polygons(polygons, 30, 40) == coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 30))["counts"]
