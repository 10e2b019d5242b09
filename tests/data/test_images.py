"""Image files of all kinds: decoded correctly, or refused with an error that names the file."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from finetune_jax.data.images import SUFFIXES, BadImage, decode, resize

RED = np.zeros((6, 8, 3), np.uint8) + np.array([200, 30, 40], np.uint8)
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 8, 3), np.uint8)


def save(image, path, **options):
    image.save(path, **options)
    return path


def png(path, width, height, colour_type, bits, rows, extra=b""):
    """A PNG written by hand: Pillow writes no colour of 16 bits."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    raw = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_colour_is_itself(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(Image.fromarray(NOISE), tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(decode(path), NOISE)
    np.testing.assert_array_equal(decode(path.read_bytes(), "a"), NOISE)


def test_gray_is_repeated_and_one_bit_is_black_and_white(tmp_path):
    gray = NOISE[..., 0]
    found = decode(save(Image.fromarray(gray), tmp_path / "g.png"))
    np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, -1))
    bits = gray > 127
    found = decode(save(Image.fromarray(bits), tmp_path / "b.png"))
    np.testing.assert_array_equal(found[..., 0], bits * 255)


def test_transparency_is_put_on_white(tmp_path):
    alpha = RNG.integers(0, 256, (6, 8), np.uint8)
    weight = alpha[..., None] / 255
    rgba = decode(save(Image.fromarray(np.dstack([NOISE, alpha])), tmp_path / "rgba.png"))
    np.testing.assert_allclose(rgba, NOISE * weight + 255 * (1 - weight), atol=1)
    la = Image.merge("LA", (Image.fromarray(NOISE[..., 0]), Image.fromarray(alpha)))
    expected = NOISE[..., :1] * weight + 255 * (1 - weight)
    np.testing.assert_allclose(
        decode(save(la, tmp_path / "la.png")), expected.repeat(3, -1), atol=1
    )


def test_a_palette_with_a_transparent_colour(tmp_path):
    picture = Image.new("P", (8, 6), 0)
    picture.putpalette([10, 20, 30, 200, 30, 40])
    picture.paste(1, (0, 0, 4, 6))
    opaque = decode(save(picture, tmp_path / "p.png"))
    assert opaque[0, 0].tolist() == [200, 30, 40] and opaque[0, 7].tolist() == [10, 20, 30]
    for suffix in ("png", "gif"):
        found = decode(save(picture, tmp_path / f"t.{suffix}", transparency=0))
        assert found[0, 0].tolist() == [200, 30, 40]
        assert found[0, 7].tolist() == [255, 255, 255]


def test_colours_that_are_transparent_without_an_alpha_channel(tmp_path):
    gray = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    found = decode(save(gray, tmp_path / "g.png", transparency=100))
    assert found[0, :, 0].tolist() == [0, 255, 255]
    found = decode(save(Image.fromarray(RED), tmp_path / "c.png", transparency=(200, 30, 40)))
    assert (found == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    gray = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = save(Image.fromarray(gray), tmp_path / "g16.png")
    assert decode(path)[0, :, 0].tolist() == [0, 1, 128, 255]
    path = save(Image.fromarray(gray), tmp_path / "g16.tif")
    assert decode(path)[0, :, 0].tolist() == [0, 1, 128, 255]
    row = struct.pack(">6H", 0, 257, 32896, 65535, 4000, 40000)
    found = decode(png(tmp_path / "c16.png", 2, 1, 2, 16, [row]))
    np.testing.assert_array_equal(found[0], [[0, 1, 128], [255, 4000 >> 8, 40000 >> 8]])
    row = struct.pack(">4H", 32896, 65535, 32896, 0)
    found = decode(png(tmp_path / "la16.png", 2, 1, 4, 16, [row]))
    assert found[0, :, 0].tolist() == [128, 255]
    one_transparent = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 257)
    one_transparent += struct.pack(">I", zlib.crc32(one_transparent[4:]))
    row = struct.pack(">2H", 257, 514)
    found = decode(png(tmp_path / "t16.png", 2, 1, 0, 16, [row], one_transparent))
    assert found[0, :, 0].tolist() == [255, 2]


def test_cmyk_with_and_without_adobes_inversion(tmp_path):
    picture = Image.fromarray(RED).convert("CMYK")
    path = save(picture, tmp_path / "adobe.jpg", quality=100)
    inverted = path.read_bytes()
    at = inverted.index(b"\xff\xee")
    assert inverted[at + 4 : at + 9] == b"Adobe"
    np.testing.assert_allclose(decode(path), RED, atol=3)
    # The same samples without Adobe's marker are not inverted.
    length = int.from_bytes(inverted[at + 2 : at + 4], "big")
    plain = tmp_path / "plain.jpg"
    plain.write_bytes(inverted[:at] + inverted[at + 2 + length :])
    negative = Image.eval(picture, lambda v: 255 - v).convert("RGB")
    np.testing.assert_allclose(decode(plain), np.asarray(negative), atol=3)
    path = save(picture, tmp_path / "c.tif")
    np.testing.assert_allclose(decode(path), RED, atol=1)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]), (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)), (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)  # fmt: skip
def test_pictures_are_turned_upright(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(NOISE), tmp_path / "r.png", exif=exif)
    np.testing.assert_array_equal(decode(path), upright(NOISE))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_animation_is_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(path), np.asarray(frames[0]))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix):
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    path = save(noise, tmp_path / f"cut.{suffix}")
    whole = path.read_bytes()
    for keep in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(BadImage, match="cut"):
            decode(path)


def test_what_is_no_image_is_refused_by_name(tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, message in (
        (text, "text.jpg: not an image"),
        (empty, "empty.png: the file is empty"),
        (tmp_path / "none.png", "none.png: no such image file"),
        (tmp_path, "no such image file"),
        ("a text of many words, " * 300, "no such image file"),  # no file has such a name
    ):
        with pytest.raises(BadImage, match=message):
            decode(path)
    for array in (np.ones((2, 2), np.float32), np.array([[-1, 2]], np.int32)):
        with pytest.raises(BadImage, match="range is unknown"):
            decode(save(Image.fromarray(array), tmp_path / "f.tif"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damaged_bytes_never_raise_anything_else():
    for suffix in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(NOISE).save(file, suffix, exif=exif)
        whole = bytearray(file.getvalue())
        for _ in range(60):
            broken = bytearray(whole)
            for at in RNG.integers(0, len(broken), 4):
                broken[at] = RNG.integers(0, 256)
            with contextlib.suppress(BadImage):
                assert decode(bytes(broken)).shape[-1] == 3


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("suffix", ["eps", "psd", "pdf", "tga", "ico", "pcx", "im", "jp2", "dds"])
def test_only_the_formats_that_we_name_are_read(tmp_path, monkeypatch, suffix):
    """Pillow would start Ghostscript for PostScript, whatever the file is called."""
    path = tmp_path / "picture.png"
    try:
        content = {"eps": POSTSCRIPT, "psd": b"8BPS\0\1" + bytes(30)}.get(suffix)
        if content is None:
            file = io.BytesIO()
            Image.fromarray(NOISE).save(file, Image.registered_extensions()[f".{suffix}"])
            content = file.getvalue()
    except (KeyError, OSError) as error:
        pytest.skip(f"not run: this Pillow does not write {suffix} ({error})")
    path.write_bytes(content)
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("a program started"))
    with pytest.raises(BadImage, match=r"picture\.png: not an image in a format that is read here"):
        decode(path)


def test_several_pictures_in_one_jpeg_are_the_first(tmp_path):
    frames = [Image.fromarray(RED), Image.fromarray(NOISE)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:], quality=95)
    np.testing.assert_allclose(decode(tmp_path / "a.jpg"), RED, atol=3)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "webp", "bmp", "jpg", "pgm"])
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, suffix
):
    path = save(Image.new("L", (300, 200)), tmp_path / f"large.{suffix}")
    assert decode(path, max_pixels=60_000).shape == (200, 300, 3)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "getexif", lambda image: pytest.fail("read further"))
    with pytest.raises(BadImage, match=r"large.* it has 300 x 200 pixels, more than the 59999 of"):
        decode(path, max_pixels=59_999)


def test_a_small_file_of_a_huge_picture_is_refused(tmp_path):
    """16,000 x 11,000 pixels in a file of a few bytes: Pillow's own limit lets it pass."""
    path = png(tmp_path / "bomb.png", 16_000, 11_000, 2, 8, [])
    with pytest.raises(BadImage, match="bomb.png: it has 16000 x 11000 pixels"):
        decode(path)


def test_what_pillow_refuses_names_the_limit_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = save(Image.new("L", (100, 50)), tmp_path / "large.png")
    with pytest.raises(BadImage, match="more pixels than the 90 of data.max_pixels"):
        decode(path, max_pixels=90)


def test_a_tile_larger_than_its_picture_is_refused(tmp_path):
    tags = [(256, 8), (257, 6), (258, 8), (259, 8), (262, 1), (277, 1), (322, 60_000),
            (323, 60_000), (324, 8), (325, 4)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "tile.tif").write_bytes(content)
    with pytest.raises(BadImage, match="a tile of it has 60000 x 60000 pixels"):
        decode(tmp_path / "tile.tif")


def test_a_strip_is_cropped_before_it_is_resized():
    """Resized whole, 1 x 300,000 pixels would be an image of 59 GB."""
    strip = np.zeros((1, 300_000, 3), np.uint8)
    strip[:, 149_999:150_001] = 200
    square = resize(strip, 224, "bilinear", 0.875)
    assert square.shape == (224, 224, 3) and (square[:, 100:124] == 200).all()


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(3, 200), (300, 5), (40, 900)])
def test_a_strip_has_the_pixels_of_the_crop_of_the_whole(method, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    square = resize(image, 16, method, 0.8)
    scale = 20 / min(shape)
    height, width = (max(16, round(n * scale)) for n in shape)
    assert height * width > 16 * 16**2
    rule = Image.Resampling[method.upper()]
    short = (width, shape[0]) if height > width else (shape[1], height)
    whole = Image.fromarray(image).resize(short, rule).resize((width, height), rule)
    top, left = (height - 16) // 2, (width - 16) // 2
    wanted = np.asarray(whole)[top : top + 16, left : left + 16]
    assert np.abs(square.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_photographs_of_telephones_are_read_or_the_extra_is_named(tmp_path, suffix):
    path = tmp_path / f"cat.{suffix}"
    if f".{suffix}" not in SUFFIXES:
        path.write_bytes(b"....ftypheic" + bytes(100))
        with pytest.raises(BadImage, match=r"pip install 'finetune_jax\[heif\]'"):
            decode(path)
        return
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    pixels = np.full((16, 24, 3), (200, 30, 60), np.uint8)
    Image.fromarray(pixels).save(path, format="HEIF" if suffix == "heic" else "AVIF", quality=95)
    found = decode(path)
    assert found.shape == (16, 24, 3) and np.abs(found.astype(int) - pixels).max() < 12


def test_a_limit_above_pillows_own_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = save(Image.new("L", (100, 50)), tmp_path / "large.png")
    assert decode(path, max_pixels=5000).shape == (50, 100, 3)


def test_twelve_bits_in_sixteen_are_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("finetune_jax.data.images._said_dark", [])
    for name, largest in (("light", 65535), ("dark", 4080), ("dark_too", 255)):
        gray = np.linspace(0, largest, 256).astype(np.uint16).reshape(16, 16)
        Image.fromarray(gray).save(tmp_path / f"{name}.png")
        assert decode(tmp_path / f"{name}.png").max() == round(largest / 257)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "dark.png: pixels of 16 bits have values up to 4080" in lines[0]


def test_what_may_be_wrong_with_a_path_is_reported(tmp_path):
    save(Image.new("L", (4, 4)), tmp_path / "7.png")
    for path, hint in (
        ("https://x.y/cat.jpg", "not from addresses: download them first"),
        ("a\\b.jpg", "its path has backslashes"),
        (str(tmp_path / "7"), "there is .*7.png: write names with their suffix"),
        (str(tmp_path / "8"), "no such image file$"),
    ):
        with pytest.raises(BadImage, match=hint):
            decode(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"<!DOCTYPE html><html>404</html>", "its content is a web page"),
     (b"\n<html><body>", "its content is a web page"),
     (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run 'git lfs pull'")],
)  # fmt: skip
def test_what_a_download_left_in_place_of_an_image_is_named(tmp_path, content, what):
    (tmp_path / "cat.jpg").write_bytes(content)
    for source in (tmp_path / "cat.jpg", content):
        with pytest.raises(BadImage, match=f"not an image .*{what}"):
            decode(source)


def test_further_pages_of_a_tiff_are_reported_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("finetune_jax.data.images._said_pages", [])
    first, second = Image.fromarray(RED), Image.fromarray(NOISE)
    for name, more in (("one", []), ("two", [second]), ("three", [second, second])):
        first.save(tmp_path / f"{name}.tif", save_all=True, append_images=more)
        assert (decode(tmp_path / f"{name}.tif") == RED).all()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "two.tif: of a TIFF with several pages, only the first" in lines[0]
