"""Objects of VOC files without the usual <bndbox>: polygons, rotated boxes, interchanged edges, nested elements."""

import pytest

from yolor_ray.data.images.header import ImageHeader
from yolor_ray.data.rle import mask_area
from yolor_ray.pack.annotations.image_folder import ImageFolder
from yolor_ray.pack.annotations.normalize import normalize_objects
from yolor_ray.pack.annotations.voc import read_voc

BNDBOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
BOX = (10, 5, 30, 40)
POINTS = [(5, 5), (25, 5), (25, 25), (5, 25)]
NUMBERED = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(POINTS, 1))
POLYGON = f"<polygon>{NUMBERED}</polygon>"


@pytest.fixture
def read(tmp_path, write_image):
    """Read one XML file with these objects; return the image and the codes of faults."""

    def run(*objects: str, body: str = ""):
        write_image(tmp_path / "images" / "a.png")
        (tmp_path / "xml").mkdir(exist_ok=True)
        elements = "".join(f"<object><name>cat</name>{text}</object>\n" for text in objects)
        (tmp_path / "xml" / "a.xml").write_text(f"<annotation><filename>a.png</filename>\n{elements}{body}</annotation>")
        annotations = read_voc(ImageFolder(str(tmp_path / "images")), str(tmp_path / "xml"), classes=["cat"])
        return annotations.images[0], [fault.code for fault in annotations.faults]

    return run


def boxes(image) -> list[tuple]:
    return [obj.box for obj in image.objects]


@pytest.mark.parametrize(
    "inside",
    [
        NUMBERED,
        "".join(f"<x{i}>{x}</x{i}>" for i, (x, _) in enumerate(POINTS)) + "".join(f"<y{i}>{y}</y{i}>" for i, (_, y) in enumerate(POINTS)),
        "".join(f"<y{i}>{y}</y{i}><x{i}>{x}</x{i}>" for i, (x, y) in reversed(list(enumerate(POINTS, 1)))),
        "<username>me</username>" + "".join(f"<pt><x>{x}</x><y>{y}</y><time>7</time></pt>" for x, y in POINTS),
        "<points>" + "".join(f"<point>\n<x>{x}.0</x>\n<y>{y}.0</y></point>" for x, y in POINTS) + "</points>",
        "".join(f"<x>{x}</x><y>{y}</y>" for x, y in POINTS),
        "<points>" + ";".join(f"{x}.0,{y}.0" for x, y in POINTS) + "</points>",
        " ".join(f"{x} {y}" for x, y in POINTS),
        "".join(f"<pt>{x}, {y}</pt>" for x, y in POINTS),
    ],
    ids=["numbered", "x then y", "y before x, reversed", "LabelMe", "points", "x and y", "text of points", "text", "text of each point"],
)
def test_the_bounds_of_a_polygon_are_the_box(read, inside):
    image, codes = read(f"<polygon>{inside}</polygon>")
    assert (boxes(image), codes) == ([(5, 5, 25, 25)], [])
    objects, faults = normalize_objects(image, ImageHeader("PNG", 64, 48, 1))
    assert [mask_area(mask, 64, 48) for mask in objects.masks] == [400]
    assert faults == []


def test_twelve_numbered_points_keep_their_order(read):
    points = [(5 + i, 5 if i % 2 else 9) for i in range(11)] + [(10, 30)]
    image, _ = read("<polygon>" + "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(points, 1)) + "</polygon>")
    assert image.objects[0].mask == [[value for point in points for value in point]]


def test_a_box_beside_a_polygon_is_the_box_and_the_polygon_the_mask(read):
    image, codes = read(BNDBOX + POLYGON)
    assert (boxes(image), codes, image.tasks) == ([BOX], [], ("detect", "segment"))
    assert image.objects[0].mask == [[5, 5, 25, 5, 25, 25, 5, 25]]


def test_polygons_of_some_objects_alone_are_no_masks(read):
    image, codes = read(POLYGON, BNDBOX)
    assert (boxes(image), codes, image.tasks) == ([(5, 5, 25, 25), BOX], [], ("detect",))
    assert [obj.mask for obj in image.objects] == [None, None]


@pytest.mark.parametrize(
    "numbers", ["", "<x1>5</x1><y1>5</y1>", NUMBERED + "<x5>7</x5>", NUMBERED.replace("25", "5"), NUMBERED.replace("25", "x")]
)
def test_an_unreadable_polygon_is_reported(read, numbers):
    image, codes = read(f"<polygon>{numbers}</polygon>")
    assert (boxes(image), codes) == ([], ["missing_box"])


@pytest.mark.parametrize(
    ("edges", "box"),
    [
        ((30, 6, 11, 40), (10, 5, 30, 40)),
        ((11, 40, 30, 6), (10, 5, 30, 40)),
        ((30.5, 40.25, 11.5, 6.5), (10.5, 5.5, 30.5, 40.25)),
    ],
)
def test_interchanged_edges_are_put_in_order_with_a_fault(read, edges, box):
    xmin, ymin, xmax, ymax = edges
    image, codes = read(f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>")
    assert (boxes(image), codes) == ([box], ["swapped_corners"])


@pytest.mark.parametrize(
    "bndbox",
    [
        "<bndbox><ymax>40</ymax><xmax>30</xmax><ymin>6</ymin><xmin>11</xmin></bndbox>",
        "<bndbox>\n<xmin> 11.0 </xmin><xmax>3e1</xmax><ymin>6</ymin><ymax>40.000</ymax></bndbox>",
        "<BndBox><XMin>11</XMin><YMin>6</YMin><XMax>30</XMax><YMax>40</YMax></BndBox>",
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>" + BNDBOX,
    ],
    ids=["order", "floats", "case", "part"],
)
def test_the_box_is_read_in_any_order_and_case_and_not_from_parts(read, bndbox):
    image, codes = read(bndbox)
    assert (boxes(image), codes) == ([BOX], [])


@pytest.mark.parametrize("name", ["", "<name></name>", "<name> </name>", "<part><name>head</name></part>"])
def test_an_object_without_name_is_reported(read, name):
    image, codes = read(BNDBOX, body=f"<object>{name}{BNDBOX}</object>")
    assert (boxes(image), codes) == ([BOX], ["missing_class"])


def test_a_part_alone_is_no_box(read):
    image, codes = read(f"<part><name>head</name>{BNDBOX}</part>")
    assert (boxes(image), codes) == ([], ["missing_box"])


def test_objects_inside_of_another_element_are_objects(read):
    image, codes = read(body=f"<objects><object><name>cat</name>{BNDBOX}</object></objects>")
    assert (boxes(image), codes) == ([BOX], [])


@pytest.mark.parametrize(
    ("angle", "box"), [("0", (10, 14, 50, 34)), ("1.5707963267948966", (20, 4, 40, 44)), ("3.14159265", (10, 14, 50, 34))]
)
def test_a_rotated_box_has_the_box_around_it(read, angle, box):
    image, codes = read(f"<type>robndbox</type><robndbox><cx>30</cx><cy>24</cy><w>40</w><h>20</h><angle>{angle}</angle></robndbox>")
    assert boxes(image)[0] == pytest.approx(box, abs=1e-4)
    assert codes == []


def test_a_square_turned_by_45_degrees_is_as_wide_as_its_diagonal(read):
    image, _ = read("<robndbox><cx>30</cx><cy>24</cy><w>10</w><h>10</h><angle>0.7853981633974483</angle></robndbox>")
    assert boxes(image)[0] == pytest.approx((30 - 50**0.5, 24 - 50**0.5, 30 + 50**0.5, 24 + 50**0.5))


@pytest.mark.parametrize(
    ("w", "angle", "code"), [("0", "0", "zero_area_box"), ("-9", "0", "missing_box"), ("x", "0", "not_a_number"), ("9", "", "not_a_number")]
)
def test_a_broken_rotated_box_is_reported(read, w, angle, code):
    image, codes = read(f"<robndbox><cx>30</cx><cy>24</cy><w>{w}</w><h>20</h><angle>{angle}</angle></robndbox>")
    assert (boxes(image), codes) == ([], [code])


def test_four_corners_of_a_rotated_box_have_the_box_around_them(read):
    corners = zip(("x_left_top", "x_right_top", "x_right_bottom", "x_left_bottom"), ((20, 5), (40, 15), (30, 35), (10, 25)), strict=True)
    text = "".join(f"<{tag}>{x}</{tag}><{tag.replace('x', 'y', 1)}>{y}</{tag.replace('x', 'y', 1)}>" for tag, (x, y) in corners)
    image, codes = read(f"<robndbox>{text}</robndbox>")
    assert (boxes(image), codes) == ([(10, 5, 40, 35)], [])


@pytest.mark.parametrize("bndbox", [BNDBOX.replace("11", "x"), BNDBOX.replace("11", "30"), BNDBOX.replace("<xmin>11</xmin>", "")])
def test_a_polygon_takes_the_place_of_a_broken_box_with_a_fault(read, bndbox):
    image, codes = read(bndbox + POLYGON)
    assert (boxes(image), codes) == ([(5, 5, 25, 25)], ["box_from_mask"])


@pytest.mark.parametrize("tag", ["points", "segmentation", "segm"])
def test_points_in_other_elements_are_polygons_too(read, tag):
    image, faults = read(f"<{tag}>{NUMBERED}</{tag}>")
    assert (boxes(image), faults) == ([(5, 5, 25, 25)], [])
    assert image.objects[0].mask is not None


@pytest.mark.parametrize("form", ["{0}{1}", "<segm>{0}{1}</segm>"])
def test_an_object_of_several_polygons_is_one_object_with_all_pieces(read, form):
    second = "<polygon>" + "".join(f"<pt><x>{x + 30}</x><y>{y + 10}</y></pt>" for x, y in POINTS) + "</polygon>"
    image, faults = read(form.format(POLYGON, second))
    assert (boxes(image), faults) == ([(5, 5, 55, 35)], [])
    assert len(image.objects[0].mask) == 2


@pytest.mark.parametrize("body", [f"<obj><name>dog</name>{BNDBOX}</obj>", BNDBOX, f"<items><item>{POLYGON}</item></items>"])
def test_a_shape_outside_of_any_object_is_an_object_that_cannot_be_read(read, body):
    image, faults = read(BNDBOX, body=body)
    assert (boxes(image), faults) == ([BOX], ["missing_class"])


def test_an_object_with_two_boxes_is_unknown(read):
    image, faults = read(BNDBOX, BNDBOX + BNDBOX.replace("30", "31"))
    assert (boxes(image), faults) == ([BOX], ["missing_box"])


def test_a_deleted_object_of_labelme_is_no_object(read):
    image, faults = read(f"<deleted>1</deleted>{POLYGON}", f"<deleted>0</deleted>{BNDBOX}")
    assert (boxes(image), faults) == ([BOX], [])


def test_an_object_inside_of_another_is_an_object_of_its_own(read):
    image, faults = read(f"{BNDBOX}<object><name>cat</name>{POLYGON}</object>")
    assert (boxes(image), faults) == ([BOX, (5, 5, 25, 25)], [])
