from yolor_ray.data.shards.image_hashes import content_fraction, is_held_out

IMAGES = [str(number).encode() for number in range(2000)]


def test_an_image_is_on_the_same_side_for_ever():
    # SHA-256 of "abc" begins with ba7816bf8f01cfea.
    assert content_fraction(b"abc") == 0xBA7816BF8F01CFEA / 2**64
    assert is_held_out(b"abc", 0.73) and not is_held_out(b"abc", 0.72)


def test_a_share_of_the_images_is_held_out_and_a_smaller_share_is_a_part_of_a_larger_one():
    tenth, fifth = ({image for image in IMAGES if is_held_out(image, share)} for share in (0.1, 0.2))
    assert 160 <= len(tenth) <= 240 and 340 <= len(fifth) <= 460
    assert tenth < fifth
    assert not any(is_held_out(image, 0) for image in IMAGES) and all(is_held_out(image, 1) for image in IMAGES)
