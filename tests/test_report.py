"""Reports: pictures to the pixel, logs to the byte, a page that needs nothing but itself."""

import base64
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from bpgan.runtime import report
from bpgan.types import UserError


def test_grid_places_and_quantises_every_pixel():
    x = np.linspace(-1, 1, 5 * 2 * 3).reshape(5, 2, 3, 1)
    grid = report.image_grid(x, columns=2, gap=1)
    assert grid.shape == (3 * 2 + 2, 2 * 3 + 1, 1) and grid.dtype == np.uint8
    expected = np.round((x + 1) * 255 / 2)
    np.testing.assert_array_equal(grid[0:2, 0:3], expected[0])
    np.testing.assert_array_equal(grid[0:2, 4:7], expected[1])
    np.testing.assert_array_equal(grid[6:8, 0:3], expected[4])
    assert grid[6:8, 4:7].max() == 0 and grid[2].max() == 0
    np.testing.assert_array_equal(report.to_bytes(np.array([-9.0, 9.0])), [0, 255])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    report.save_png(tmp_path / "new" / "a.png", image)
    with Image.open(tmp_path / "new" / "a.png") as read:
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_truncation_keeps_bytes_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = b'{"step": 1, "a": 1.50}\n{"a":2,  "step": 2}\n'
    path.write_bytes(kept + b'{"step": 3}\n{"step": 4, "a')
    assert [line["step"] for line in report.read_metrics(path)] == [1, 2, 3]
    report.truncate_metrics(path, 2)
    assert path.read_bytes() == kept
    report.truncate_metrics(path, 0)
    assert path.read_bytes() == b""
    report.truncate_metrics(tmp_path / "none", 3)
    assert report.read_metrics(tmp_path / "none") == []


def test_damaged_log_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"m.jsonl: line 2 is not a log line"):
        report.read_metrics(tmp_path / "m.jsonl")


def test_curves_group_thin_and_skip_what_is_not_finite():
    lines = [{"step": i, "d/loss": float(i), "g/loss": 2.0 * i} for i in range(1, 5001)]
    lines[7]["d/loss"] = float("nan")
    panels = report.curves(lines)
    assert list(panels) == ["loss"] and list(panels["loss"]) == ["d/loss", "g/loss"]
    points = panels["loss"]["g/loss"]
    assert len(points) <= 1001 and points[0] == [1, 2.0] and points[-1] == [5000, 10000.0]
    assert all(np.isfinite(v) for _, v in panels["loss"]["d/loss"])


class Page(html.parser.HTMLParser):
    """What matters of a page: its elements and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def make_run(path, *, grids=3, evil="<script>alert(1)</script>"):
    record = {
        "experiment": "test",
        "config": {"lr": 0.1, "dataset": evil},
        "versions": {"jax": "1"},
        "devices": ["cpu:0"],
        "command": f"python -m test --dataset='{evil}'",
    }
    (path / "config.json").write_text(json.dumps(record))
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, 30):
            file.write(
                json.dumps({"step": step, "epoch": step / 10, "d/loss": 1 / step, "</x": 1}) + "\n"
            )
    for step in range(grids):
        image = np.full((8, 8, 1), step % 256, np.uint8)
        report.save_png(path / f"samples/step_{step:08d}.png", image)


def test_page_is_self_contained_and_inert(tmp_path):
    make_run(tmp_path)
    text = report.write_report(tmp_path).read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "alert(1)" not in [t.strip() for t in page.text]
    assert sum(tag == "script" for tag, _ in page.tags) == 2  # the data and our own
    assert "<!--" not in text.replace("<!doctype", "")
    pictures = [a for tag, a in page.tags if tag == "img" and "data-step" in a]
    assert [int(a["data-step"]) for a in pictures] == [0, 1, 2]
    for value, attributes in enumerate(pictures):
        raw = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        assert np.asarray(Image.open(io.BytesIO(raw))).max() == value
    assert ["hidden" in a for a in pictures] == [True, True, False]
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["loss"]["d/loss"][0] == [1, 1.0]
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 300


def test_many_grids_are_thinned_keeping_the_ends(tmp_path):
    make_run(tmp_path, grids=200)
    page = Page(report.write_report(tmp_path).read_text())
    steps = [int(a["data-step"]) for tag, a in page.tags if tag == "img" and "data-step" in a]
    assert len(steps) == 60 and steps[0] == 0 and steps[-1] == 199 and steps == sorted(steps)


def test_run_without_samples_or_log(tmp_path):
    make_run(tmp_path, grids=0)
    (tmp_path / "metrics.jsonl").unlink()
    page = Page(report.write_report(tmp_path).read_text())
    assert "running or killed" in page.text
    assert not any(a.get("id") == "samples" for _, a in page.tags)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.write_report(tmp_path)
