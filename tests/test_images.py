"""Image files against NumPy and arithmetic by hand; PIL only writes them."""

import io
import pathlib
import struct
import time
import zipfile
import zlib

import numpy as np
import PIL.features
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bpgan
from bpgan.data import images
from bpgan.data.images import Form
from bpgan.types import UserError

LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP")
RGB = Form(channels=3)
GRAY = Form(channels=1)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def random(*shape, seed=0, dtype=np.uint8, high=256):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def decode(data, form):
    return images.decode(data, form).pixels


def header(data, tmp_path):
    (tmp_path / "image.png").write_bytes(data)
    return images.header(images.folder(tmp_path), "image.png")


def on_white(color, alpha):
    """Exact rational arithmetic, rounded to nearest."""
    alpha = alpha.astype(np.int64)[..., None]
    return np.round((color.astype(np.int64) * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))
    ),
    st.sampled_from(LOSSLESS),
)
def test_lossless_files_come_back(x, kind):
    data = encode(PIL.Image.fromarray(x[..., 0] if x.shape[2] == 1 else x), kind, lossless=True)
    np.testing.assert_array_equal(decode(data, Form(channels=x.shape[2])), x)


def test_jpeg_and_the_first_frame_of_a_gif(tmp_path):
    flat = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    found = decode(encode(PIL.Image.fromarray(flat), "JPEG", quality=95), RGB)
    assert found.shape == (16, 24, 3) and np.abs(found.astype(int) - flat).max() <= 3
    frames = [PIL.Image.new("RGB", (5, 4), c) for c in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, RGB), np.full((4, 5, 3), (255, 0, 0), np.uint8))
    assert header(data, tmp_path) == (4, 5, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_white_or_kept(kind):
    x = random(9, 7, 4)
    data = encode(PIL.Image.fromarray(x), kind, lossless=True, exact=True)
    np.testing.assert_array_equal(decode(data, RGB), on_white(x[..., :3], x[..., 3]))
    np.testing.assert_array_equal(decode(data, Form(channels=4)), x)


def test_gray_with_transparency(tmp_path):
    x = random(9, 7, 2)
    data = encode(gray_alpha(x))
    np.testing.assert_array_equal(decode(data, GRAY), on_white(x[..., :1], x[..., 1]))
    four = np.concatenate([np.repeat(x[..., :1], 3, 2), x[..., 1:]], 2)
    np.testing.assert_array_equal(decode(data, Form(channels=4)), four)
    assert header(data, tmp_path) == (9, 7, 1)


def gray_alpha(x):
    return PIL.Image.merge(
        "LA", [PIL.Image.fromarray(np.ascontiguousarray(x[..., i])) for i in (0, 1)]
    )


def test_a_color_may_be_the_transparent_one():
    """PNG's tRNS chunk: of gray, of RGB and of palettes."""
    gray = random(6, 5, high=4)
    found = decode(encode(PIL.Image.fromarray(gray), transparency=2), GRAY)
    np.testing.assert_array_equal(found[..., 0], np.where(gray == 2, 255, gray))
    color = random(6, 5, 3, high=2)
    found = decode(encode(PIL.Image.fromarray(color), transparency=(1, 0, 1)), RGB)
    clear = (color == (1, 0, 1)).all(2, keepdims=True)
    assert clear.any() and not clear.all()
    np.testing.assert_array_equal(found, np.where(clear, 255, color))


@pytest.mark.parametrize("gray", [True, False])
def test_palettes(gray, tmp_path):
    table = random(256, 3, seed=1)
    if gray:
        table = np.repeat(table[:, :1], 3, 1)
    index = random(8, 9)
    image = PIL.Image.fromarray(index).convert("P")
    image.frombytes(index.tobytes())
    image.putpalette(table.tobytes())
    data = encode(image)
    assert PIL.Image.open(io.BytesIO(data)).mode == "P"
    assert header(data, tmp_path) == (8, 9, 1 if gray else 3)
    np.testing.assert_array_equal(decode(data, RGB), table[index])
    alpha = random(256, seed=2)
    found = decode(encode(image, transparency=alpha.tobytes()), RGB)
    np.testing.assert_array_equal(found, on_white(table[index], alpha[index]))
    if gray:
        np.testing.assert_array_equal(decode(data, GRAY)[..., 0], table[index][..., 0])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("colors", [2, 4, 16, 256])
def test_palettes_of_any_format_and_order(kind, colors, tmp_path):
    """TIFF stores all reds, then all greens; BMP blue first, in four bytes."""
    for gray in (False, True):
        x = random(9, 8, 1 if gray else 3, seed=colors)
        image = PIL.Image.fromarray(x[..., 0] if gray else x).quantize(colors)
        data = encode(image, kind)
        with PIL.Image.open(io.BytesIO(data)) as again:
            expected = np.asarray(again.convert("RGB"))
        assert header(data, tmp_path) == (9, 8, 1 if gray else 3)
        np.testing.assert_array_equal(decode(data, RGB), expected)


@pytest.mark.parametrize(
    "suffix,kind", [(".jfif", "JPEG"), (".AVIF", "AVIF"), (".dib", "DIB"), (".apng", "PNG")]
)
def test_more_names_of_images(suffix, kind, tmp_path):
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    flat = np.full((16, 24, 3), (200, 30, 90), np.uint8)
    (tmp_path / f"a{suffix}").write_bytes(encode(PIL.Image.fromarray(flat), kind))
    tree = images.folder(tmp_path)
    (path,) = tree.paths
    assert images.header(tree, path) == (16, 24, 3)
    assert np.abs(tree.decode(path, RGB).pixels.astype(int) - flat).max() <= 4


def test_an_avif_that_this_pillow_cannot_read_says_so(monkeypatch):
    import PIL.AvifImagePlugin

    data = encode(PIL.Image.fromarray(random(8, 8, 3)), "PNG")
    box = b"\0\0\0\x1cftypavif" + bytes(20)
    monkeypatch.setattr(PIL.AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(PIL.features, "check", lambda name: False)
    with (
        images.strict(),
        pytest.raises(images.Unreadable, match="AVIF, which this Pillow was built without"),
    ):
        decode(box, RGB)
    assert decode(data, RGB).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used_and_that_is_said(kind):
    frames = [PIL.Image.fromarray(np.full((4, 5, 3), v, np.uint8)) for v in (0, 255, 90)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    found = images.decode(data, RGB)
    assert not found.pixels.any() and found.remarks == {"frames": 1}
    assert images.decode(encode(frames[0], kind), RGB).remarks == {}
    if kind == "TIFF":  # a second page that is not there
        offset = struct.unpack_from("<I", data, 4)[0]
        count = struct.unpack_from("<H", data, offset)[0]
        place = offset + 2 + 12 * count
        broken = data[:place] + struct.pack("<I", len(data) + 99) + data[place + 4 :]
        assert not decode(broken, RGB).any()


def test_black_and_white(tmp_path):
    x = random(8, 9, high=2).astype(bool)
    data = encode(PIL.Image.fromarray(x))
    assert PIL.Image.open(io.BytesIO(data)).mode == "1" and header(data, tmp_path) == (8, 9, 1)
    np.testing.assert_array_equal(decode(data, GRAY)[..., 0], np.where(x, 255, 0))


@pytest.mark.parametrize(
    "kind,dtype", [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)]
)
def test_sixteen_bits_are_rounded(kind, dtype, tmp_path):
    x = np.arange(65536).reshape(256, 256)
    data = encode(PIL.Image.fromarray(x.astype(dtype)), kind)
    assert PIL.Image.open(io.BytesIO(data)).mode.startswith("I")
    expected = [(2 * v + 257) // (2 * 257) for v in range(65536)]  # of v / 257, which is never half
    np.testing.assert_array_equal(decode(data, GRAY).ravel(), expected)
    assert header(data, tmp_path) == (256, 256, 1)


def twelve_bit_tiff(values):
    """Gray TIFF of 12 bits a value, two in three bytes, as microscopes write."""
    h, w = values.shape
    pairs = values.reshape(-1, 2).astype(np.uint32)
    joined = pairs[:, 0] << 12 | pairs[:, 1]
    strip = b"".join(int(v).to_bytes(3, "big") for v in joined)
    tags = [(256, w), (257, h), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, h)]
    tags += [(279, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip
        + struct.pack("<H", len(tags)) + entries + bytes(4)
    )  # fmt: skip


def test_fewer_bits_than_the_file_has():
    """What the file declares holds, then what the user says; what nobody says is told."""
    x = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    x[0, 0] = 0
    expected = np.array([(510 * v + 4095) // 8190 for v in range(4096)]).reshape(64, 64)
    found = images.decode(twelve_bit_tiff(x), GRAY)
    np.testing.assert_array_equal(found.pixels[..., 0], expected)
    assert found.remarks == {}
    for kind in ("PNG", "TIFF"):
        data = encode(PIL.Image.fromarray(x), kind)
        found = images.decode(data, GRAY)
        assert found.pixels.max() == 16 and found.remarks == {"deep": 4095}
        assert ",bits=12 makes 4,095 white" in images.describe_remark("deep", 3, 4095)
        found = images.decode(data, GRAY._replace(bits=12))
        np.testing.assert_array_equal(found.pixels[..., 0], expected)
        assert found.remarks == {}
        with pytest.raises(images.Unreadable, match="values from 0 to 4095, more than 11 bits"):
            decode(data, GRAY._replace(bits=11))


def test_deep_color_says_what_is_left_of_it():
    x = random(4, 5, 3, high=4096, dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    data = png_of(5, 4, raw, depth=16, color=2)
    found = images.decode(data, RGB)
    np.testing.assert_array_equal(found.pixels, x >> 8)
    assert found.remarks == {"deep color": int(x.max() >> 8) << 8}
    with pytest.raises(images.Unreadable, match="16-bit color, which bits=12 cannot scale"):
        decode(data, RGB._replace(bits=12))


def test_cmyk(tmp_path):
    """Adobe's subtractive colors; no ink is white, and each ink takes away its complement."""
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    light = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    for ink, color in zip(inks, light, strict=True):
        data = encode(PIL.Image.new("CMYK", (4, 4), ink), "TIFF")
        np.testing.assert_array_equal(decode(data, RGB)[0, 0], color)
        assert header(data, tmp_path) == (4, 4, 3)
        jpeg = encode(
            PIL.Image.new("CMYK", (16, 16), ink), "JPEG", quality=100
        )  # inverted, as Adobe does
        assert np.abs(decode(jpeg, RGB)[8, 8].astype(int) - color).max() <= 2


# What each EXIF orientation says of the stored rows and columns (the standard's table of 0th row, 0th column).
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_exif_orientation(kind, orientation, tmp_path):
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    x, lossy = random(3, 5, 3), kind in ("JPEG", "AVIF")
    if lossy:  # blocks of one color each, which survive
        x = np.kron(x // 128 * 255, np.ones((16, 16, 1), np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }.get(kind, {"lossless": True})
    data = encode(PIL.Image.fromarray(x), kind, exif=exif, **options)
    expected = UPRIGHT[orientation](x)
    found = decode(data, RGB)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (20 if lossy else 0)
    assert header(data, tmp_path) == (*expected.shape[:2], 3)
    again = decode(data, RGB._replace(size=expected.shape[:2]))
    np.testing.assert_array_equal(again, found)


def blocks(*colors, side=32):
    """Squares of these grays from left to right."""
    return np.kron(np.array([colors], np.uint8), np.ones((side, side), np.uint8))[..., None]


def test_crop_keeps_the_center():
    """Three squares in a row: the middle one is the crop, whichever way they lie."""
    x = blocks(10, 200, 90)
    for lying in (x, x.swapaxes(0, 1)):
        for side in (32, 16, 8):  # three pixels from its edge the filter sees nothing else
            found = images.shaped(lying, Form((side, side)))[3:-3, 3:-3]
            np.testing.assert_array_equal(found, np.full((side - 6, side - 6, 1), 200))
    wide = images.shaped(x.swapaxes(0, 1), Form((16, 32)))  # half of the middle square
    np.testing.assert_array_equal(wide, np.full((16, 32, 1), 200))
    tall = random(40, 20, 3)
    np.testing.assert_array_equal(images.shaped(tall, Form((20, 20))), tall[10:30])
    np.testing.assert_array_equal(images.shaped(tall, Form((40, 10))), tall[:, 5:15])


@pytest.mark.parametrize("color", [None, (0, 0, 0), (10, 20, 30)])
def test_padding_and_transparency_have_one_background(color):
    """White unless another is asked for; what is left transparent is transparent in the padding, too."""
    color_or_white = color or (255, 255, 255)
    x = np.full((32, 96, 3), 200, np.uint8)
    expected = np.broadcast_to(np.array(color_or_white, np.uint8), (48, 48, 3)).copy()
    expected[16:32] = 200
    form = Form((48, 48), "pad", background=color)
    np.testing.assert_array_equal(images.shaped(x, form), expected)
    turned = images.shaped(x.swapaxes(0, 1), form)
    np.testing.assert_array_equal(turned, expected.swapaxes(0, 1))
    luma = round(float(np.array(color_or_white) @ [0.299, 0.587, 0.114]))  # ITU-R 601
    gray = images.shaped(x[..., :1], form)
    assert abs(int(gray[0, 0, 0]) - luma) <= 1 and (gray[16:32] == 200).all()
    clear = np.zeros((32, 96, 4), np.uint8)
    np.testing.assert_array_equal(
        images.shaped(clear, form._replace(channels=3)),
        np.broadcast_to(expected[:1, :1], (48, 48, 3)),
    )
    opaque = np.full((32, 96, 4), 255, np.uint8)
    alpha = images.shaped(opaque, form)[..., 3]
    np.testing.assert_array_equal(
        alpha, np.where(np.arange(48) // 16 == 1, 255, 0)[:, None] + 0 * alpha
    )


def test_stretch_keeps_everything():
    found = images.shaped(blocks(10, 200, 90), Form((48, 48), "stretch"))
    assert found.shape == (48, 48, 1)
    # Away from the edges between squares, three lobes of the filter, nothing has changed.
    for column, gray in ((3, 10), (23, 200), (44, 90)):
        np.testing.assert_array_equal(found[:, column], np.full((48, 1), gray))


def test_resizing_antialiases():
    """Stripes finer than the new pixels become gray, not one of the two colors."""
    x = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
    found = images.shaped(x, Form((8, 8))).astype(int)
    assert np.abs(found[2:-2, 2:-2] - 127.5).max() < 4


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(images.FITS),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([None, 1, 3, 4]),
)
def test_any_size_fits(old, new, fit, channels, wanted):
    x = np.full((*old, channels), 255, np.uint8)
    found = images.shaped(x, Form(new, fit, wanted))
    assert found.shape == (*new, wanted or channels) and found.dtype == np.uint8
    if fit != "pad":
        np.testing.assert_array_equal(found, np.full(found.shape, 255))
    else:
        assert (found == 255).all(2).any()


def test_channels_of_arrays():
    x = random(5, 6, 3)
    np.testing.assert_array_equal(images.shaped(x, Form(channels=4))[..., 3], np.full((5, 6), 255))
    luma = x @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(images.shaped(x, GRAY)[..., 0] - luma).max() <= 0.51
    gray = random(5, 6, 1)
    np.testing.assert_array_equal(images.shaped(gray, RGB), np.repeat(gray, 3, 2))
    four = random(5, 6, 4)
    np.testing.assert_array_equal(images.shaped(four, Form()), four)
    np.testing.assert_array_equal(images.shaped(four, RGB), on_white(four[..., :3], four[..., 3]))


def png_claiming(width, height):
    """A PNG whose header claims a size, with hardly any data."""
    return png_of(width, height, b"\0" * 99)


def png_of(width, height, rows, depth=8, color=0):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_cannot_be_read_says_why():
    good = encode(PIL.Image.fromarray(random(40, 40, 3)))
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 255
    cases = {
        b"": "not an image but an empty file",
        b"no picture": "not an image of type PNG",
        b"<html>404</html>": "not an image but a page of HTML",
        b"\n<!DOCTYPE html>": "a page of HTML",
        b"\0\0\0\x18ftypheic" + bytes(30): "not an image but HEIC",
        b"version https://git-lfs.github.com/spec/v1\noid": "a pointer of Git LFS",
        b"8BPS\0\1" + bytes(30): "Photoshop",
        good[: len(good) // 2]: "[Tt]runcated",
        bytes(damaged): ".",
        encode(PIL.Image.fromarray(random(40, 40, 3)), "JPEG")[:500]: "[Tt]runcated",
        encode(PIL.Image.new("F", (4, 4)), "TIFF"): "mode F",
        encode(PIL.Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"): "16 bits",
        encode(PIL.Image.new("RGB", (4, 4)), "PPM"): "not an image of type PNG",
        png_claiming(60000, 60000): "exceeds limit",
        png_claiming(10000, 10000): "exceeds limit",
    }
    with images.strict():
        for data, message in cases.items():
            with pytest.raises(images.Unreadable, match=message) as caught:
                decode(data, RGB)
            assert "\n" not in str(caught.value) and str(caught.value)


def test_trees_of_folders_and_archives_agree(tmp_path):
    names = ["b/1.PNG", "a/deep/2.jpeg", "a/3.tif", "4.webp", "dataset.json"]
    rest = [".hidden.png", "a/notes.txt", "__MACOSX/a/3.tif", "b/.git/5.png"]
    unread = ["a/6.heic", "a/7.DNG", "b/8.svg", "b/inner.zip"]
    for name in names + rest + unread:
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).write_bytes(name.encode())
    (tmp_path / "t" / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as file:
        for path in sorted((tmp_path / "t").rglob("*")):
            file.write(path, path.relative_to(tmp_path / "t"))
    for tree in (images.folder(tmp_path / "t"), images.archive(tmp_path / "t.zip")):
        assert tree.paths == ["4.webp", "a/3.tif", "a/deep/2.jpeg", "b/1.PNG"]
        assert tree.empty == ["empty"] and tree.labels == ["dataset.json"]
        assert {pathlib.PurePosixPath(p).parts[0] for p in tree.ignored} >= {
            ".hidden.png",
            "__MACOSX",
        }
        assert len(tree.ignored) == 4 and tree.unread == unread
        assert [tree.read(p).decode() for p in tree.paths] == tree.paths
        with tree.open("a/3.tif") as file:
            assert file.read() == b"a/3.tif"


@pytest.mark.parametrize("kind", [images.folder, images.archive])
def test_what_systems_leave_is_no_image(kind, tmp_path):
    names = [f"{place}/1.png" for place in (
        "@eaDir", "a/@eaDir/1.jpg", "__MACOSX/a", "$RECYCLE.BIN", "a/.ipynb_checkpoints", ".thumbnails",
        "System Volume Information", "#recycle", "lost+found")]  # fmt: skip
    names += ["a/._1.png", "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store"]
    root = tmp_path / "root"
    for name in ["a/1.png", *names]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    if kind is images.archive:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for name in ["a/1.png", *names]:
                file.write(root / name, name)
        root = tmp_path / "a.zip"
    tree = kind(root)
    assert tree.paths == ["a/1.png"] and tree.empty == [] and len(tree.ignored) >= 12


def test_large_images_are_held_one_at_a_time(monkeypatch, tmp_path):
    """Of what is too large for the memory nothing is read."""
    import threading

    for i in range(6):
        PIL.Image.fromarray(random(40, 40, 3)).save(tmp_path / f"{i}.png")
    tree, inside, most = images.folder(tmp_path), [], []

    def slowly(data, form):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return None

    monkeypatch.setattr(images, "decode", slowly)
    monkeypatch.setattr(images, "_MANY", 100)
    threads = [threading.Thread(target=tree.decode, args=(p, RGB)) for p in tree.paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    monkeypatch.undo()
    monkeypatch.setattr(images, "_MANY", 100)
    monkeypatch.setattr(images.memory, "available", lambda: 40 * 40)
    with pytest.raises(images.Unreadable, match="too large for the memory"):
        tree.decode("0.png", RGB)


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "1.png").write_bytes(b"1")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "2.png").write_bytes(b"2")
    (root / "b").symlink_to(tmp_path / "else")
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    tree = images.folder(root)
    assert tree.paths == ["a/1.png", "a/gone.png", "b/2.png"]
    with pytest.raises(images.Unreadable, match="No such file"):
        tree.read("a/gone.png")


def test_a_picture_of_images():
    """Two rows of two and a scale of 3, with a gap of two pixels; the names stand below."""
    x = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    found = np.asarray(bpgan.picture(x, columns=2, scale=3))
    assert found.shape == (2 * 12 + 2, 2 * 15 + 2)
    np.testing.assert_array_equal(found[:12:3, 17::3], x[1])
    np.testing.assert_array_equal(found[:12, 17:], x[1].repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(found[14::3, :15:3], x[2])
    assert not found[14:, 15:].any()
    floats = np.asarray(bpgan.picture(np.ones((1, 64, 64, 3))))
    assert floats.shape == (64, 64, 3) and (floats == 255).all()
    assert bpgan.picture(np.zeros((2, 16, 16))).size == (2 * 64 + 2, 64)
    named = np.asarray(bpgan.picture(x, columns=2, scale=9, names=["a", "b"]))
    assert len(named) > 2 * 36 + 2 and named[-5:].max() == 255


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": np.zeros((3, 4))}, "images: are [3, 4], must be [n, h, w] or"),
        ({"images": np.zeros((1, 4, 4, 2))}, "images: are [1, 4, 4, 2], must be"),
        ({"images": np.zeros((0, 4, 4))}, "images: are [0, 4, 4], must be"),
        ({"columns": 0}, "columns=0: must be at least 1"),
        ({"scale": -1}, "scale=-1: must be at least 0"),
    ],
)
def test_what_is_no_picture_is_refused(wrong, said):
    with pytest.raises(UserError) as error:
        bpgan.picture(**{"images": np.zeros((2, 4, 4))} | wrong)
    assert said in str(error.value)
