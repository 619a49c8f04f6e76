"""What tasks make of images, against SciPy, Pillow and images that are written out."""

import colorsys
import pickle

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage

from bpgan.data import tasks
from bpgan.types import UserError

NAMES = ["edges", "edges:60", "gray", "half", "downscale:2", "invert", "rotate", "dilate"]


def random(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pair(text, x, y=None):
    """Inputs and targets of a task, which must not change the images that it is given."""
    before = x.copy()
    found = tasks.parse(text).pair(x, np.zeros(len(x), np.int32) if y is None else y)
    np.testing.assert_array_equal(x, before)
    return found


def gray(x):
    """Pillow's conversion."""
    return np.stack([np.asarray(PIL.Image.fromarray(image).convert("L")) for image in x])[..., None]


@pytest.mark.parametrize("shape", [(5, 8, 8, 1), (3, 7, 4, 1), (2, 1, 5, 1), (2, 6, 5, 3)])
def test_edges_are_those_of_scipy(shape):
    x = random(*shape)
    a, b = pair("edges", x)
    assert b is x or (b == x).all()
    wide = (gray(x) if shape[3] == 3 else x)[..., 0].astype(float)
    size = [
        np.hypot(*(scipy.ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1)))
        for image in wide
    ]
    expected = np.minimum(255, np.rint(np.stack(size) / 4)).astype(np.uint8)
    np.testing.assert_array_equal(a[..., 0], expected)
    lines, _ = pair("edges:60", x)
    np.testing.assert_array_equal(lines[..., 0], np.where(expected >= 60, 255, 0))
    assert a.shape == lines.shape == (*shape[:3], 1)


def test_a_straight_edge_from_black_to_white_is_white():
    x = np.zeros((1, 4, 4, 1), np.uint8)
    x[:, :, 2:] = 255
    expected = np.tile(np.uint8([0, 255, 255, 0]), (4, 1))
    np.testing.assert_array_equal(pair("edges", x)[0][0, ..., 0], expected)
    np.testing.assert_array_equal(pair("edges", 255 - x)[0][0, ..., 0], expected)
    np.testing.assert_array_equal(pair("edges", x.swapaxes(1, 2))[0][0, ..., 0], expected.T)


def test_gray_of_colors_is_pillows():
    x = random(4, 9, 6, 3)
    x[0, :2, :2] = [[[255, 255, 255], [0, 0, 0]], [[255, 0, 0], [0, 0, 255]]]
    a, b = pair("gray", x)
    np.testing.assert_array_equal(a, gray(x))
    np.testing.assert_array_equal(b, x)
    weights = x.astype(float) @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(a[..., 0] - weights).max() <= 0.51


def test_gray_data_are_painted_in_the_color_of_their_class():
    x, y = random(30, 4, 5, 1), np.arange(30, dtype=np.int32) % 10
    x[:, 0, 0] = 255
    a, b = pair("gray", x, y)
    np.testing.assert_array_equal(a, x)
    colors = tasks.palette(y)
    assert b.shape == (30, 4, 5, 3) and colors.dtype == np.uint8
    np.testing.assert_array_equal(b[:, 0, 0], colors)  # white becomes the color itself
    exact = x.astype(float) * colors[:, None, None] / 255
    assert np.abs(b - exact).max() <= 0.5
    for image, label in zip(
        b, y, strict=True
    ):  # of one image the color depends on nothing but the class
        np.testing.assert_array_equal(image[0, 0], b[label][0, 0])


def test_the_colors_of_ten_classes_are_far_apart():
    colors = tasks.palette(np.arange(10)).astype(int)
    assert (colors.max(1) == 255).all()  # HSV: value 1,
    assert (colors.min(1) == 51).all()  # saturation 0.8
    apart = np.abs(colors[:, None] - colors).max(-1)[~np.eye(10, dtype=bool)]
    assert apart.min() >= 60
    hues = np.arange(10) * (5**0.5 - 1) / 2 % 1
    expected = [colorsys.hsv_to_rgb(hue, 0.8, 1) for hue in hues]
    np.testing.assert_allclose(colors, np.multiply(expected, 255), atol=0.5 + 1e-9)


@pytest.mark.parametrize(("width", "kept"), [(4, 2), (5, 3), (2, 1), (3, 2)])
def test_half_keeps_the_left(width, kept):
    x = random(2, 3, width, 3)
    a, b = pair("half", x)
    np.testing.assert_array_equal(b, x)
    np.testing.assert_array_equal(a[:, :, :kept], x[:, :, :kept])
    assert a.shape == x.shape and (a[:, :, kept:] == 128).all()


def test_downscale_is_the_mean_of_boxes_by_hand():
    x = np.array([[1, 2, 10, 10], [2, 1, 10, 11], [0, 255, 7, 7], [255, 0, 7, 8]], np.uint8)
    a, b = pair("downscale:2", x[None, ..., None])
    np.testing.assert_array_equal(a[0, ..., 0], [[2, 10], [128, 7]])  # 1.5, 10.25, 127.5, 7.25
    assert b.shape == (1, 4, 4, 1)
    x = random(3, 6, 12, 3)
    exact = x.reshape(3, 2, 3, 4, 3, 3).astype(float).mean((2, 4))
    assert np.abs(pair("downscale:3", x)[0] - exact).max() <= 0.5


def test_rotate_is_counterclockwise():
    x = np.array([[1, 2], [3, 4]], np.uint8)[None, ..., None]
    a, b = pair("rotate", x)
    np.testing.assert_array_equal(a, x)
    np.testing.assert_array_equal(b[0, ..., 0], [[2, 4], [1, 3]])


def test_invert():
    x = random(2, 3, 4, 3)
    np.testing.assert_array_equal(pair("invert", x)[1].astype(int), 255 - x.astype(int))


@pytest.mark.parametrize("shape", [(4, 7, 7, 1), (2, 1, 5, 3), (2, 6, 2, 1)])
def test_dilate_is_the_maximum_filter_of_scipy(shape):
    x = random(*shape)
    expected = scipy.ndimage.maximum_filter(x, size=(1, 3, 3, 1), mode="nearest")
    np.testing.assert_array_equal(pair("dilate", x)[1], expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_image_is_for_itself(name, channels):
    """In any batch the same, also in none; and in another process."""
    x, y = random(6, 8, 8, channels), np.arange(6, dtype=np.int32)
    whole = pair(name, x, y)
    order = np.array([4, 0, 4])
    task = pickle.loads(pickle.dumps(tasks.parse(name)))
    for side, some, none in zip(
        whole, task.pair(x[order], y[order]), task.pair(x[:0], y[:0]), strict=True
    ):
        assert side.dtype == np.uint8 and none.shape == (0, *side.shape[1:])
        np.testing.assert_array_equal(some, side[order])


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_the_map_from_input_to_target(name):
    """Where there is one; it is known of the maps, and of those only."""
    task, x = tasks.parse(name), random(4, 8, 8, 1)
    assert (task.task.answer is not None) == (name in ("invert", "rotate", "dilate"))
    if task.task.answer:
        a, b = pair(name, x)
        np.testing.assert_array_equal(task.task.answer(a), b)
        np.testing.assert_array_equal(a, x)
        assert (b != x).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "must be one of edges, gray, half, downscale, invert, rotate, dilate"),
        ("downscale", "must have an integer in 2 to 1024 after a colon"),
        ("downscale:1", "must have an integer in 2 to 1024"),
        ("downscale:two", "must have an integer in 2 to 1024"),
        ("downscale:" + "9" * 30, "must have an integer in 2 to 1024"),
        ("edges:0", "must have an integer in 1 to 255"),
        ("edges:256", "must have an integer in 1 to 255"),
        ("half:2", "takes no argument after a colon"),
        ("invert:", ""),
        ("numpy:pi", "is a float, must be a data.Task"),
        ("no_such_module:x", "cannot be imported"),
    ],
)
def test_wrong_names_are_refused(text, message):
    if not message:
        assert tasks.parse(text).text == text
        return
    with pytest.raises(ValueError, match=message) as caught:
        tasks.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("rotate", (4, 6, 1), "images of 4x6 are not square"),
        ("downscale:4", (8, 6, 1), "4 does not divide the height and the width of images of 8x6"),
        ("downscale:4", (6, 8, 1), "4 does not divide the height and the width of images of 6x8"),
        ("half", (4, 1, 1), "images of 4x1 have no right half"),
    ],
)
def test_images_that_do_not_fit_are_refused(text, shape, message):
    with pytest.raises(UserError) as caught:
        pair(text, random(2, *shape))
    error = caught.value
    assert (error.argument, error.value, error.reason) == ("task", text, message)


def test_an_empty_name_is_no_task():
    assert tasks.parse_or_none("") is None and tasks.parse_or_none("half") is not None


def test_forms_name_every_task():
    assert all(
        f"{name}{recipe.argument} ({recipe.help})" in tasks.forms()
        for name, recipe in tasks.TASKS.items()
    )


OWN = """
from bpgan import data

def wrong(x, y):
    return x[:1], x

def broken(x, y):
    return x.no_such_name, x

def flipped(x, y):
    return x[:, ::-1], x

WRONG, BROKEN, FLIPPED = map(data.Task, (wrong, broken, flipped))
"""


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    x = random(3, 4, 4, 1)
    np.testing.assert_array_equal(pair("own_tasks:FLIPPED", x)[0], x[:, ::-1])
    for name, message in (
        ("WRONG", "made uint8[1, 4, 4, 1], must be uint8 [3, h, w, c]"),
        ("BROKEN", "failed (AttributeError"),
    ):
        with pytest.raises(
            UserError, match=message.replace("(", r"\(").replace("[", r"\[")
        ) as caught:
            pair(f"own_tasks:{name}", x)
        assert "\n" not in str(caught.value) and f"own_tasks:{name}" in str(caught.value)
