"""The comparison of runs: means by hand, hostile names, damaged runs, and a thousand of them."""

import csv
import fractions
import html.parser
import json
import math
import pathlib
import re
import statistics

import jax
import numpy as np
import pytest

from bpgan.evaluation.images import Images
from bpgan.evaluation.table import METRICS
from bpgan.launcher import main as launch
from bpgan.measures import direction, mean_and_deviation
from bpgan.report import compare
from bpgan.report import page as report
from bpgan.report.plot import figure
from bpgan.runtime import anomaly, images
from bpgan.types import UserError
from experiments import toy_gan


def make_run(path, config, values, status="done", metric="eval/FD", metrics=None, images=16):
    path.mkdir(parents=True)
    record = {"experiment": "x", "config": config, "images_per_step": images}
    (path / "config.json").write_text(json.dumps({k: v for k, v in record.items() if v}))
    lines = [
        json.dumps({"step": 10 * (i + 1), "epoch": i, metric: v, "d/loss": 1.0, "time/elapsed": 2.0 * (i + 1)})
        for i, v in enumerate(values)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if status:
        result = {
            "status": status,
            "step": 10 * len(values),
            "metrics": metrics or {metric: values[-1]},
        }
        (path / "result.json").write_text(json.dumps(result))


@pytest.fixture
def folder(tmp_path):
    for lr in (0.1, 0.01):
        for seed in range(3):
            config = {
                "lr": lr,
                "seed": seed,
                "workdir": f"{lr}{seed}",
            }
            make_run(tmp_path / f"a/{lr}_{seed}", config, [5.0, 2 + lr + seed, 3 + lr + 2 * seed])
    return tmp_path


def test_means_are_over_the_seeds_of_a_setting(folder):
    runs = compare.read([folder])
    groups = compare.ranked(compare.settings(runs), "eval/FD")
    assert [dict(s.values) for s in groups] == [{"lr": 0.01}, {"lr": 0.1}]
    final = [3.01, 5.01, 7.01]
    best = [2.01, 3.01, 4.01]
    assert groups[0].mean("eval/FD") == pytest.approx(
        (statistics.mean(final), statistics.stdev(final), 3)
    )
    assert groups[0].mean("eval/FD", "best") == pytest.approx((3.01, 1.0, 3))
    assert statistics.mean(best) == pytest.approx(3.01)
    row = compare.rows(groups, ["eval/FD"])[0]
    assert row == {
        "lr": "0.01", "runs": "3 done", "step": "30", "images": "480", "seconds": "6",
        "eval/FD": "5.01 ± 2 (best 3.01 ± 1)",
    }  # fmt: skip


def test_what_may_change_while_a_run_trains_is_no_setting(tmp_path):
    """As the runs say themselves; how long they were to be is one, and so is what only older runs do not tell."""
    for i, mine in enumerate((1, 2)):
        path = tmp_path / str(i)
        make_run(path, {"mine": mine, "seed": i, "steps": 20}, [3.0, 2.0])
        record = json.loads((path / "config.json").read_text())
        record |= {"restart_safe": ["mine", "steps"], "goal": "max:eval/FD"}
        (path / "config.json").write_text(json.dumps(record))
    runs = compare.read([tmp_path])
    (setting,) = compare.settings(runs)
    assert setting.mean("eval/FD", "best") == (3.0, 0.0, 2)  # more is better, says the run
    assert len(compare.settings([r._replace(restart_safe=frozenset()) for r in runs])) == 2
    longer = runs[0]._replace(config={**runs[0].config, "steps": 40})
    assert len(compare.settings([longer, runs[1]])) == 2


def test_a_seed_counts_once(tmp_path, capsys):
    """Of a run by itself, of a sweep over seeds and of one over step sizes: one config in three directories."""
    for name, values, status in (
        ("default", [30.0, 20.0], "done"),
        ("lr=0.1_ab", [30.0, 20.0], "done"),
        ("seed=0_ab", [30.0], "done"),
        ("seed=0_cd", [30.0, 25.0, 10.0], "interrupted"),
    ):
        make_run(tmp_path / "x" / name, {"lr": 0.1, "seed": 0}, values, status)
    make_run(tmp_path / "x/seed=1_ab", {"lr": 0.1, "seed": 1}, [60.0, 40.0])
    make_run(tmp_path / "x/seed=2_ab", {"lr": 0.1, "seed": 2}, [60.0], "interrupted")
    make_run(tmp_path / "x/seed=2_cd", {"lr": 0.1, "seed": 2}, [60.0, 50.0], "interrupted")
    (setting,) = compare.settings(compare.read([tmp_path]))
    assert [run.path.name for run in setting.runs] == ["default", "seed=1_ab", "seed=2_cd"]
    assert setting.mean("eval/FD") == pytest.approx((30.0, statistics.stdev([20, 40]), 2))
    assert launch.run([f"--report={tmp_path}"]) == 0
    said = "3 runs, 1 setting; 4 repeats of their seeds are left out"
    assert f"x: {said}" in capsys.readouterr().out
    assert said in (tmp_path / "comparison.html").read_text()
    assert (tmp_path / "comparison.csv").read_text().count("\n") == 1 + 7


def test_a_mean_is_over_runs_that_have_come_as_far(tmp_path):
    """Successive halving: seed 0 was paused where seed 1 went on."""
    make_run(tmp_path / "0", {"lr": 0.1, "seed": 0}, [400.0, 300.0], "paused")
    make_run(tmp_path / "1", {"lr": 0.1, "seed": 1}, [350.0, 200.0, 100.0, 20.0])
    for seed in (0, 1):  # a setting that did not survive is one of pauses
        make_run(tmp_path / f"b{seed}", {"lr": 9.0, "seed": seed}, [9.0, 30.0 + seed], "paused")
    one, both = groups = compare.settings(compare.read([tmp_path]))
    assert one.mean("eval/FD")[::2] == (20.0, 1) and both.mean("eval/FD")[::2] == (30.5, 2)
    (row, _) = compare.rows(groups, ["eval/FD"])
    assert (row["eval/FD"], row["seconds"], row["step"]) == ("20", "8", "20 to 40")
    assert row["runs"] == "1 paused, 1 done"
    means, apart = lines_of(compare._curves([one], "eval/FD"))
    assert [len(each) for each in (*means, *apart)] == [4, 2]
    assert dots_of(compare._sensitivity(groups, "lr", "eval/FD")) == [3]
    page = compare._section("x", groups, "eval/FD", tmp_path, [])
    assert "curves dashed: 0 (paused)." in page


def test_what_a_run_did_not_count_is_blank(tmp_path):
    """Before the record had the images of a step."""
    make_run(tmp_path / "old", {"lr": 0.1, "seed": 0}, [3.0], images=None)
    make_run(tmp_path / "older", {"lr": 0.2, "seed": 0}, [3.0], images=None)
    make_run(tmp_path / "new", {"lr": 0.2, "seed": 1}, [3.0])
    runs = compare.read([tmp_path])
    found = {s.values["lr"]: compare.rows([s], [])[0]["images"] for s in compare.settings(runs)}
    assert found == {0.1: "", 0.2: "160"}
    compare.write(runs, "", tmp_path)
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = {row["run"]: row["images"] for row in csv.DictReader(file)}
    assert [rows[str(tmp_path / name)] for name in ("old", "older", "new")] == ["", "", "160"]


GREATER = {
    "modes", "high_quality", "std_ratio", "samples/variance", "elbo", "test/elbo-first-100", "test/iwae-50-first-100",
    "test/active_units", "accuracy", "eval/accuracy", "test_accuracy", "IS", "best/test/precision-k3", "precision-k3",
    "recall-k3", "density-k5", "coverage-k5",
}  # fmt: skip
SMALLER = {
    "reverse_kl", "samples/duplicates", "eval/FD", "best/test/FD", "FD", "nFD", "KD", "loss", "distance", "factor",
    "w2", "train_mse", "logit_error", "FID-Inception-tf1", "KID-Inception-clean", "FD-inf-classifier0-1a2b3c4d",
    "class-FID-x", "FD-classifier0-1a2b3c4d (best checkpoint, step 9, 300 samples)", "copies-%-EffNetLite0",
}  # fmt: skip
NEITHER = {
    "d/loss", "g/loss", "d_loss", "d/fake", "g/fake", "d/real", "kl", "reconstruction", "d/penalty", "d/grad_norm",
    "grad_norm", "time/elapsed", "time/images_per_s", "best/step", "test_images", "distance/known", "train_mse/lstsq",
    "FD-bias-EffNetLite0", "1-NN-accuracy-EffNetLite0", "label-accuracy-swapped-x", "class-FD-worst/mean-x",
    "Vendi-of-1000-x", "C_T-x", "authentic-%-x", "MS-SSIM-2s11w", "", "-", "precisely",
}  # fmt: skip


def test_it_is_said_of_every_measure_which_is_better():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    images = Images(x, None, rng.normal(size=(40, 4)), None)
    toy = toy_gan.build(toy_gan.Config(**toy_gan.PRESETS["smoke"]))
    found = dict(anomaly.diversity(x, x)) | toy.evaluate(toy.algorithm.init(jax.random.key(0)))
    for metric in METRICS.values():
        found |= metric(images, images, images, 0) if metric.while_training else {}
    assert {name for name in found if not name.endswith("/known")} <= GREATER | SMALLER | NEITHER


def test_more_is_better_for_some(folder):
    assert {name: direction(name) for name in GREATER | SMALLER | NEITHER} == (
        dict.fromkeys(GREATER, 1) | dict.fromkeys(SMALLER, -1) | dict.fromkeys(NEITHER, 0)
    )
    make_run(folder / "b", {"lr": 1.0, "seed": 0}, [0.2, 0.9, 0.4], metric="accuracy")
    run = next(r for r in compare.read([folder]) if r.path.name == "b")
    assert run.best["accuracy"] == 0.9 and run.final["accuracy"] == 0.4


def test_a_best_is_only_of_what_has_a_direction(folder):
    """Neither the least d/fake of a run nor its first second is the best of anything."""
    for seed in range(2):
        path = folder / f"b/{seed}"
        make_run(path, {"lr": 1.0, "seed": seed}, [0.5, -3.0, 0.1], metric="d/fake")
    runs = [run for run in compare.read([folder / "b"])]
    assert all(not run.best for run in runs) and runs[0].final["d/fake"] == 0.1
    (row,) = compare.rows(compare.settings(runs), ["d/fake", "d/loss", "time/elapsed"])
    assert "best" not in " ".join(row.values()) and row["d/fake"] == "0.1 ± 0"
    page = compare.write(runs, "d/fake", folder / "b").read_text()
    assert "2 runs, 1 setting.</p>" in page  # and no order
    make_run(folder / "b/2", {"lr": 2.0, "seed": 0}, [0.5, 0.2], metric="d/fake")
    page = compare.write(compare.read([folder / "b"]), "d/fake", folder / "b").read_text()
    assert "3 runs, 2 settings. The least d/fake first" in page
    assert "best of" not in (folder / "b/comparison.csv").read_text()


def test_means_of_numbers_of_any_size():
    big, tiny = 1.7e308, 5e-324
    for values in (
        [big] * 3,
        [big, -big],
        [tiny] * 2,
        [0.0, 0.0],
        [1.0, 2.0, 4.0],
        [-1e-3],
        [3.0, 1e308, 7.0],
    ):
        mean, deviation = mean_and_deviation(values)
        exact = [fractions.Fraction(v) for v in values]
        assert mean == pytest.approx(float(sum(exact) / len(exact)), rel=1e-15, abs=0)
        if len(values) > 1 and max(values) < 1e300:
            assert deviation == statistics.stdev(values)
    assert mean_and_deviation([big, -big])[1] == math.inf and mean_and_deviation([big] * 2)[1] == 0
    assert math.isnan(mean_and_deviation([1.0])[1])
    for bad in ([], [math.nan, 1.0], [math.inf, -math.inf]):
        assert all(map(math.isnan, mean_and_deviation(bad)))
    assert mean_and_deviation([math.inf, 1.0])[0] == math.inf


def test_what_is_not_done_is_counted_and_in_no_mean(folder):
    config = {"lr": 0.1, "seed": 9}
    make_run(folder / "a/broken", config, [5.0, math.nan], status="non-finite")
    make_run(folder / "a/going", config | {"seed": 10}, [5.0], status="")
    with (folder / "a/going/metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "eval/F')  # torn
    make_run(folder / "a/alone", config | {"lr": 7.0}, [4.0])
    groups = compare.settings(compare.read([folder]))
    by = {s.values["lr"]: s for s in groups}
    assert by[0.1].mean("eval/FD")[2] == 3
    states = compare.rows([by[0.1]], [])[0]["runs"]
    assert sorted(states.split(", ")) == ["1 non-finite", "1 unfinished", "3 done"]
    assert compare.rows([by[7.0]], ["eval/FD"])[0]["eval/FD"] == "4"  # no spread of one
    page = compare.write(compare.read([folder]), "", folder).read_text()
    assert "broken (non-finite)" in page and "going (unfinished)" in page


def lines_of(plot):
    """Points of the means and of the runs apart, as ``[n, 2]``."""
    return [
        [np.stack([s.x, s.y], axis=1) for s in plot.shapes if s.kind == kind and len(s.x)]
        for kind in ("line", "dashed")
    ]


def dots_of(plot):
    return [len(s.x) for s in plot.shapes if s.kind == "dots"]


def test_a_broken_run_moves_no_curve(folder):
    before = compare._curves(compare.settings(compare.read([folder])), "eval/FD")
    config = {"lr": 0.1, "seed": 9}
    make_run(folder / "a/broken", config, [5.0, 1e30, math.nan], status="non-finite")
    make_run(folder / "a/going", config | {"seed": 10}, [5.0, 4.0], status="")
    groups = compare.settings(compare.read([folder]))
    after = compare._curves(groups, "eval/FD")
    for old, new in zip(lines_of(before)[0], lines_of(after)[0], strict=True):
        np.testing.assert_array_equal(old, new)
    bands = [[s.path(1, 1) for s in p.shapes if s.kind == "band"] for p in (before, after)]
    assert bands[0] == bands[1] and len(bands[0]) == 2
    apart = lines_of(after)[1]
    assert len(lines_of(before)[1]) == 0 and len(apart) == 2
    assert all(0 <= p.min() and p.max() <= 1 for p in apart)
    assert "curves dashed: broken (non-finite), going (unfinished)" in compare._section(
        "x", groups, "eval/FD", folder, []
    )


def test_runs_that_still_train_have_curves_and_no_mean(tmp_path):
    for seed in range(2):
        make_run(tmp_path / str(seed), {"lr": 0.1, "seed": seed}, [5.0, 4.0 + seed], status="")
    groups = compare.settings(compare.read([tmp_path]))
    means, apart = lines_of(compare._curves(groups, "eval/FD"))
    assert len(apart) == 2 and not np.array_equal(*apart) and not means
    assert compare.rows(groups, ["eval/FD"])[0]["seconds"] == ""


def test_sensitivities_are_of_finished_runs(folder):
    before = compare._sensitivity(compare.settings(compare.read([folder])), "lr", "eval/FD")
    config = {"lr": 0.1, "seed": 9}
    make_run(
        folder / "a/broken", config, [5.0, 1e30], status="non-finite", metrics={"eval/FD": 1e30}
    )
    make_run(folder / "a/going", config | {"seed": 10}, [7.0], status="")
    after = compare._sensitivity(compare.settings(compare.read([folder])), "lr", "eval/FD")
    assert figure(after) == figure(before) and dots_of(after) == [6]


def test_damaged_files_are_no_traceback(folder, capsys):
    (folder / "junk").mkdir()
    (folder / "junk/config.json").write_text("[1, 2")
    (folder / "a/0.1_0/metrics.jsonl").write_text("not json\n{}\n")
    (folder / "a/0.1_1/result.json").write_text('{"status": "done", "step": 30, "metrics": [')
    (folder / "a/0.1_2/result.json").write_text('{"status": "done", "step": "30"}')
    (folder / "a/0.01_0/metrics.jsonl").write_text('{"step": "9"}\n')
    (folder / "a/0.01_0/result.json").unlink()
    config = {"lr": ["x"], "seed": {}}
    (folder / "a/0.01_1/config.json").write_text(json.dumps({"experiment": "x", "config": config}))
    runs = compare.read([folder])
    assert {r.path.name: r.status for r in runs} == {
        "0.1_0": "done",  # its result is whole
        "0.1_1": "damaged",
        "0.1_2": "damaged",
        "0.01_0": "damaged",
        "0.01_2": "done",
    }
    said = capsys.readouterr().err.splitlines()
    files = ("a/0.01_0/metrics.jsonl", "a/0.01_1/config.json", "a/0.1_0/metrics.jsonl", "a/0.1_1/result.json",
             "a/0.1_2/result.json", "junk/config.json")  # fmt: skip
    for line, file in zip(said, files, strict=True):
        assert line.startswith(f"warning: {folder / file}: ")
    assert "config['lr']: Expected" in said[1] and "its run is left out" in said[1]
    compare.write(runs, "", folder)
    report.write_report(folder / "a/0.1_2")


def test_a_log_that_may_not_be_read_is_no_traceback(folder, monkeypatch):
    read = pathlib.Path.read_bytes

    def denied(path):
        if path == folder / "a/0.1_0/metrics.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", denied)
    (folder / "a/0.1_0/result.json").unlink()
    states = {run.path.name: run.status for run in compare.read([folder])}
    assert states.pop("0.1_0") == "damaged" and set(states.values()) == {"done"}


def test_a_last_number_that_is_lost_is_not_the_one_before(tmp_path):
    for seed, values in enumerate(([9.0, 7.0], [8.0, math.nan])):
        make_run(tmp_path / str(seed), {"seed": seed}, values)
    groups = compare.settings(compare.read([tmp_path]))
    assert groups[0].mean("eval/FD")[::2] == (7.0, 1)
    assert compare.rows(groups, ["eval/FD"])[0]["eval/FD"] == "7 (best 7.5 ± 0.71) (1 not finite)"
    compare.write(compare.read([tmp_path]), "", tmp_path)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_loads_nothing_and_escapes_everything(folder):
    nasty = "<script>alert('&\")</script>"
    config = {"lr": 0.5, "seed": 0, "name": nasty}
    make_run(folder / "a/<b>x", config, [1.0, 2.0], metric=f"eval/{nasty}")
    images.save_png(folder / "a/<b>x/samples/step_00000020.png", np.zeros((8, 8, 1), np.uint8))
    (folder / "a/<b>x/report.html").write_text("a page")
    page = Page(compare.write(compare.read([folder]), "", folder).read_text())
    assert page.tags.count("script") == 2 and "b" not in page.tags  # the data and our own
    inside = [link for link in page.links if not link.startswith("data:image/png;base64,")]
    assert inside == ["a/%3Cb%3Ex/report.html"] * 2 and len(page.links) == 3
    assert nasty in page.text and page.tags.count("svg") >= 3


def test_the_csv_holds_every_number_in_full(folder):
    values = [0.1 + 0.2, 1 / 3]
    make_run(folder / "c", {"lr": 1e-7, "seed": 0, "note": 'a,"b"\nc'}, values)
    compare.write(compare.read([folder]), "", folder)
    with (folder / "comparison.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    row = rows[str(folder / "c")]
    assert float(row["eval/FD"]) == values[-1] and float(row["best of eval/FD"]) == values[0]
    assert row["note"] == 'a,"b"\nc' and float(row["lr"]) == 1e-7 and len(rows) == 7


def test_an_evaluation_says_itself_which_way_is_better(folder):
    """Of a metric that no rule knows; a row of before goes by the rule."""
    for lr in (0.1, 0.01):
        row = {"checkpoint": "newest", "step": 30, "value": lr}
        found = [
            row | {"metric": "sharpness", "better": "higher"},
            row | {"metric": "FD-n", "better": ""},
            row | {"metric": "KD-n", "better": "lower"},
            row | {"metric": "IS-n"},
            row | {"metric": "unknown"},
        ]
        for seed in range(3):
            (folder / f"a/{lr}_{seed}/metrics.json").write_text(json.dumps(found))
    groups = compare.settings(runs := compare.read([folder]))
    first = {
        name.partition(" (")[0]: compare.ranked(groups, name)[0].values["lr"]
        for name in compare.evaluated_metrics(runs)
    }
    assert first == {"sharpness": 0.1, "FD-n": 0.01, "KD-n": 0.01, "IS-n": 0.1, "unknown": 0.01}
    page = compare.write(runs, "sharpness", folder).read_text()
    assert "The best sharpness (newest" in page
    assert "The least FD-n" in compare.write(runs, "FD-n", folder).read_text()


def test_evaluations_are_columns_that_say_what_they_are(folder, capsys):
    """Best, newest and older checkpoints, other flags and another net are other columns; seeds share one."""
    for lr in (0.1, 0.01):
        for seed in range(3):
            row = {"metric": "FD-n", "n": 300, "reference": "mnist10k test", "seed": 0}
            row |= {"features": "n", "features_sha256": "ab" * 32}
            found = [
                row | {"value": lr + seed, "checkpoint": "newest", "step": 30},
                row | {"value": 7.0, "checkpoint": "newest", "step": 20},
                row | {"value": 5.0, "checkpoint": "best", "step": 10 * (seed + 1)},
                row | {"value": 4.0, "checkpoint": "best", "step": 10, "flags": "truncation=<b>"},
                row | {"value": 3.0, "checkpoint": "best", "step": 10, "features_sha256": "cd"},
                row | {"value": 2.0, "checkpoint": "20", "step": 20, "metric": "KD-n"},
            ]
            (folder / f"a/{lr}_{seed}/metrics.json").write_text(json.dumps(found))
    groups = compare.settings(runs := compare.read([folder]))
    rest = "300 samples against mnist10k test, seed 0, net abababab)"
    names = compare.evaluated_metrics(runs)
    assert names == [
        f"FD-n (newest checkpoint, {rest}",
        f"FD-n (step 20, {rest}",
        f"FD-n (best checkpoint, {rest}",
        f"FD-n (best checkpoint, truncation=<b>, {rest}",
        f"FD-n (best checkpoint, {rest}".replace("abababab", "cd"),
        f"KD-n (step 20, {rest}",
    ]
    assert [s.mean(names[0])[0] for s in groups] == pytest.approx(
        [1 + s.values["lr"] for s in groups]
    )
    assert [groups[0].mean(name)[::2] for name in names[1:]] == [(v, 3) for v in (7, 5, 4, 3, 2)]
    page = compare.write(runs, "", folder).read_text()
    assert (
        f"<h3>{rest.partition(', net')[0]}</h3>" in page and "Features: n (sha256 abababab)" in page
    )
    assert "<td>best checkpoint, truncation=&lt;b&gt;</td><td>3</td>" in page
    with (folder / "comparison.csv").open(newline="") as file:
        assert {row[names[3]] for row in csv.DictReader(file)} == {"4.0"}
    assert launch.run([f"--report={folder}", "--report_metric=FD-n"]) == 0
    assert names[0] in capsys.readouterr().out
    (folder / "a/0.1_1/metrics.json").write_text("{torn")
    assert len(compare.read([folder])) == 6
    assert f"{folder / 'a/0.1_1/metrics.json'}: is damaged" in capsys.readouterr().err


def test_a_terminal_obeys_no_text_of_a_run(folder, capsys):
    """Escape sequences and lines in names and values are written out, in the table and in warnings."""
    config = {"lr": 0.5, "seed": 0, "name\x1b[2J": "\x1b]0;title\x07\u202eevil\nline"}
    make_run(folder / "b/x", config, [1.0, 2.0], metric="m\x9b31m")
    record = json.loads((folder / "b/x/config.json").read_text()) | {"experiment": "x\x1b[31m"}
    (folder / "b/x/config.json").write_text(json.dumps(record))
    make_run(folder / "b/y", {"lr": 0.5, "seed": 1}, [1.0], metric="m\x9b31m")
    (folder / "b/y/config.json").write_text(json.dumps(record | {"config": {"lr": 1, "seed": 1}}))
    (folder / "b/z\x1b[3m").mkdir()
    (folder / "b/z\x1b[3m/config.json").write_text('{"experiment": 1}')
    launch.run([f"--report={folder / 'b'}"])
    said = capsys.readouterr()
    assert not [c for c in said.out + said.err if not c.isprintable() and c != "\n"]
    assert r"\x1b]0;title\x07\u202eevil\nline" in said.out and r"x\x1b[31m: 2 runs" in said.out
    with pytest.raises(UserError) as error:
        launch.run([f"--report={folder / 'b'}", "--report_metric=FD"])
    assert str(error.value).isprintable()


def test_no_cell_of_the_csv_is_a_formula(folder):
    config = {"lr": -0.5, "seed": 0, "dataset": '=HYPERLINK("http://x")', "@flag": "-1e3"}
    make_run(folder / "c", config, [-1.0, -2.0], status="+done", metric="=m")
    compare.write(compare.read([folder]), "", folder)
    with (folder / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not [
        cell for row in rows for cell in (*row, *row.values()) if cell[:1] in "=@\t\r" and cell
    ]
    row = next(row for row in rows if row["run"] == str(folder / "c"))
    assert (
        row["dataset"] == '\'=HYPERLINK("http://x")'
        and row["status"] == "'+done"
        and row["lr"] == "-0.5"
    )
    assert row["'@flag"] == "-1e3" and row["'=m"] == "-2.0"


def test_damaged_grids_are_left_out_of_a_comparison(folder, capsys):
    for i, run in enumerate(sorted((folder / "a").iterdir())):
        grid = run / "samples/step_00000030.png"
        images.save_png(grid, np.zeros((8, 8, 1), np.uint8))
        if i == 0:
            grid.write_bytes(grid.read_bytes()[:-20])
        if i == 3:
            grid.unlink()
            grid.mkdir()
    page = compare.write(compare.read([folder]), "", folder).read_text()
    assert "<img" not in page  # of each setting the first run's is shown
    said = capsys.readouterr().err
    assert "is damaged; it is left out" in said and "is a directory and must be a file" in said


def test_thinned_curves_keep_their_mean():
    steps, values = np.arange(50_000), np.random.default_rng(0).normal(size=50_000)
    short, means = compare._thinned(steps, values)
    assert len(short) == 200 and short[-1] == 49_999
    assert means.mean() == pytest.approx(values.mean(), abs=1e-12)


@pytest.mark.medium
def test_many_runs_and_long_logs(tmp_path):
    line = '{"step": %d, "epoch": 0.1, "d/loss": 0.5, "g/loss": 0.25}\n'
    for i in range(300):
        make_run(
            tmp_path / f"r{i}",
            {"lr": 10 ** -(1 + i % 7), "b1": (i % 11) / 11, "seed": i},
            [1.0 + i],
        )
    (tmp_path / "r0/metrics.jsonl").write_text("".join(line % s for s in range(1, 20_001)))
    page = compare.write(compare.read([tmp_path]), "", tmp_path)
    assert page.stat().st_size < 5_000_000
    assert "b1 → " in page.read_text() or "→ b1" in page.read_text()


def test_the_launcher_prints_and_refuses_in_one_line(folder, capsys):
    assert launch.run([f"--report={folder}", f"--report_to={folder / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "x: 6 runs, 2 settings" in said and "5.01 ± 2" in said
    assert (folder / "out/comparison.html").exists() and (folder / "out/comparison.csv").exists()
    for argv, expected in (
        ([f"--report={folder / 'nope'}"], "there is no such folder"),
        (
            [f"--report={folder}", "--report_metric=FID"],
            "report_metric=FID: is not logged by these",
        ),
        ([f"--report={folder / 'a/0.1_0/config.json'}"], "there is no such folder"),
    ):
        with pytest.raises(UserError, match=re.escape(expected)) as caught:
            launch.run(argv)
        assert "\n" not in str(caught.value)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        launch.run([f"--report={folder / 'empty'}"])


def _evaluated(path, value, **facts):
    """One number of a run, and what stands beside it."""
    row = {"metric": "FD-n", "value": value, "real": 0.5, "untrained": 90.0, "better": "lower", "n": 300,
           "reference": "d test", "reference_images": 100, "reference_sha256": "ab" * 32, "seed": 0,
           "features": "n", "features_sha256": "cd" * 32, "checkpoint": "newest", "step": 20}  # fmt: skip
    (path / "metrics.json").write_text(json.dumps([row | facts]))


def test_experiments_stand_in_one_table_where_their_numbers_compare(tmp_path):
    """A GAN against a VAE, each over its seeds; not with another reference or feature net."""
    for name, values in (("gan", [3.0, 5.0]), ("vae", [10.0, 12.0]), ("old", [1.0, 2.0])):
        for seed, value in enumerate(values):
            path = tmp_path / f"{name}{seed}"
            make_run(path, {"seed": seed}, [1.0, 2.0])
            record = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps(record | {"experiment": name}))
            _evaluated(path, value, **({"reference": "d train"} if name == "old" else {}))
    runs = compare.read([tmp_path])
    groups = {name: compare.settings(part) for name, part in compare.by_experiment(runs).items()}
    one, other = sorted(compare.judged(groups), key=lambda table: len(table.rows), reverse=True)
    assert one.head == ["experiment", "samples of", "seeds", "FD ↓\nn"] and one.title.startswith(
        "300 samples against 100 images of d test"
    )
    assert [list(row) for row in one.rows] == [
        ["gan", "newest checkpoint", "2", "4 ± 1.4"],
        ["vae", "newest checkpoint", "2", "11 ± 1.4"],
    ]
    assert one.best == {(0, 3)} and [row[3] for row in one.foot] == ["0.5", "90"]
    assert any("100 images are few for 300 samples" in note for note in one.notes)
    assert [row[0] for row in other.rows] == ["old"] and not other.best
    _evaluated(tmp_path / "vae0", 10.0, features_sha256="ee" * 32)
    again = compare.judged(
        {k: compare.settings(v) for k, v in compare.by_experiment(compare.read([tmp_path])).items()}
    )
    assert sorted(len(table.head) for table in again) == [4, 5]  # another net is another column
    page = compare.write(runs, "", tmp_path).read_text()
    assert page.count('<section id="evaluations">') == 1 and "<b>4 ± 1.4</b>" in page


def test_means_are_written_for_programs_and_for_papers(folder):
    """A row to a setting; every special letter of LaTeX is one on paper."""
    make_run(folder / "a/one", {"lr": 0.1, "seed": 7, "note": "50%_{x}&~\\"}, [4.0, 1.0])
    runs = compare.read([folder])
    compare.write(runs, "eval/FD", folder)
    with (folder / "comparison_means.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and {row["seeds"] for row in rows} == {"3", "1"}
    three = next(row for row in rows if row["lr"] == "0.1" and row["seeds"] == "3")
    assert float(three["mean of eval/FD"]) == pytest.approx(5.1)
    assert float(three["deviation of eval/FD"]) == pytest.approx(2.0)
    alone = next(row for row in rows if row["seeds"] == "1")
    assert alone["deviation of eval/FD"] == "" and alone["number of eval/FD"] == "1"
    latex = (folder / "comparison.tex").read_text()
    assert r"50\%\_\{x\}\&\textasciitilde{}\textbackslash{}" in latex
    assert r"5.1 $\pm$ 2" in latex and r"\toprule" in latex and "page of seed" not in latex


def test_bands_are_within_the_axis(tmp_path):
    """A deviation is seen in full, even if it is wide; on a log scale, its positive part."""
    for name, curves in {"a": ([1.0, 9.0], [3.0, 13.0]), "b": ([1.0, 1e4], [5e2, 1e5])}.items():
        for seed, values in enumerate(curves):
            make_run(tmp_path / f"{name}{seed}", {"lr": name, "seed": seed}, values, metric="m")
    for setting, log in zip(compare.settings(compare.read([tmp_path])), (False, True), strict=True):
        charts = []
        compare._section("x", [setting], "m", tmp_path, charts)
        (curve,) = charts[0]["curves"]
        means, spreads = np.array(curve["means"]), np.array(curve["spreads"])
        low, high = (10.0**v if log else v for v in (charts[0]["low"], charts[0]["high"]))
        assert charts[0]["log"] == log and (means + spreads).max() < high
        assert (means - spreads).min() < 0 if log else (means - spreads).min() > low


def test_the_counts_stand_beside_numbers_everywhere(tmp_path, capsys):
    """On the page, in the terminal, and in the files for papers and for programs, of one run as of several."""
    make_run(tmp_path / "a", {"seed": 0}, [1.0, 2.0])
    record = json.loads((tmp_path / "a/config.json").read_text())
    said = "Evaluated while it trains: 10,000 samples against 900 images held out"
    (tmp_path / "a/config.json").write_text(json.dumps(record | {"title": said}))
    _evaluated(tmp_path / "a", 3.0)
    assert launch.run([f"--report={tmp_path}", "--report_metric=FD-n"]) == 0
    assert said in capsys.readouterr().out
    for name in ("comparison.html", "comparison.tex", "comparison.csv"):
        assert said in (tmp_path / name).read_text(), name
    page = (tmp_path / "comparison.html").read_text()
    assert "1 run, 1 setting. FD-n is of newest checkpoint, 300 samples against 100 images" in page


def test_a_conditional_grid_names_its_columns(tmp_path):
    make_run(tmp_path / "a", {"seed": 0}, [1.0, 2.0])
    record = json.loads((tmp_path / "a/config.json").read_text())
    record["frame"] = {"columns": ["cat", "<dog>"]}
    (tmp_path / "a/config.json").write_text(json.dumps(record))
    images.save_png(tmp_path / "a/samples/step_00000001.png", np.zeros((4, 4, 1), np.uint8))
    page = compare.write(compare.read([tmp_path]), "", tmp_path).read_text()
    assert "<br>Columns: cat, &lt;dog&gt;</figcaption>" in page


def test_nothing_is_drawn_of_a_constant_or_of_one_dot(folder):
    """The curves that are drawn have their numbers for the script, in the order of the panels."""
    groups = compare.ranked(compare.settings(compare.read([folder])), "eval/FD")
    charts = []
    page = compare._section("x", groups, "eval/FD", folder, charts)
    assert "Constant: d/loss." in page and page.count('<figure class="panel">') == len(charts) == 2
    assert charts[1] is None and [c["name"] for c in charts[0]["curves"]] == ["lr=0.01", "lr=0.1"]
    assert charts[0]["curves"][0]["means"][-1] == pytest.approx(5.01)
    assert charts[0]["curves"][0]["spreads"][-1] == pytest.approx(2.0)
    assert page.count('class="legend key"') == 1
    one = compare.settings([run for run in compare.read([folder]) if run.config["lr"] == 0.1])
    assert (
        compare._sensitivity([s._replace(values={"lr": 0.1}) for s in one], "lr", "eval/FD") is None
    )
