"""Reports: pictures to the pixel, logs to the byte, a page that needs nothing but itself."""

import base64
import html.parser
import io
import json
import math
import os
import pathlib
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bpgan.report import page as report
from bpgan.report import plot
from bpgan.runtime import images, records
from bpgan.types import UserError


def test_grid_places_and_quantizes_every_pixel():
    x = np.linspace(-1, 1, 5 * 2 * 3).reshape(5, 2, 3, 1)
    grid = images.image_grid(x, columns=2, gap=1)
    assert grid.shape == (3 * 2 + 2, 2 * 3 + 1, 1) and grid.dtype == np.uint8
    expected = np.round((x + 1) * 255 / 2)
    np.testing.assert_array_equal(grid[0:2, 0:3], expected[0])
    np.testing.assert_array_equal(grid[0:2, 4:7], expected[1])
    np.testing.assert_array_equal(grid[6:8, 0:3], expected[4])
    assert grid[6:8, 4:7].max() == 0 and grid[2].max() == 0
    np.testing.assert_array_equal(images.to_bytes(np.array([-9.0, 9.0])), [0, 255])


def test_quantization_of_values_between_and_beyond():
    """127.5 (x + 1): ties go to the even byte, as numpy rounds; NaN is black, without a warning."""
    x = np.array([-1, -1 + 1 / 255, 0, 0.5, 1, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(images.to_bytes(x), [0, 0, 128, 191, 255, 0, 255, 0])
    every = np.arange(256, dtype=np.uint8)
    assert images.to_bytes(every) is every
    np.testing.assert_array_equal(images.to_bytes(every / np.float32(127.5) - 1), every)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    images.save_png(tmp_path / "new" / "a.png", image)
    with Image.open(tmp_path / "new" / "a.png") as read:
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_truncation_keeps_bytes_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = b'{"step": 1, "a": 1.50}\n{"a":2,  "step": 2}\n'
    path.write_bytes(kept + b'{"step": 3}\n{"step": 4, "a')
    assert [line["step"] for line in records.read_log(path)] == [1, 2, 3]
    records.truncate_log(path, 2)
    assert path.read_bytes() == kept
    records.truncate_log(path, 0)
    assert path.read_bytes() == b""
    records.truncate_log(tmp_path / "none", 3)
    assert records.read_log(tmp_path / "none") == []


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"step": "9"}',
        '{"step": 2, "loss": "x"}',
        '{"step": 2, "loss": true}',
        '{"step": 2, "anomaly": 3}',
        '{"step": 1e400}',
        "[]",
        "{}",
    ],
)
def test_damaged_log_is_named(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"m.jsonl: line 2 is not a log line"):
        records.read_log(tmp_path / "m.jsonl")


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
                json.dumps(
                    {"step": step, "epoch": step / 10, "d/loss": 1 / step, "</x<!--<script>": step}
                )
                + "\n"
            )
    for step in range(grids):
        image = np.full((8, 8, 1), step % 256, np.uint8)
        images.save_png(path / f"samples/step_{step:08d}.png", image)


def make_log(path, values, **more):
    """A run whose log has the given values of ``loss`` at steps 1, 2, ..."""
    make_run(path, grids=0)
    lines = [{"step": i, "epoch": i / 10, "loss": v, **more} for i, v in enumerate(values, 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def page_of(path):
    """The written page, its elements, and the data of its script."""
    text = report.write_report(path).read_text()
    page = Page(text)
    return text, page, json.loads(text.split('id="data">')[1].split("</script>")[0])


def pictures(page):
    return [attributes for tag, attributes in page.tags if tag == "img"]


def test_page_is_self_contained_and_inert(tmp_path):
    make_run(tmp_path)
    text, page, data = page_of(tmp_path)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "xlink:href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert not re.findall(r"https?:|url\(|@import", text)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert sum(tag == "script" for tag, _ in page.tags) == 2  # the data and our own
    assert "<script>alert(1)</script>" in page.text and "<script>alert" not in text
    assert "$" not in re.sub(r"base64,[^\"]*", "", text)
    assert [int(a["data-step"]) for a in pictures(page)] == [0, 1, 2]
    for value, attributes in enumerate(pictures(page)):
        raw = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        assert np.asarray(Image.open(io.BytesIO(raw))).max() == value
    assert ["hidden" in a for a in pictures(page)] == [True, True, False]
    # 8 pixels, enlarged by a whole factor.
    assert pictures(page)[-1]["width"] == "640" and pictures(page)[-1]["class"] == "pixels"
    assert data["panels"][0][3][0] == [
        list(range(1, 30)),
        [float(f"{1 / i:.6g}") for i in range(1, 30)],
    ]
    drawing = ElementTree.parse(tmp_path / "curves.svg").getroot()
    assert float(drawing.get("width")) > 300
    assert not [e for e in drawing.iter() if e.tag.endswith(("script", "image", "a"))]
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_page_says_what_the_run_did(tmp_path):
    make_log(tmp_path, [4.0, 2.0], **{"time/elapsed": 133.6, "time/images_per_s": 12345.6})
    result = {
        "status": "done",
        "step": 2,
        "metrics": {"loss": 2.0, "accuracy": 0.75},
        "timings": {"total_s": 140.0},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    text, page, _ = page_of(tmp_path)
    for shown in (
        "test",
        "done",
        "2 min 14 s",
        "12,346",
        "0.75",
        "epochs",
        "0.2",
        "lr",
        "0.1",
        "jax",
        "cpu:0",
    ):
        assert shown in page.text, shown
    assert "<!--" not in text.replace("<!doctype", "")
    # The run goes on: what its first part ended with no longer describes it.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "epoch": 0.3, "loss": 1.0}\n{"step": 4, "lo')
    _, page, data = page_of(tmp_path)
    assert "unfinished" in page.text and "done" not in page.text and "0.75" not in page.text
    assert data["panels"][0][3] == [[[1, 2, 3], [4.0, 2.0, 1.0]]]


def test_curves_are_drawn_where_the_values_are(tmp_path):
    """The path in the page, without JavaScript: linear in the step, and in the value or its logarithm."""
    for name, values in {"linear": [1.0, 3.0, 2.0, 2.0], "log": [1.0, 1e-4, 1e-2, 1e-2]}.items():
        run = tmp_path / name
        run.mkdir()
        make_log(run, values)
        _, page, data = page_of(run)
        low, high, is_log, _ = data["panels"][0]
        assert is_log == (name == "log") == ("log scale" in " ".join(page.text))
        path = next(a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "c0")
        points = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), float)
        np.testing.assert_allclose(points[:, 0], [250, 500, 750, 1000], atol=0.06)
        y = np.log10(values) if is_log else np.array(values)
        np.testing.assert_allclose(points[:, 1], 1000 * (high - y) / (high - low), atol=0.06)
        assert 0 < points[:, 1].min() < 60 and 940 < points[:, 1].max() < 1000


def test_what_is_not_finite_is_a_gap_and_is_said(tmp_path):
    make_log(tmp_path, [1.0, 2.0, float("nan"), 3.0, None, 1.0, float("inf")], flag=None)
    text, page, data = page_of(tmp_path)
    panel = next(p for p in data["panels"] if p[3][0][1][0] == 1.0)
    assert panel[3][0][1] == [1.0, 2.0, None, 3.0, None, 1.0, None]
    path = next(a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "c0")
    assert re.sub(r"[\d. ]+", "", path.replace("h0", "h")) == "MhLMhMh"
    assert any("loss is not finite at step 3" in t for t in page.text)
    assert "NaN" not in text and "Infinity" not in text


def test_long_curves_are_thinned_but_keep_spikes_gaps_and_ends(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=10_000).round(3)
    values[1234], values[7777], values[5000] = 50.0, -50.0, np.nan
    values[1236] = values[7779] = np.nan  # next to the spikes
    make_log(tmp_path, values.tolist())
    _, _, data = page_of(tmp_path)
    steps, kept = data["panels"][0][3][0]
    assert 600 < len(steps) <= 1000 and steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 10_000)
    assert all(
        v is None if np.isnan(values[s - 1]) else v == values[s - 1]
        for s, v in zip(steps, kept, strict=True)
    )
    assert {1235, 7778, 5001} <= set(steps)


def test_metrics_of_one_unit_share_a_panel(tmp_path):
    names = (
        "g/grad_norm",
        "d/real",
        "d/loss",
        "time/images_per_s",
        "d/fake",
        "accuracy",
        "g/loss",
        "d/grad_norm",
    )
    make_log(tmp_path, [])
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i} | dict.fromkeys(names, float(i))) + "\n" for i in (1, 2))
    )
    text, _, _ = page_of(tmp_path)
    panels = re.findall(r"<h3>(.*?)</h3>(.*?)</figcaption>", text, re.S)
    curves = {title: re.findall(r'class="(c\d)"><i></i>(\S+) ', legend) for title, legend in panels}
    assert curves == {
        "Loss": [("c0", "d/loss"), ("c1", "g/loss")],
        "Mean logit": [("c0", "d/real"), ("c1", "d/fake")],
        "Gradient norm": [("c1", "g/grad_norm"), ("c0", "d/grad_norm")],
        "Accuracy": [("c0", "accuracy")],
        "Examples per second": [("c0", "time/images_per_s")],
    }
    assert list(curves) == [
        "Loss",
        "Mean logit",
        "Gradient norm",
        "Accuracy",
        "Examples per second",
    ]


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [0.25] * 5,
        [-3.0, -3.0],
        [1e-30, 1.0],
        [1e9, 1.0000001e9],
        [0.0, 3e38],
        [0.0, 5e-324],
        [1e-310] * 2,
        [1e308],
        [-1.7e308, 1.7e308],
        [1e-320, 1.7e308],
        [5e-324, 1e-300, 1.0],
        [0.6, 7.96],
        [1e-9, 0.05],
    ],
)
def test_axes_of_any_values(tmp_path, values, capsys):
    """Ticks lie inside the axis, rise, and differ when printed; both pictures are drawn of what is no constant."""
    at, labels = zip(*plot.Axis.of(values).ticks(), strict=True)
    assert 2 <= len(at) <= 7 and list(at) == sorted(at) and 0 <= at[0] and at[-1] <= 1
    assert len(set(labels)) == len(labels)
    make_log(tmp_path, values)
    text, page, data = page_of(tmp_path)
    if len(set(values)) == 1:
        assert not data["panels"] and not (tmp_path / "curves.svg").exists()
        assert "Constant, or logged once" in page.text and not capsys.readouterr().err
        return
    assert (
        ElementTree.parse(tmp_path / "curves.svg")
        and (tmp_path / "curves.svg").stat().st_size > 1000
        and not capsys.readouterr().err
    )
    for d in (
        a["d"] for tag, a in page.tags if tag == "path" and a.get("class", "").startswith("c")
    ):
        assert all(0 <= float(at) <= 1000 for at in re.findall(r"[\d.e+-]+", d.replace("h0", "")))
    low, high, *_ = data["panels"][0]
    assert low < high
    ticks = re.findall(r'<span style="bottom:([\d.]+)%">(.*?)</span>', text)
    heights, labels = [float(h) for h, _ in ticks], [label for _, label in ticks]
    assert (
        2 <= len(ticks) <= 7
        and heights == sorted(heights)
        and 0 <= heights[0]
        and heights[-1] <= 100
    )
    assert len(set(labels)) == len(labels)


def test_many_grids_are_thinned_keeping_the_ends(tmp_path, monkeypatch):
    make_run(tmp_path, grids=200)
    (tmp_path / "samples/step_00000200.png").write_bytes(b"no picture")
    whole, read_bytes = [], pathlib.Path.read_bytes
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda path: whole.append(path.suffix) or read_bytes(path)
    )
    _, page, _ = page_of(tmp_path)
    steps = [int(a["data-step"]) for a in pictures(page)]
    assert whole.count(".png") == 60  # only those that are shown
    assert len(steps) == 60 and steps[0] == 0 and steps[-1] == 199 and steps == sorted(set(steps))
    assert set(np.diff(steps)) == {3, 4}


@pytest.mark.medium
def test_large_grids_are_thinned_to_what_can_be_mailed(tmp_path):
    make_run(tmp_path, grids=0)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)  # 270 kB each
    for step in range(60):
        images.save_png(tmp_path / f"samples/step_{step:08d}.png", noise)
    text, page, _ = page_of(tmp_path)
    steps = [int(a["data-step"]) for a in pictures(page)]
    assert 3e6 < len(text) < 5e6 and steps[0] == 0 and steps[-1] == 59 and len(steps) > 8


def test_run_without_samples_or_log(tmp_path):
    make_run(tmp_path, grids=0)
    (tmp_path / "metrics.jsonl").unlink()
    _, page, data = page_of(tmp_path)
    assert "unfinished" in page.text and not pictures(page) and data["panels"] == []
    assert not (tmp_path / "curves.svg").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.write_report(tmp_path)


def test_a_damaged_record_is_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": "te')
    with pytest.raises(UserError, match=r"config\.json: is damaged") as error:
        report.write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_an_evaluation_is_a_table_of_the_report(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"experiment": "gan", "config": {}}')
    row = {"metric": "FD-<net>", "value": 41.5, "real": 7.34, "untrained": None, "step": 9}
    row |= {"features": "<net>", "features_sha256": "ab", "preprocessing": "x / 255"}
    row |= {"n": 300, "reference": "mnist10k test", "reference_images": 1000}
    (tmp_path / "metrics.json").write_text(json.dumps([row]))
    page = report.write_report(tmp_path).read_text()
    assert "<th>FD-&lt;net&gt;</th><td>41.5</td><td>7.34</td><td>–</td>" in page
    assert "300 samples against 1,000 images of mnist10k test" in page and "sha256 ab" in page
    for damaged in ("{torn", json.dumps([row, "nonsense"]), json.dumps([row, {"metric": 1}])):
        (tmp_path / "metrics.json").write_text(damaged)
        assert "Evaluation" not in report.write_report(tmp_path).read_text()
        assert f"{tmp_path / 'metrics.json'}: is damaged (" in capsys.readouterr().err


def test_every_evaluation_is_shown_apart_with_what_it_depends_on(tmp_path):
    make_run(tmp_path, grids=0)
    row = {
        "metric": "FD-x",
        "value": 41.5,
        "step": 9,
        "n": 300,
        "reference": "mnist10k test",
        "seed": 0,
    }
    best = row | {"checkpoint": "best", "step": 5, "flags": "truncation=<0.7>", "value": 17.25}
    other = row | {"checkpoint": "newest", "seed": 1, "value": 3.75}
    kd = best | {"metric": "KD-x", "value": 1.125, "classes": 2, "of_classes": 3}
    (tmp_path / "metrics.json").write_text(json.dumps([row, best, other, kd]))
    text, _, _ = page_of(tmp_path)
    section = text.split('class="evaluation">')[1].split("</section>")[0]
    assert section.startswith("<h2>Evaluations</h2>")
    tables = re.findall(
        r"<h3>(.*?)</h3>.*?<table class=.table.>(.*?)</table><p>(.*?)</p>|$",
        section.replace("</div>", ""),
    )
    assert [
        (title, re.findall(r"<td>([\d.]+)</td>", table)) for title, table, _ in tables if title
    ] == [
        ("Step 9", ["41.5"]),
        ("Best checkpoint, step 5, truncation=&lt;0.7&gt;", ["17.25", "1.125"]),
        ("Newest checkpoint, step 9", ["3.75"]),
    ]
    assert "KD-x <small>2 of 3 classes</small>" in tables[1][1] and "classes" not in tables[0][1]
    assert "Seed 1." in tables[2][2] and "Seed 0." in tables[1][2]


def test_samples_become_a_moving_picture(tmp_path):
    """Every grid of the page is a frame, in order of steps, with the colors of the file to a palette."""
    (tmp_path / "config.json").write_text(json.dumps({"experiment": "test"}))
    (tmp_path / "metrics.jsonl").write_text("")
    for step, gray in ((0, 20), (10, 120), (5, 70)):
        images.save_png(
            tmp_path / f"samples/step_{step:08d}.png", np.full((8, 12, 3), gray, np.uint8)
        )
    report.write_report(tmp_path)
    with Image.open(tmp_path / "samples.gif") as gif:
        frames = []
        for i in range(gif.n_frames):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")).mean())
        assert gif.size == (12, 8)
    np.testing.assert_allclose(frames, [20, 70, 120], atol=2)


def flipped(raw, bit):
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


def test_damaged_pictures_are_named_and_left_out(tmp_path, capsys):
    """Any bit of a PNG flipped, cut short, another format, or no file at all; the others are shown."""
    make_run(tmp_path, grids=3)
    folder, sound = tmp_path / "samples", tmp_path / "samples/step_00000001.png"
    raw, last = sound.read_bytes(), tmp_path / "samples/step_00000002.png"
    gif = io.BytesIO()
    Image.new("L", (8, 8)).save(gif, format="gif")
    damaged = [flipped(raw, bit) for bit in range(0, 8 * (len(raw) - 12), 97)]  # but the empty IEND
    for i, content in enumerate(
        [*damaged, raw[:-20], raw[:9], b"", gif.getvalue(), gif.getvalue()[:8] + raw[8:]]
    ):
        last.with_name(f"step_{i + 2:08d}.png").write_bytes(content)
    (folder / "step_00000900.png").mkdir()
    (folder / "step_00000901.png").symlink_to("nowhere")
    os.mkfifo(folder / "step_00000902.png")
    _, page, _ = page_of(tmp_path)
    assert [int(a["data-step"]) for a in pictures(page)] == [0, 1]
    with Image.open(tmp_path / "samples.gif") as image:
        assert image.n_frames == 2
    said = capsys.readouterr().err.splitlines()
    assert all(
        line.startswith("warning: ") and "it is left out of the report" in line for line in said
    )
    assert len(said) == len(list(folder.iterdir())) - 2


@pytest.mark.medium
def test_what_is_in_the_way_of_a_report_is_a_warning(tmp_path, capsys):
    """A directory in the place of any of its files; and what can be written still is."""
    for name in ("curves.svg", "samples.gif", "report.html", "report.html.tmp", "curves.svg.tmp"):
        run = tmp_path / name
        run.mkdir()
        make_run(run)
        (run / name / "full").mkdir(parents=True)
        page = report.update_report(run)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith(
            f"warning: {run / name.removesuffix('.tmp')}: cannot be"
        ), said
        assert (page is None) == name.startswith("report.html")
        left = {"curves.svg", "samples.gif", "report.html"} - {name, name.removesuffix(".tmp")}
        assert all((run / each).is_file() for each in left)
        if page is None:
            with pytest.raises(UserError, match=r"report\.html: cannot be written"):
                report.write_report(run)


def test_a_damaged_log_or_result_is_said_on_the_page(tmp_path, capsys):
    make_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n')
    (tmp_path / "result.json").write_text("{")
    _, page, data = page_of(tmp_path)
    assert data["panels"] == []
    (note,) = [text for text in page.text if "left out" in text]
    assert "metrics.jsonl: line 2 is not a log line (step 1 after step 1); it is left out." in note
    assert "result.json: is damaged (" in note and "No result yet" not in note
    assert capsys.readouterr().err.count("warning: ") == 2


def test_pictures_hold_any_letters(tmp_path):
    """The file is XML whatever an experiment is called, and the same bytes each time."""
    make_run(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text()) | {
        "experiment": "実験 $x <&\x07\ufffe"
    }
    (tmp_path / "config.json").write_text(json.dumps(record))
    report.write_report(tmp_path)
    drawn = (tmp_path / "curves.svg").read_bytes()
    texts = [e.text for e in ElementTree.fromstring(drawn).iter() if e.tag.endswith("text")]
    assert texts[0] == "実験 $x <&\ufffd\ufffd" and "</x<!--<script>" in drawn.decode().replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    report.write_report(tmp_path)
    assert (tmp_path / "curves.svg").read_bytes() == drawn


def places(path):
    return np.array(re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path), float)


def test_a_plot_is_the_same_in_a_page_and_in_a_file(tmp_path):
    """A point lies at the same share of its box, and axes of every kind put their ticks where the values are."""
    axis = plot.Axis.of([1e-3, 10.0])
    assert axis.log and [float(axis.at(v)) for v in (1e-3, 10.0)] == pytest.approx(
        [1 / 22, 21 / 22]
    )
    for at, text in axis.ticks():
        assert float(axis.at(float(text))) == pytest.approx(at)
    narrow = plot.Axis.of([30.0, 42.0], log=True)
    assert [text for _, text in narrow.ticks()] == ["30", "35", "40"]
    shape = plot.Shape([0.25, 0.5, 0.75], [0.0, 1.0, math.nan], 3)
    one = plot.Plot("t", [shape], [(0.5, "5")], [(0.0, "0"), (1.0, "1")], [(3, "curve", "7")])
    np.testing.assert_allclose(places(shape.path(1000, 1000)), [[250, 1000], [500, 0]])
    np.testing.assert_allclose(places(shape.path(200, 100)), [[50, 100], [100, 0]])
    assert 'class="c3"' in plot.figure(one) and "<b>7</b>" in plot.figure(one)
    plot.write_svg(tmp_path / "a.svg", [one, one, one, one], title="x")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    boxes = [e.get("transform") for e in root if e.get("transform")]
    assert len(boxes) == 4 and len({box.split()[0] for box in boxes}) == 2  # two columns
    assert len({box.split()[1] for box in boxes}) == 3  # the last, being alone, has a row


@pytest.mark.parametrize("value", [1e308, 5e-324, math.inf])
def test_the_other_pictures_take_any_values(tmp_path, value):
    values = np.array([[1.0, value, 2.0], [value] * 3])
    plot.save_range(
        tmp_path / "a.svg", "日本 $", np.array([1e-9, 1e-3, 1e9]), values, values, {"$x": 1e-3}
    )
    plot.save_distributions(
        tmp_path / "b.svg", "t", {"$g": {"日": [value, 1.0], "s": []}, "h": {"s": [value]}}
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "b.svg"]
    for name in ("a.svg", "b.svg"):
        numbers = re.findall(r"[ML]([^\"]+?)[h\"]", (tmp_path / name).read_text())
        assert numbers and "inf" not in " ".join(numbers)
        ElementTree.parse(tmp_path / name)


def test_the_page_says_what_the_data_were_and_how_large_the_players_are(tmp_path):
    """And what stands around a grid: columns with names, or axes and a legend; nothing of a color that is none."""
    make_run(tmp_path, grids=1)
    record = json.loads((tmp_path / "config.json").read_text())
    record |= {"title": "digits: 9 <images>", "parameters": {"g": 1234, "d": 56}}

    def shown(frame):
        (tmp_path / "config.json").write_text(json.dumps(record | {"frame": frame}))
        return page_of(tmp_path)

    text, page, _ = shown({"columns": ["cat", "<dog>"]})
    assert "digits: 9 <images>" in page.text and "Parameters: 1,234 of g, 56 of d." in page.text
    assert "cat" in page.text and "<dog>" in page.text and "--n:2" in text
    assert '<div class="columns" ' in text  # words have room in a line, on a phone as well
    for names, kind in ((["equilateral"] * 6, "narrow"), (["x" * 30, ""] * 5, "upright")):
        assert f'<div class="columns {kind}" ' in shown({"columns": names})[0]
    legend = [("#00ff7f", "generated"), ("red;}</style>", "evil")]
    text, page, _ = shown({"x": ["theta", -2, 2], "y": ["psi", 0, 1], "legend": legend})
    assert {"theta", "psi", "generated"} <= set(page.text) and "evil" not in text
    ticks = re.findall(r'<span style="left:([\d.]+)%">(-?\d)</span>', text.split("</figure>")[0])
    assert ticks == [
        ("0.00", "-2"),
        ("25.00", "-1"),
        ("50.00", "0"),
        ("75.00", "1"),
        ("100.00", "2"),
    ]


def test_constants_are_a_line_and_controls_are_dashed(tmp_path):
    """A control is drawn beside its number, in its panel, and stands beside it in a table."""
    make_log(tmp_path, [3.0, 2.0], **{"eval/FD": 5.0, "eval/FD/real": 1.0, "noise": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().replace("5.0", "4.0", 1)
    (tmp_path / "metrics.jsonl").write_text(lines)
    text, _, data = page_of(tmp_path)
    assert len(data["panels"]) == 2 and [len(panel[3]) for panel in data["panels"]] == [1, 2]
    assert re.search(r'<path class="c\d dashed"', text.split("<h3>FD")[1])
    constant = text.split("Constant, or logged once")[1].split("</section>")[0]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", constant) == [("noise", "0.25")]
    assert "eval/FD" not in text.split("Final metrics")[1].split("</section>")[0]
    evaluated = text.split("While it trained, last")[1].split("</section>")[0]
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", evaluated)
    assert cells == ["", "value", "real", "untrained", "eval/FD", "5", "1", "–"]


def test_the_counts_of_both_sides_stand_wherever_a_number_is_shown(tmp_path):
    """Beside the first numbers, over the curves and under the tables, by what the run measures with."""
    make_log(tmp_path, [3.0, 2.0], **{"eval/FD": 5.0, "eval/FD/real": 1.0})
    lines = (tmp_path / "metrics.jsonl").read_text().replace("5.0", "400.0", 1)
    (tmp_path / "metrics.jsonl").write_text(lines)
    metrics = {"loss": 2.0, "test/FD": 4.0, "test/FD/real": 1.0, "best/test/FD": 3.0}
    metrics |= {"best/test/FD/real": 1.0, "best/step": 1.0}
    result = {"status": "done", "step": 2, "metrics": metrics}
    (tmp_path / "result.json").write_text(json.dumps(result))
    record = json.loads((tmp_path / "config.json").read_text())
    counts = {"samples": "5000", "held_images": "1", "test_images": "70", "real_images": "600"}
    (tmp_path / "config.json").write_text(json.dumps(record | {"measure": counts}))
    text, page, _ = page_of(tmp_path)
    held, test = "5,000 samples against 1 image held out", "5,000 samples against 70 images"
    assert f"log scale, {held}" in page.text  # of the curve
    assert f"test: {test} of the test split; best/test: {test} of the test split" in page.text
    tables = text.split('<section class="evaluation">')[1].split("</section>")[0]
    for title, said in {
        "While it trained, last": held,
        "At its end": f"{test} of the test split",
        "Best checkpoint, step 1": f"{test} of the test split",
    }.items():
        notes = tables.split(f"<h3>{title}</h3>")[1].split("<p>")[1].split("</p>")[0]
        assert notes == f"{said}.<br>Real: 600 training images as the samples."
    for measure in ({}, counts | {"samples": "many"}):
        (tmp_path / "config.json").write_text(json.dumps(record | {"measure": measure}))
        assert "samples against" not in page_of(tmp_path)[0]


def test_a_share_is_drawn_on_a_linear_scale(tmp_path):
    """However small its control: a logarithm would crowd the good end of the axis."""
    more = {"eval/recall-k3": 0.5, "eval/recall-k3/untrained": 0.001}
    make_log(tmp_path, [3.0, 2.0], **more)
    lines = (tmp_path / "metrics.jsonl").read_text().replace("0.5", "0.6", 1)
    (tmp_path / "metrics.jsonl").write_text(lines)
    text, _, data = page_of(tmp_path)
    assert "log scale" not in text and not any(panel[2] for panel in data["panels"])


def test_pictures_of_an_experiment_are_on_the_page(tmp_path):
    make_run(tmp_path, grids=0)
    images.save_picture(
        tmp_path / "pictures" / "the fit", "<svg xmlns='http://www.w3.org/2000/svg'/>"
    )
    images.save_picture(tmp_path / "pictures" / "again", np.zeros((2, 2, 1), np.uint8))
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    text, page, _ = page_of(tmp_path)
    kinds = [a["src"].partition(";")[0] for a in pictures(page)]
    assert kinds == ["data:image/png", "data:image/svg+xml"]
    assert "The fit" in page.text and "Notes" not in page.text and "http:" not in text
