"""Decoding of files as cameras and editors write them; Pillow writes the files, and its reader is the oracle for plain files."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

import pictures
from pictures import code_of, distance, encode, with_exif
from yolor_ray.data.images.decode import FILL, decode
from yolor_ray.data.images.header import read_header

LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF")


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_format_decodes_to_the_written_pixels(name, photo):
    data = encode(photo, name)
    assert np.array_equal(decode(data), photo)
    header = read_header(data)
    assert (header.format, header.width, header.height, header.orientation) == (name, 96, 64, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}])
def test_a_jpeg_decodes_to_the_pixels_that_pillow_reads(options, photo):
    data = encode(photo, "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert distance(decode(data), np.asarray(image)) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_of_a_photo_gives_the_same_pixels_and_the_displayed_size(name, orientation, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(pictures.stored(Image.fromarray(photo), orientation), name, exif=exif)
    header = read_header(data)
    assert (header.width, header.height, header.orientation) == (96, 64, orientation)
    assert distance(decode(data), photo) < (1.5 if name == "JPEG" else 0.01)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_a_scaled_jpeg_is_turned_upright(orientation, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = Image.fromarray(photo).resize((960, 640))
    stored = pictures.stored(large, orientation)
    scaled = decode(encode(stored, "JPEG", exif=exif), fit_px=240)
    assert scaled.shape == (160, 240, 3)
    assert distance(scaled, np.asarray(large.resize((240, 160), Image.Resampling.BOX))) < 1.5


def test_big_endian_exif_is_read(photo):
    block = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    assert read_header(with_exif(encode(photo, "JPEG"), block)).orientation == 6


@pytest.mark.parametrize("colour", [(230, 20, 30), (20, 200, 60), (10, 20, 220), (240, 240, 240), (30, 30, 30)])
def test_cmyk_and_ycck_jpegs_keep_their_colours(colour):
    image = Image.new("RGB", (32, 32), colour)
    inks = image.convert("CMYK")
    assert distance(decode(encode(inks, "JPEG")), np.uint8(colour)) < 3
    assert distance(decode(_ycck(inks)), np.uint8(colour)) < 3


def _ycck(inks: Image.Image) -> bytes:
    """Encode as Photoshop does: inverted inks, the first three of them converted to YCbCr, Adobe transform 2."""
    cyan, magenta, yellow, black = inks.split()
    ycc = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    # Pillow inverts all four planes on writing; Y, Cb and Cr must be stored uninverted.
    planes = [plane.point(lambda value: 255 - value) for plane in ycc]
    data = bytearray(encode(Image.merge("CMYK", (*planes, black)), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_one_bit_and_palette_are_expanded(mode, photo):
    image = Image.fromarray(photo).convert(mode)
    assert np.array_equal(decode(encode(image, "PNG")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_the_fill_colour(name, photo):
    alpha = np.zeros((64, 96), np.uint8)
    alpha[:, 32:64], alpha[:, 64:] = 128, 255
    decoded = decode(encode(np.dstack((photo, alpha)), name, **({"exact": True} if name == "WEBP" else {})))
    assert (decoded[:, :32] == FILL).all()
    assert distance(decoded[:, 32:64], photo[:, 32:64] * (128 / 255) + FILL * (127 / 255)) < 1
    assert np.array_equal(decoded[:, 64:], photo[:, 64:])


def test_grey_with_alpha_is_composited(photo):
    grey = np.dstack((photo[..., 0], np.where(np.arange(96) < 48, 0, 255) * np.ones((64, 1)))).astype(np.uint8)
    decoded = decode(encode(Image.fromarray(grey, "LA"), "PNG"))
    assert (decoded[:, :48] == FILL).all()
    assert np.array_equal(decoded[:, 48:], np.repeat(photo[:, 48:, :1], 3, axis=2))


@pytest.mark.parametrize("transparency", [1, bytes((255, 0))], ids=["one colour", "alpha per colour"])
def test_a_transparent_palette_is_composited(transparency):
    image = Image.fromarray(np.tile(np.uint8((0, 1)), (4, 8)), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    decoded = decode(encode(image, "PNG", transparency=transparency))
    assert (decoded[:, ::2] == (10, 20, 30)).all()
    assert (decoded[:, 1::2] == FILL).all()


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(name):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = decode(encode(ramp, name))
    assert np.array_equal(grey[..., 1], (ramp >> 8).astype(np.uint8))
    _, colour = cv2.imencode(f".{name.lower()}", np.dstack((ramp, ramp // 2, ramp // 4)))
    assert np.array_equal(decode(colour.tobytes())[..., ::-1], (np.dstack((ramp, ramp // 2, ramp // 4)) >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_known_range_are_refused_not_clipped(dtype):
    assert code_of(encode(np.full((8, 8), 1000, dtype), "TIFF")) == "unsupported_image"


@pytest.mark.parametrize("precision", [12, 16])
def test_a_jpeg_of_more_than_8_bits_is_refused(precision, photo):
    data = bytearray(encode(photo, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = precision
    assert code_of(bytes(data)) == "unsupported_image"


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "MPO"])
def test_only_the_first_frame_is_read(name, photo):
    first, second = Image.fromarray(photo), Image.fromarray(255 - photo)
    decoded = decode(encode(first, name, save_all=True, append_images=[second]))
    assert distance(decoded, photo) < (3 if name in ("WEBP", "MPO") else 0.01)
