"""report/explore.py: sheets of images, the page of hostile and of empty records, and the page in a browser."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from checks import browser
from PIL import Image

from bpgan import data
from bpgan.report import explore, page
from bpgan.report.tables import Link, Table

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def pixels(url):
    """The picture of a data URL, ``[h, w]`` or ``[h, w, c]``."""
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def random(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def records(evil="<b>", side=8, channels=1, seeds=2):
    """Records of every kind: each image of a walk is of one gray level, that of its place."""
    labels, names, steps, small = (
        ["7", evil],
        ["1 (a share)", f"2 {evil}"],
        [-2, -1, 0, 1, 2],
        [-1, 0, 1],
    )
    bases, n = seeds * 2, 3
    level = np.arange(bases * 2 * 5, dtype=np.uint8).reshape(bases, 2, 5)
    grid = np.arange(100, 100 + bases * 9, dtype=np.uint8).reshape(1, bases, 3, 3)
    flat = np.ones((side, side, channels), np.uint8)
    walk = explore.Walk(
        f"SeFa {evil}",
        "z",
        names,
        steps,
        level[..., None, None, None] * flat,
        level.astype(float),
        [(0, 1)],
        small,
        grid[..., None, None, None] * flat,
        grid.astype(float),
        evil,
    )
    other = walk._replace(method="GANSpace", pairs=(), pair_steps=(), grids=None, grid_scores=None)
    images = random(n, side, side, channels)
    maps = np.random.default_rng(1).normal(size=(2, n, side, side))
    residuals = np.array([[1e-7, 0.012, 0.5], [30.0, np.nan, 2.0]])
    captions = [f"{evil}{i}" for i in range(n)]
    return explore.Explored(
        where=evil,
        about=[evil],
        bases=explore.Bases(range(seeds), labels),
        walks=[walk, other._replace(strips=255 - other.strips)],
        strips=[
            explore.Strip(f"truncation{evil}", [0.5, 1.0], random(bases, 2, side, side, channels))
        ],
        attributed=[
            explore.Attributed(images, captions, np.arange(n), ["gradient", evil], maps, residuals)
        ],
        neighbors=[
            explore.Neighbors(images, random(n, 2, side, side, channels), np.ones((n, 2)), evil)
        ],
        paths=explore.Paths(["lerp", evil], random(2, 4, side, side, channels)),
        inverted=explore.Inverted(images, images, captions, np.full(n, 0.25)),
        pictures=[
            explore.Picture("units", images, captions[:1]),
            explore.Picture(evil, svg=f"<svg><script>alert(1)</script>{evil}</svg>", says=evil),
        ],
        tables=[Table(evil, ["a", evil], [[evil, evil]])],
        notes=[evil],
        left_out=[evil],
    )


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sections, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(dict(attrs)["id"])

    def handle_data(self, data):
        self.text += data


# Sheets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_comes_back_from_its_place_in_the_sheets(channels):
    """Bases x directions x steps in C order, over several files, the last one with fewer rows."""
    tiles = random(3, 2, 5, 6, 7, channels)
    sheets = explore.encode(tiles, pixels=6 * 7 * 8 * 2)
    files = [np.asarray(pixels(url)) for url in sheets.urls]
    assert len(files) > 1 and all(file.shape[0] * file.shape[1] <= 6 * 7 * 8 * 2 for file in files)
    for index, place in enumerate(np.ndindex(3, 2, 5)):
        assert index == (place[0] * 2 + place[1]) * 5 + place[2]
        file, left, top = explore.place(sheets, index)
        found = files[file][top : top + 6, left : left + 7].reshape(6, 7, channels)
        np.testing.assert_array_equal(found, tiles[place])


def test_one_image_that_is_larger_than_a_file_should_be():
    tiles = random(2, 1, 1, 12, 9, 3)
    sheets = explore.encode(tiles, pixels=50)
    assert (len(sheets.urls), sheets.columns, sheets.rows) == (2, 1, 1)
    np.testing.assert_array_equal(np.asarray(pixels(sheets.urls[1])), tiles[1, 0, 0])


def test_the_overlay_is_transparent_at_zero_and_has_a_color_for_each_sign():
    image = pixels(explore.map_url(np.array([[0.0, -2.0, 0.5], [1.0, 4.0, np.nan]])))
    seen = np.asarray(image.convert("RGBA")).astype(int)
    up, down = seen[1, 1], seen[0, 1]
    assert up[3] == 255 and up[0] > up[2] + 100 and down[2] > down[0] + 100
    np.testing.assert_array_equal(seen[..., 3] / 255 > 0.01, [[0, 1, 1], [1, 1, 0]])
    np.testing.assert_allclose(seen[..., 3] / 255, [[0, 0.71, 0.355], [0.5, 1, 0]], atol=0.01)
    assert not np.asarray(pixels(explore.map_url(np.zeros((2, 2)))).convert("RGBA"))[..., 3].any()


def test_images_are_averaged_each_for_itself():
    tiles = np.zeros((2, 4, 4, 3), np.uint8)
    tiles[1, :2, 2:, 1] = 200
    small = explore.resize(tiles, (2, 2))
    expected = np.zeros((2, 2, 2, 3), np.uint8)
    expected[1, 0, 1, 1] = 200
    np.testing.assert_array_equal(small, expected)


# The page -----------------------------------------------------------------------------------------------------------


def test_hostile_names_are_text():
    text = explore.page(records(EVIL))
    found = Page(text)
    assert [tag for tag, _ in found.tags].count("script") == 2  # the data and our own
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    for tag, attributes in found.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert EVIL in found.text
    inside = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert inside["walks"][0]["method"] == f"SeFa {EVIL}" and inside["bases"]["labels"][1] == EVIL


def test_a_section_without_data_is_absent():
    empty = explore.Explored("a/run", ["a GAN"])
    assert Page(explore.page(empty)).sections == []
    whole = records()
    expected = "directions paths attribution0 neighbors inversion pictures tables left-out"
    assert Page(explore.page(whole)).sections == expected.split()
    only = explore.Explored("a/run", [], left_out=["The spectrum: there is no D."])
    assert Page(explore.page(only)).sections == ["left-out"]


def test_the_numbers_under_pictures():
    text = Page(explore.page(records())).text
    for said in ("residual < 0.001 %", "residual 1.2 %", "residual 3,000 %", "residual not finite"):
        assert said in text
    assert "error 0.25" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r._replace(bases=None), "need `bases`"),
        (lambda r: r._replace(bases=r.bases._replace(seeds=[0])), "strips: is [4, 2, 5, 8, 8, 1]"),
        (
            lambda r: r._replace(walks=[r.walks[0]._replace(scores=np.zeros((4, 2, 4)))]),
            "scores: is [4, 2, 4], must be [4, 2, 5]",
        ),
        (lambda r: r._replace(walks=[r.walks[0]._replace(grids=None)]), "pairs need `grids`"),
        (lambda r: r._replace(paths=r.paths._replace(names=["one"])), "paths: tiles"),
        (
            lambda r: r._replace(attributed=[r.attributed[0]._replace(methods=["one"])]),
            "attributed: maps",
        ),
    ],
)
def test_records_that_do_not_agree(change, says):
    with pytest.raises(ValueError) as refused:
        explore.page(change(records()))
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_page_that_would_be_too_large_has_smaller_images():
    noise = records(side=40, channels=3)
    noise = noise._replace(walks=[noise.walks[0]._replace(strips=random(4, 2, 5, 40, 40, 3))])
    text = explore.page(noise, limit=320_000)
    assert len(text) <= 320_000 < len(explore.page(noise))
    side, again = map(int, re.findall(r"averaged from 40 × 40 to (\d+) × (\d+) pixels", text)[0])
    assert side == again and 16 <= side < 40
    inside = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert inside["walks"][0]["strips"]["width"] == side
    tiny = explore.page(noise, limit=1)
    assert "to 16 × 16 pixels" in tiny


def test_the_size_of_a_page_of_digits():
    """3 seeds x 10 classes x (5 directions x 11 steps + 3 pairs x 7 x 7), of real digits."""
    split = data.load("mnist10k", "train")
    x = split.read(np.random.default_rng(0).integers(0, 9000, 30 * (5 * 11 + 3 * 49)))[0]
    x = x.reshape(-1, 28, 28, 1)
    walk = explore.Walk(
        "SeFa",
        "z",
        list("12345"),
        list(range(-5, 6)),
        x[:1650].reshape(30, 5, 11, 28, 28, 1),
        pairs=[(0, 1), (0, 2), (1, 2)],
        pair_steps=list(range(-3, 4)),
        grids=x[1650:].reshape(3, 30, 7, 7, 28, 28, 1),
    )
    found = explore.Explored("run", [], explore.Bases(range(3), list("0123456789")), [walk])
    assert len(explore.page(found)) < 2_000_000  # four methods, and much else, are below 12 MB


def test_the_report_of_a_run_leads_to_it(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"experiment": "e", "config": {}, "versions": {}, "devices": [], "command": "c"})
    )
    assert "explore.html" not in page.write_report(tmp_path).read_text()
    explore.write_page(tmp_path / "explore.html", records())
    assert 'href="explore.html"' in page.write_report(tmp_path).read_text()


# In a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    if not browser.program():
        pytest.skip("there is no Chromium")
    with browser.started() as one:
        yield one


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explore.html"
    return explore.write_page(path, records(EVIL)).as_uri()


GRAY = """(() => {
  const canvas = document.querySelector("SELECTOR");
  const copy = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  return copy.getImageData(0, 0, 1, 1).data[0];
})()"""


def gray(chromium, selector=".sample canvas"):
    """The gray level of the first pixel, once all is drawn."""
    wait = "Promise.all([...document.images].map(i => i.decode().catch(() => 0)))"
    chromium.run(f"{wait}.then(() => new Promise(done => setTimeout(done, 60)))")
    return chromium.run(GRAY.replace("SELECTOR", selector))


def put(chromium, selector, value):
    """Moves a slider or picks of a list, as a person does."""
    chromium.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        f' e.dispatchEvent(new Event("input")); e.dispatchEvent(new Event("change")); }})()'
    )


def pick(chromium, text):
    """Chooses the radio button with a text."""
    chromium.run(
        f"[...document.querySelectorAll('#explorer .chips label')].find(l => l.textContent === {json.dumps(text)})"
        ".querySelector('input').click()"
    )


def box(chromium, selector):
    return chromium.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        " const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )


@pytest.mark.medium
def test_sliders_change_the_picture(chromium, url):
    """Each image of the walk has the gray level of its index, so the picture says where the page looked."""
    chromium.problems.clear()
    chromium.open(url)
    assert gray(chromium) == 2  # seed 0, class 7, direction 1 at 0
    put(chromium, ".move:nth-child(2) input", 4)
    assert gray(chromium) == 5 + 4
    said = chromium.run("document.querySelector('.sample').textContent")
    assert f"direction 2 {EVIL} at +2 sd" in said and "D’s score9" in said
    labels = chromium.run("[...document.querySelectorAll('.moves label')].map(e => e.textContent)")
    assert labels == ["Direction 1 (a share)", f"Direction 2 {EVIL}"]
    pick(chromium, "1")
    pick(chromium, EVIL)
    assert gray(chromium) == 30 + 5 + 4
    chromium.run("document.querySelector('.move:nth-child(2) input').focus()")
    chromium.press("ArrowLeft")
    assert gray(chromium) == 30 + 5 + 3
    put(chromium, "#explorer select", "GANSpace in z")
    assert gray(chromium) == 255 - 38
    chromium.run("new Promise(done => setTimeout(done, 250))")
    there = chromium.run("location.href")
    assert "method=1" in there and "direction=1" in there
    chromium.open(there)  # a view can be linked
    assert gray(chromium) == 255 - 38
    chromium.open(f"{url}#method=9&direction=x&step=999999&nonsense=1&seed=1&__proto__=3")
    assert gray(chromium) == 255 - (20 + 4)
    assert not chromium.problems


@pytest.mark.medium
def test_two_directions_by_pointer_touch_keys_and_sliders(chromium, url):
    chromium.problems.clear()
    chromium.open(f"{url}#mode=1")
    assert gray(chromium) == 100 + 4
    left, top, width, height = box(chromium, ".pad")
    at = [(left + width * (i + 0.5) / 3, top + height * (i + 0.5) / 3) for i in range(3)]
    chromium.point("mousePressed", *at[0])
    assert gray(chromium) == 100
    chromium.point("mouseMoved", at[2][0], at[0][1])
    chromium.point("mouseReleased", at[2][0], at[0][1])
    assert gray(chromium) == 102
    chromium.run("document.querySelector('.pad').focus()")
    chromium.press("ArrowDown")
    chromium.press("ArrowLeft")
    assert gray(chromium) == 104
    chromium.touch("touchStart", at[2])
    chromium.touch("touchEnd")
    assert gray(chromium) == 108
    shown = "[...document.querySelectorAll('.sliders input')].map(e => +e.value)"
    assert chromium.run(shown) == [2, 2]
    put(chromium, ".sliders .move:nth-child(2) input", 0)
    assert gray(chromium) == 106
    assert not chromium.problems


@pytest.mark.medium
def test_the_rest_of_the_page_in_a_browser(chromium, url):
    """Truncation, interpolations, attribution; nothing is wider than the window, everything has a name."""
    chromium.problems.clear()
    whole = records(EVIL)
    chromium.open(f"{url}#mode=2&strip0=0", width=390, height=800, dark=True)
    assert gray(chromium) == whole.strips[0].tiles[0, 0, 0, 0, 0]
    put(chromium, "#explorer .move input", 1)
    assert gray(chromium) == whole.strips[0].tiles[0, 1, 0, 0, 0]
    put(chromium, ".film:nth-child(2) input", 3)
    assert gray(chromium, ".film:nth-child(2) > canvas") == whole.paths.tiles[1, 3, 0, 0, 0]
    shown = (
        "[...document.querySelectorAll('.map:not([hidden])')].map(e => e.dataset.method).join('')"
    )
    assert chromium.run(shown) == "000"
    chromium.run("document.querySelectorAll('.attribution input[type=radio]')[1].click()")
    assert chromium.run(shown) == "111"
    put(chromium, ".blend input", 0)
    assert chromium.run("getComputedStyle(document.querySelector('.map')).opacity") == "0"
    for width in (390, 1280):
        chromium.open(url, width=width)
        gray(chromium)
        assert chromium.run("document.documentElement.scrollWidth") == width
        unnamed = """[...document.querySelectorAll("input, select, [tabindex='0'], canvas[role]")].filter(e =>
          !(e.ariaLabel || e.labels?.length && e.labels[0].textContent.trim())).length"""
        assert chromium.run(unnamed) == 0
    assert not chromium.problems


def test_a_table_for_a_terminal():
    head, row = ["what", "mean\nof three"], ["length", (Link("4", "#"), Link("5", "#"))]
    assert Table("Numbers", head, [row]).text() == ["Numbers", "  what    mean", "  length  4 5"]
