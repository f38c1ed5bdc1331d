"""Whatever the file is, an upright RGB picture comes out, or an ImageError that names it."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from beni.data import images
from beni.data.augment import jitter
from beni.data.images import blank_image, draw, image_size, load_image, mean_colour, to_pixels
from beni.errors import DataError, ImageError
from beni.sample import ImageRef
from beni.types import Box, Crop, EncoderSpec, Size
from tests.conftest import MakePicture

SPEC = EncoderSpec(Size(8, 8), stride=4, width=4, mean=(0.5, 0.25, 0.75), std=(0.5, 0.25, 0.125))


def encoded(image: Image.Image, kind: str, **options: object) -> ImageRef:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return ImageRef(data=file.getvalue())


def claims(width: int, height: int) -> bytes:
    """A small PNG whose header says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone_and_known_from_the_header(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (30, 20), "red")
    upright.paste("blue", (0, 0, 10, 8))  # a corner, so that every orientation is another picture
    undo = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    undo |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    undo |= {8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    ref = encoded(stored, kind, exif=exif)
    picture = load_image(ref)
    assert picture.size == (30, 20) == image_size(ref)
    assert picture.getpixel((4, 3))[2] > 200 and picture.getpixel((25, 15))[0] > 200  # type: ignore[index]


def transparent_palette() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 1), 1)
    return image


GREY_16 = Image.fromarray(np.array([[0, 32768, 65535, 200]], dtype=np.uint16))
MODES = {
    "palette": (encoded(transparent_palette(), "png"), {(0, 0): (255, 0, 0), (1, 1): (0, 0, 255)}),
    "transparent palette": (
        encoded(transparent_palette(), "png", transparency=0),
        {(0, 0): (255,) * 3, (1, 1): (0, 0, 255)},
    ),
    "RGBA": (encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "png"), {(0, 0): (255,) * 3}),
    "half RGBA": (encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51)), "png"), {(0, 0): (255, 204, 204)}),
    "LA": (encoded(Image.new("LA", (2, 2), (0, 0)), "png"), {(1, 1): (255,) * 3}),
    "RGB with a transparent colour": (
        encoded(Image.new("RGB", (2, 2), (9, 8, 7)), "png", transparency=(9, 8, 7)),
        {(0, 0): (255,) * 3},
    ),
    "CMYK": (encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "tiff"), {(0, 0): (255, 0, 0)}),
    "16-bit grey": (
        encoded(GREY_16, "png"),
        {(0, 0): (0,) * 3, (1, 0): (127,) * 3, (2, 0): (255,) * 3, (3, 0): (0,) * 3},
    ),
    "dark 16-bit grey": (encoded(Image.fromarray(np.array([[255]], dtype=np.uint16)), "png"), {(0, 0): (0,) * 3}),
    "16-bit grey tiff": (encoded(GREY_16, "tiff"), {(1, 0): (127,) * 3, (2, 0): (255,) * 3}),
    "float grey": (
        encoded(Image.fromarray(np.array([[0.0, 1.0, np.nan]], dtype=np.float32)), "tiff"),
        {(1, 0): (255,) * 3},
    ),
    "1-bit": (encoded(Image.new("1", (2, 2), 1), "png"), {(0, 0): (255,) * 3}),
    "grey": (encoded(Image.new("L", (2, 2), 77), "png"), {(0, 0): (77,) * 3}),
    "animated": (
        encoded(Image.new("P", (3, 3)), "gif", save_all=True, append_images=[Image.new("RGB", (3, 3), "white")]),
        {(0, 0): (0,) * 3},
    ),
    "1x5000": (encoded(Image.new("RGB", (1, 5000), "green"), "png"), {(0, 4999): (0, 128, 0)}),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(name: str) -> None:
    ref, expected = MODES[name]
    picture = load_image(ref)
    assert picture.mode == "RGB" and picture.size == image_size(ref)
    assert {at: picture.getpixel(at) for at in expected} == expected


def test_what_is_no_image_is_refused_by_name(tmp_path: Path, picture: MakePicture) -> None:
    whole = picture(1).data
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    wanted = {
        "cut.png": "damaged",
        "text.png": "not in any image format",
        "empty.png": "not in any image format",
        "folder.png": "cannot be read",
        "gone.png": "no image",
    }
    for name, reason in wanted.items():
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(ImageRef(path=str(tmp_path / name)))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
        if name != "cut.png":
            with pytest.raises(ImageError):
                image_size(ImageRef(path=str(tmp_path / name)))
    assert image_size(ImageRef(path=str(tmp_path / "cut.png"))) == (24, 16)  # headers are enough


def test_a_reference_is_to_exactly_one_image() -> None:
    for wrong in ({}, {"data": b""}, {"path": "a", "url": "http://b"}):
        with pytest.raises(DataError, match="exactly one"):
            ImageRef(**wrong)


@pytest.mark.parametrize("side", [8_100, 9_600, 50_000])  # beyond ours; where PIL warns; where PIL refuses
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for look in (image_size, load_image):
            with pytest.raises(ImageError, match="more than the 64,000,000"):
                look(ImageRef(data=claims(side, side)))
    assert not said


def test_flipped_bytes_give_a_picture_or_an_image_error() -> None:
    chance = random.Random(0)
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "webp", "bmp", "tga", "avif", "ico", "dds"):
        whole = encoded(source, kind).data
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(chance.choice((1, 2, 8))):
                damaged[chance.randrange(len(whole))] = chance.randrange(256)
            for look in (image_size, load_image):
                try:
                    look(ImageRef(data=bytes(damaged)))
                except ImageError as error:
                    assert "\n" not in str(error)


def test_a_source_that_tells_a_wrong_size_is_caught(picture: MakePicture) -> None:
    with pytest.raises(ImageError, match="said to be 5x5 pixels large, but is 24x16"):
        load_image(ImageRef(data=picture().data, size=Size(5, 5)))


def test_draw_squash_is_a_resize(picture: MakePicture) -> None:
    image = load_image(picture(3))
    crop = Crop(Size(8, 8), Box.of(Size(24, 16)), Box(0, 0, 8, 8))
    assert (
        draw(image, crop, (1, 2, 3), "bilinear").tobytes() == image.resize((8, 8), Image.Resampling.BILINEAR).tobytes()
    )


@pytest.mark.parametrize(
    ("size", "valid"), [((40, 20), Box(0, 2, 8, 6)), ((20, 40), Box(2, 0, 6, 8)), ((1, 5000), Box(3, 0, 4, 8))]
)
def test_draw_pads_with_the_mean_colour_around_the_valid_part(size: tuple[int, int], valid: Box) -> None:
    image = Image.new("RGB", size, (200, 10, 10))
    colour = mean_colour(SPEC)
    drawn = np.asarray(draw(image, Crop(Size(8, 8), Box.of(Size(*size)), valid), colour, "bicubic"))
    inside = np.zeros((8, 8), dtype=bool)
    inside[int(valid.top) : int(valid.bottom), int(valid.left) : int(valid.right)] = True
    assert (drawn[inside] == (200, 10, 10)).all() and (drawn[~inside] == colour).all()
    pixels = to_pixels([Image.fromarray(drawn)], SPEC)
    assert pixels[0][:, ~inside].abs().max() < 0.5 / 255 / min(SPEC.std)  # padding is what the encoder sees as zero


def test_draw_cuts_the_box() -> None:
    image = Image.new("RGB", (20, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    right = draw(image, Crop(Size(4, 4), Box(10, 0, 20, 10), Box(0, 0, 4, 4)), (0, 0, 0), "nearest")
    assert right.getcolors() == [(16, (0, 0, 255))]


def test_draw_of_an_empty_rectangle_is_all_padding() -> None:
    crop = Crop(Size(4, 4), Box(0, 0, 0, 0), Box(0, 0, 0, 0))
    assert draw(Image.new("RGB", (9, 9), "red"), crop, (1, 2, 3), "bicubic").getcolors() == [(16, (1, 2, 3))]


def test_pixels_are_normalised_per_channel() -> None:
    [pixel] = to_pixels([Image.new("RGB", (1, 1), (255, 0, 51))], SPEC)
    assert pixel.flatten().tolist() == pytest.approx([1.0, -1.0, (0.2 - 0.75) / 0.125])


def test_a_blank_image_is_zero_to_its_encoder() -> None:
    ref = blank_image(SPEC)
    assert image_size(ref) == load_image(ref).size == (1, 1)
    assert to_pixels([load_image(ref)], SPEC).abs().max() < 0.5 / 255 / min(SPEC.std)


def test_jitter_moves_a_little_and_is_decided_by_its_generator(picture: MakePicture) -> None:
    image = load_image(picture(5, (40, 40)))
    assert jitter(image, 0.0, np.random.default_rng(0)).tobytes() == image.tobytes()
    one, same, other = (jitter(image, 0.1, np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2))
    assert one == same != other
    spot = Image.new("RGB", (100, 100), "white")
    spot.paste("black", (45, 45, 55, 55))
    for seed in range(20):
        box = ImageOps.invert(jitter(spot, 0.1, np.random.default_rng(seed)).convert("L")).getbbox()
        assert box is not None  # the object stays in the picture, near where it was
        assert abs((box[0] + box[2]) / 2 - 50) <= 13 and abs((box[1] + box[3]) / 2 - 50) <= 13
        assert 9 <= box[2] - box[0] <= 13 and 9 <= box[3] - box[1] <= 13


def test_only_headers_of_files_are_remembered(tmp_path: Path, picture: MakePicture) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture().data)
    ref = ImageRef(path=str(path))
    assert image_size(ref) == (24, 16)
    path.unlink()
    assert image_size(ref) == (24, 16)
    before = images._oriented_size_of_file.cache_info().currsize
    image_size(picture(2))
    assert images._oriented_size_of_file.cache_info().currsize == before
