"""The evaluation experiment: what it reads, what it says of a number, and what it must tell apart."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from bpgan import cli, data
from bpgan.evaluation import features, monitor, samples, table
from bpgan.evaluation import rows as metrics_file
from bpgan.evaluation.images import Images
from bpgan.measures import Goal, direction
from bpgan.metrics.features import Extractor, in_batches, plug
from bpgan.runtime import records
from bpgan.types import UserError
from experiments import classifier, evaluate, mnist_gan, toy_gan

pytestmark = pytest.mark.usefixtures("no_curves")

ROOT = pathlib.Path(__file__).parent.parent

FLAGS = ["--features=pixels", "--metrics=fd,kd"]


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """A short run of a small GAN."""
    path = tmp_path_factory.mktemp("gan") / "run"
    flags = ["--preset=smoke", "--net=mlp", "--notensorboard", f"--workdir={path}"]
    assert cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, flags) == 0
    return path


def run(*flags):
    return cli.run(evaluate.Config, evaluate.run, evaluate.PRESETS, flags)


def values(path):
    rows = json.loads((path / "metrics.json").read_text())
    return {row["metric"]: row for row in rows}


@pytest.mark.medium
def test_a_run_is_evaluated_from_its_checkpoint(gan, tmp_path, capsys):
    before = {p.relative_to(gan) for p in gan.rglob("*")}
    flags = [f"--run={gan}", "--n=300", *FLAGS, f"--workdir={tmp_path / 'a'}"]
    assert run(*flags) == 0
    after = {p.relative_to(gan) for p in gan.rglob("*")}
    assert {str(p) for p in after - before} <= {"metrics.json"} and before <= after
    assert "FD-pixels" in (gan / "report.html").read_text()
    table = capsys.readouterr().out
    assert "300 samples against 1,000 images of mnist10k test" in table
    rows = values(tmp_path / "a")
    assert list(rows) == [f"{m}-pixels" for m in ("FD", "nFD", "KD")]
    fd = rows["FD-pixels"]
    assert fd["real"] < 0.2 * fd["value"] and fd["value"] < 2 * fd["untrained"]
    assert (fd["experiment"], fd["step"], fd["training_seed"]) == ("mnist_gan", 8, 0)
    assert fd["n"] == 300 and fd["reference_images"] == 1000
    assert fd["reference_sha256"] == data.load("mnist10k", "test").sha256
    assert fd["preprocessing"] and fd["versions"].startswith("bpgan ")
    assert not any(isinstance(value, dict | list) for value in fd.values())
    capsys.readouterr()
    again = [*flags[:-1], f"--workdir={tmp_path / 'b'}"]
    assert run(*again, "--metrics=fd,kd,class_fd,is") == 0  # the same numbers again
    assert values(tmp_path / "b") == rows
    said = capsys.readouterr().out
    assert "class_fd left out: the samples have no labels\n" in said
    assert "is left out: the net is no classifier\n" in said


@pytest.mark.medium
def test_every_evaluation_of_a_run_is_kept(gan, tmp_path, capsys):
    """By checkpoint, flags, samples and metrics; the same one again replaces itself."""
    copy, file = tmp_path / "run", tmp_path / "run" / "metrics.json"
    shutil.copytree(gan, copy)
    file.unlink(missing_ok=True)
    base = [f"--run={copy}", "--n=50", FLAGS[0], f"--workdir={tmp_path / 'out'}"]

    def kept(*flags):
        assert run(*base, *flags) == 0
        rows = json.loads(file.read_text())
        assert all(metrics_file.is_row(row) for row in rows)
        return [
            (r["metric"].partition("-pix")[0], r["checkpoint"], r["step"], r["n"]) for r in rows
        ]

    newest = [("FD", "newest", 8, 50), ("nFD", "newest", 8, 50)]
    assert kept("--metrics=fd") == newest
    kd, early = ("KD", "newest", 8, 50), ("KD", "4", 4, 50)
    assert kept("--metrics=kd") == [*newest, kd]
    assert kept("--metrics=kd", "--checkpoint=4") == [*newest, kd, early]
    assert f"{copy}: checkpoint of step 4 (4)\n" in capsys.readouterr().out
    assert kept("--metrics=kd", "--n=60") == [*newest, kd, early, ("KD", "newest", 8, 60)]
    assert kept("--metrics=fd")[-2:] == newest  # the last evaluation, once
    assert capsys.readouterr().out.endswith("report.html, which has 5 numbers now\n")
    base[-1] = f"--workdir={copy}"  # the directory of the evaluation may be that of the run
    assert len(kept("--metrics=kd", "--seed=1")) == 6


def a_row(**facts):
    row = {name: kind(0) for name, kind in metrics_file.KEY.items()}
    return row | {"value": 1.0} | facts


def test_only_the_same_evaluation_is_replaced():
    old = [a_row(), a_row(metric="KD"), a_row(flags="truncation=0.7"), a_row(checkpoint="best")]
    old += [a_row(step=4), a_row(features_sha256="ab"), a_row(train_sha256="cd")]
    new = [a_row(value=2.0), a_row(metric="IS")]
    assert metrics_file.merge(old, new) == [*old[1:], *new]
    assert metrics_file.merge([], new) == new
    sound = [math.nan, 1, -1.5]
    assert all(metrics_file.is_row(a_row(value=value)) for value in sound)
    damaged = [4, [], {}, a_row(value="1"), a_row(step="8"), a_row(step=True), a_row(flags=["a"])]
    assert not any(map(metrics_file.is_row, damaged))


def test_evaluations_that_are_damaged_are_set_aside(tmp_path, capsys):
    """What is sound in them stays, and nothing is lost."""
    file, new = tmp_path / "metrics.json", [a_row(metric="KD")]
    old = json.dumps([a_row(), a_row(classes="two"), a_row(metric="IS", real="x")])
    assert metrics_file.add(file, [a_row()]) == 1 and not capsys.readouterr().err
    for text, rows in ((old, 2), ("[{", 1), ("[" * 100_000, 1), ("4", 1), ("\0", 1)):
        file.write_text(text)
        assert metrics_file.add(file, new) == rows == len(json.loads(file.read_text()))
        assert capsys.readouterr().err.startswith(f"warning: {file} ")
    assert file.with_name("metrics.json.damaged").read_text() == old
    assert records.read_evaluations(file)
    assert len(list(tmp_path.glob("*.damaged*"))) == 5 and len(list(tmp_path.iterdir())) == 6
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="is no file"):
        metrics_file.add(file, new)


@pytest.mark.slow
def test_a_run_whose_data_have_moved(tmp_path, monkeypatch, capsys):
    """It is resumed and evaluated with the same data elsewhere, and with no others."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    for name in ("here.npz", "others.npz"):
        np.savez(name, x=rng.integers(0, 256, (60, 8, 8), np.uint8), y=np.arange(60) % 2)
    flags = ["--preset=smoke", "--net=mlp", "--notensorboard", "--workdir=run"]

    def train(dataset, steps):
        argv = [*flags, f"--dataset={dataset}", f"--steps={steps}"]
        return cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, argv)

    assert train("npz:here.npz", 4) == 0
    os.mkdir("there")
    os.rename("here.npz", "there/there.npz")
    argv = ["--run=run", "--n=50", *FLAGS, "--workdir=out"]
    capsys.readouterr()
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run: --dataset=npz:here.npz: ") and "--flags=dataset=" in error
    assert run(*argv, "--flags=dataset=npz:others.npz") == 2
    said = "error: --flags=dataset=npz:others.npz: other data than those of the run run\n"
    assert capsys.readouterr().err == said
    assert run(*argv, "--flags=dataset=npz:there/there.npz") == 0
    assert values(tmp_path / "out")
    assert train(f"npz:{tmp_path}/there/there.npz", 6) == 0
    assert cli.restore("run").step == 6


@pytest.mark.medium
def test_a_run_that_cannot_take_its_numbers_is_a_warning(gan, tmp_path, capsys):
    copy, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(gan, copy)
    (copy / "metrics.json").unlink(missing_ok=True)
    (copy / "metrics.json").mkdir()  # as unwritable for the superuser as for others
    assert run(f"--run={copy}", "--n=50", *FLAGS, f"--workdir={out}") == 0
    error = capsys.readouterr().err
    assert error.startswith(f"warning: not added to the report of {copy} (") and values(out)
    assert error.endswith(f"the numbers are in {out / 'metrics.json'}\n")


@pytest.mark.medium
def test_several_runs_give_a_mean_and_a_deviation(gan, tmp_path, capsys):
    other = tmp_path / "other"
    flags = ["--preset=smoke", "--net=mlp", "--notensorboard", "--seed=1", f"--workdir={other}"]
    assert cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, flags) == 0
    assert run(f"--run={gan},{other}", "--n=200", *FLAGS, f"--workdir={tmp_path / 'out'}") == 0
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = [row["value"] for row in rows if row["metric"].startswith("FD-")]
    assert len(found) == 2
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("FD-"))
    assert f"{np.mean(found):.4g} ± {np.std(found, ddof=1):.2g}" in line


@pytest.mark.medium
def test_samples_of_the_first_batch_do_not_depend_on_how_many_are_drawn(gan):
    found = cli.restore(gan)
    few, many = (cli.draw(found.experiment.algorithm, found.state, seed=3, n=n) for n in (7, 501))
    assert few.dtype == np.uint8 and few.shape == (7, 28, 28, 1) and len(many) == 501
    np.testing.assert_array_equal(few, many[:7])
    assert len(np.unique(many.reshape(501, -1), axis=0)) == 501


@pytest.mark.medium
def test_a_damaged_checkpoint_is_not_set_aside_by_a_reader(gan, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(gan, copy)
    shutil.rmtree(copy / "checkpoints/8/carry")
    assert cli.restore(copy).step == 4
    assert "8 is damaged" in capsys.readouterr().out
    assert {p.name for p in (copy / "checkpoints").iterdir()} == {"4", "8"}


@pytest.fixture
def files(tmp_path):
    """Samples on disk: the reference itself, noise, and real images whose labels are permuted."""
    x, y = data.load("mnist10k", "test").arrays()
    rng = np.random.default_rng(0)
    sets = {
        "real": (x, y),
        "noise": (rng.integers(0, 256, x.shape, np.uint8), y),
        "shuffled": (x, rng.permutation(y)),
    }
    for name, (images, labels) in sets.items():
        np.savez(tmp_path / f"{name}.npz", x=images, y=labels)
    return tmp_path


def test_samples_from_a_file(files):
    found = {}
    for name in ("real", "noise", "shuffled"):
        flags = [f"--samples=npz:{files / name}.npz", "--dataset=mnist10k", "--n=1000"]
        flags += [FLAGS[0], "--metrics=fd,class_fd", f"--workdir={files / name}"]
        assert run(*flags) == 0
        found[name] = {k.partition("-pix")[0]: v["value"] for k, v in values(files / name).items()}
    assert found["real"]["FD"] < 1e-6 * found["noise"]["FD"]
    # Labels are what the distance of all images cannot see.
    np.testing.assert_allclose(found["shuffled"]["FD"], found["real"]["FD"], atol=1e-6)
    assert found["shuffled"]["class-FD"] > 100 * abs(found["real"]["class-FD"]) + 100


@pytest.mark.medium
def test_samples_of_a_run_are_saved_and_read_back(gan, tmp_path):
    file = tmp_path / "new" / "samples.npz"
    flags = ["--dataset=mnist10k", "--n=60", *FLAGS]
    assert run(f"--run={gan}", *flags, f"--save={file}", f"--workdir={tmp_path / 'a'}") == 0
    found = cli.restore(gan)
    with np.load(file) as saved:
        assert list(saved) == ["x"]  # a GAN without labels
        drawn = cli.draw(found.experiment.algorithm, found.state, seed=0, n=60)
        np.testing.assert_array_equal(saved["x"], drawn)
    assert run(f"--samples=npz:{file}", *flags, f"--workdir={tmp_path / 'b'}") == 0
    for name, row in values(tmp_path / "a").items():
        np.testing.assert_allclose(values(tmp_path / "b")[name]["value"], row["value"], rtol=1e-6)


def test_saved_samples_keep_their_labels(tmp_path):
    file = tmp_path / "samples.npz"
    flags = ["--samples=mnist10k", "--dataset=mnist10k", "--n=60", *FLAGS, f"--save={file}"]
    assert run(*flags, f"--workdir={tmp_path / 'out'}") == 0
    sets = [samples.of_files("mnist10k", 60, 0), samples.of_files(f"npz:{file}", 60, 0)]
    a, b = (sorted((x.tobytes(), int(y)) for x, y in zip(s.x, s.y, strict=True)) for s in sets)
    assert a == b


def test_what_labels_do_to_samples():
    """Obeyed labels, labels that say nothing, and a generator that ignores them."""
    y = np.arange(1000) % 10
    none = np.zeros((0, 1))
    asked = Images(none, y, none, np.eye(10)[y], np.tile(np.arange(10), (50, 1)))
    found = table.METRICS["accuracy"](asked, asked, asked, 0)
    assert found["label-accuracy"] == 1 and found["classes-per-latent"] == 10
    assert abs(found["label-accuracy-swapped"] - 0.1) < 0.04
    blind = asked._replace(logits=np.eye(10)[y * 0], turned=np.zeros((50, 10), int))
    found = table.METRICS["accuracy"](blind, asked, asked, 0)
    assert found["label-accuracy"] == 0.1 and found["classes-per-latent"] == 1
    assert "classes-per-latent" not in table.METRICS["accuracy"](
        asked._replace(turned=None), *[asked] * 2, 0
    )


@pytest.mark.medium
def test_a_part_of_a_dataset_is_of_all_its_classes():
    """Data lie in the order of their classes: the first rows of these, two directions, are of one."""

    def images(n):
        means = np.repeat(np.eye(8)[:2], n // 2, axis=0)
        vectors = means + 0.01 * np.random.default_rng(n).normal(size=(n, 8))
        return Images(vectors, None, vectors, None)

    real = images(4000)
    assert table.diversity(real, real, real, 0)["Vendi-of-1000"] == pytest.approx(2, abs=0.1)
    few = images(300)  # on both sides: the score of 1,000 would not be comparable with that of 300
    assert [*table.diversity(real, real, few, 0), *table.diversity(few, real, few, 0)] == [
        "Vendi-of-300"
    ] * 2
    found = table.memorization(images(500), real, images(4002), 0)
    assert abs(found["1-NN-accuracy"] - 0.5) < 0.1


def test_a_metric_that_is_lost_in_one_run_is_no_traceback():
    rows = [{"metric": "m", "value": v, "real": 1.0, "untrained": None} for v in (math.nan, 1.0)]
    assert metrics_file.table(rows)[1].split() == ["m", "nan", "1", "-"]


def test_who_does_not_know_the_classes_is_not_asked_for_them(tmp_path, monkeypatch, capsys):
    """Such as a net of ImageNet's, whatever it thinks of digits."""

    def net(images):
        return np.asarray(images, float).reshape(len(images), -1)[:, :784]

    nets = [Extractor("net", "", "none", net, logits=net, of_data=of_data) for of_data in (0, 1)]
    flags = ["--samples=mnist10k", "--dataset=mnist10k", "--n=60", "--metrics=accuracy"]
    flags.append("--features=net")
    for i, found in enumerate(nets):
        monkeypatch.setitem(features.EXTRACTORS, "net", lambda dataset, found=found: [found])
        assert run(*flags, f"--workdir={tmp_path / str(i)}") == (0 if found.of_data else 2)
    assert capsys.readouterr().out.count("net: accuracy left out: it is no classifier") == 1


@pytest.fixture
def animals(tmp_path):
    """``animals(name, classes, n)``: a folder of images told apart by their brightness, ``n`` of each class."""
    shades, rng = {"cat": 40, "dog": 120, "eel": 200, "fox": 230}, np.random.default_rng(0)

    def make(name, kinds, n):
        for kind in kinds.split():
            folder = tmp_path / name / kind
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(rng.normal(shades[kind.lower()], 10, (12, 12)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        return f"folder:{tmp_path / name}"

    return make


def test_classes_of_samples_are_matched_by_name(animals, tmp_path, capsys):
    """Without the dog, eels are still compared with eels: their number is another one then."""
    real, out = animals("data", "cat dog eel", 30), tmp_path / "out"
    argv = [f"--dataset={real}", FLAGS[0], f"--workdir={out}"]

    def found(samples, *flags, metrics="class_fd,msssim"):
        assert run(f"--samples={samples}", f"--metrics={metrics}", *argv, *flags) == 0
        return {
            row["metric"].partition("-pix")[0]: row
            for row in json.loads((out / "metrics.json").read_text())
        }

    whole = found(animals("whole", "cat dog eel", 30))
    file = tmp_path / "samples.npz"
    part = found(animals("part", "Cat EEL", 30), f"--save={file}")
    both = whole["class-FD"], part["class-FD"]
    assert both[1]["value"] < 2 * both[0]["value"] < both[0]["untrained"] / 20
    assert [(row["classes"], row["of_classes"], row["matched_by"]) for row in both] == [
        (3, 3, "name"),
        (2, 3, "name"),
    ]
    assert part["MS-SSIM-1s11w"]["classes"] == 2 and part["MS-SSIM-1s11w"]["features"] == ""
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("  of 2 of 3 classes") for line in lines) == len(part)
    # Names are kept with the samples, and are what they are compared by; without them the numbers count.
    assert found(f"npz:{file}")["class-FD"]["value"] == pytest.approx(both[1]["value"], rel=1e-6)
    assert data.load(f"npz:{file}").class_names == ("Cat", "EEL")
    with np.load(file) as saved:
        np.savez(tmp_path / "numbers.npz", x=saved["x"], y=2 * saved["y"])
    row = found(f"npz:{tmp_path / 'numbers.npz'}")["class-FD"]
    assert row["matched_by"] == "number" and row["value"] == pytest.approx(
        both[1]["value"], rel=1e-6
    )
    assert "classes are matched by number, for lack of names (3 without" in capsys.readouterr().err


def test_classes_that_do_not_fit_are_refused(animals, tmp_path, capsys):
    real, fake = animals("data", "cat dog eel", 20), animals("fake", "cat fox", 20)
    argv = [f"--samples={fake}", f"--dataset={real}", FLAGS[0], f"--workdir={tmp_path / 'out'}"]
    for metrics in ("all", "class_fd", "fd,accuracy"):
        assert run(*argv, f"--metrics={metrics}") == 2
        error = capsys.readouterr().err
        assert "(2: cat, fox) are not among those of the reference (3: cat, dog, eel)" in error
        assert error.startswith(f"error: {fake}: ") and "--metrics=fd,bias," in error
    assert run(*argv, "--metrics=fd") == 0 and not capsys.readouterr().err


def test_classes_of_data_without_any_are_none(animals, tmp_path, capsys):
    """Samples of the first class are not compared with all images, which are of no class."""
    fake = animals("fake", "cat dog eel", 20)
    np.savez(
        tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (60, 12, 12), np.uint8)
    )
    argv = [f"--samples={fake}", f"--dataset=npz:{tmp_path / 'x.npz'}", FLAGS[0]]
    assert run(*argv, "--metrics=fd,class_fd,cas", f"--workdir={tmp_path / 'out'}") == 0
    assert [name.partition("-pix")[0] for name in values(tmp_path / "out")] == ["FD", "nFD"]


def test_names_of_classes_that_are_none(tmp_path):
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    for names, said in (
        (np.arange(2), "must be a text for each class"),
        (["a"], "1 'class_names'"),
    ):
        np.savez(tmp_path / "x.npz", x=x, y=y, class_names=names)
        with pytest.raises(UserError, match=said):
            data.load(f"npz:{tmp_path / 'x.npz'}")


def test_the_worst_class():
    """Two classes whose means are 1 and 3 away, covariances equal: distances 1 and 9."""
    rng = np.random.default_rng(0)
    features, y = rng.normal(size=(400, 2)), np.repeat([0, 1], 200)
    real = Images(features, y, features, None)
    moved = real._replace(features=features + np.where(y == 0, 1, 3)[:, None] * [1, 0])
    found = table.by_class(moved, real, real, 0)
    np.testing.assert_allclose(
        [found["class-FD"], found["class-FD-worst/mean"]], [5, 1.8], rtol=1e-6
    )


@pytest.mark.parametrize(
    "train, test, said",
    [
        (40, 10, "4 images are held out"),
        (80, 3, "3 images are in the test split"),
    ],
)
def test_too_few_images_to_evaluate_with_are_refused_first(
    tmp_path, monkeypatch, train, test, said
):
    """Before the feature net is trained, let alone the GAN."""
    monkeypatch.setattr(features, "load_classifier", lambda *_: pytest.fail("was trained"))
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 2
    np.savez(tmp_path / "few.npz", **arrays)
    dataset = f"npz:{tmp_path / 'few.npz'}"
    flags = ["--preset=smoke", "--net=mlp", "--eval_every=1ep", f"--dataset={dataset}"]
    with pytest.raises(UserError) as caught:
        mnist_gan.build(cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, flags))
    need = "fd,kd,prdc need 6; --eval_every must be 0"
    assert cli.message_of(caught.value) == f"--dataset={dataset}: {said}, {need}"


def test_images_too_small_for_a_feature_net(tmp_path, capsys):
    """Are refused by name; a metric that trains a classifier on them is left out of the others."""
    x, y = np.random.default_rng(0).integers(0, 256, (40, 3, 3), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "x.npz", x=x, y=y)
    name = f"npz:{tmp_path / 'x.npz'}"
    argv = [f"--samples={name}", f"--dataset={name}", f"--workdir={tmp_path / 'out'}"]
    assert run(*argv, "--metrics=fd") == 2
    said = f"error: --features=classifier: the net could not be trained on {name} (--net=cnn: needs"
    assert capsys.readouterr().err.startswith(said)
    assert run(*argv, FLAGS[0], "--metrics=fd,cas") == 0
    assert f"{name}: cas left out: --net=cnn: needs images" in capsys.readouterr().out


def test_flags_and_checkpoints_are_of_runs():
    for flag in ("--flags=truncation=0.5", "--checkpoint=best"):
        flags = ["--samples=mnist10k", "--dataset=mnist10k", flag]
        with pytest.raises(UserError) as error:
            evaluate.run(cli.resolve(evaluate.Config, evaluate.PRESETS, flags))
        assert cli.message_of(error.value).startswith(f"{flag}: of --run only")


@pytest.mark.slow
def test_classification_accuracy_sees_labels_that_say_nothing():
    x, y = data.load("mnist10k", "train").arrays()
    rng = np.random.default_rng(0)
    some = rng.permutation(len(x))[:1500]
    test = Images(*data.load("mnist10k", "test").arrays(), x[:0], None)
    good = Images(x[some], y[some], x[:0], None)
    bad = good._replace(y=rng.permutation(y[some]))
    assert table.METRICS["cas"](good, test, test, 0)["CAS"] > 0.9
    assert table.METRICS["cas"](bad, test, test, 0)["CAS"] < 0.25
    assert table.METRICS["cas"](good._replace(y=None), test, test, 0) == {}


@pytest.mark.medium
def test_features_of_a_classifier_are_its_hidden_layer_and_alive():
    from bpgan.metrics.features import classifier as nets

    splits = data.load("mnist10k"), data.load("mnist10k", "test")
    params = features.train_classifier(*splits, features.Recipe(0, 0.1067, 3.0))
    extractor = nets.extractor(params, classes=10, name="net")
    x, _ = data.load("mnist10k", "test").arrays()
    found = extractor.function(x[:501])
    assert found.shape == (501, 128) and (found.std(axis=0) > 0).all()
    assert extractor.name == f"net-{extractor.sha256[:8]}"
    dense = params["dense1"]
    logits = found @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(extractor.logits(x[:501]), logits, rtol=1e-3, atol=1e-3)
    moved = nets.extractor({**params, "dense1": params["dense1"]}, classes=10, name="n")
    assert moved.sha256 == extractor.sha256
    other = {**params, "dense1": {**dense, "bias": dense["bias"] + 1}}
    assert nets.extractor(other, classes=10, name="n").sha256 != extractor.sha256


def test_batches_are_filled_up_and_cut_off():
    shapes = []

    def double(x):
        shapes.append(len(x))
        return x.reshape(len(x), -1) * 2.0

    x = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(in_batches(double, x, 3), 2 * x)
    assert shapes == [3, 3, 3]


def wrong_shape(images):
    return images


def no_numbers(images):
    return np.full((len(images), 2), "x")


def no_width(images):
    return np.zeros((len(images), 0))


def fails(images):
    return images / (1 // 0)


def other_widths(images):
    return np.zeros((len(images), len(images)))


@pytest.mark.parametrize("parse", [features.parse, table.parse])
@pytest.mark.parametrize(
    "path, message",
    [
        ("nonsense", "must be"),
        ("no_such_module:f", "cannot be imported"),
        ("math:pi", "is not a function|no metric and no function"),
        ("math:nothing", "cannot be imported"),
        (".relative:f", "cannot be imported"),
        ("broken_module:f", r"cannot be imported \(SyntaxError: invalid syntax"),
    ],
)
def test_what_is_no_metric_or_extractor_is_refused(tmp_path, monkeypatch, path, message, parse):
    (tmp_path / "broken_module.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        parse(path)


def test_a_plug_must_return_a_matrix():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    said = {
        "wrong_shape": r"gave float64\[3, 4, 4, 1\] for 3 images",
        "no_numbers": r"gave <U1\[3, 2\] for 3 images",
        "no_width": r"gave float64\[3, 0\] for 3 images",
        "other_widths": r"gave 2 features of an image, and 3 of one before",
        "fails": r"failed \(ZeroDivisionError: .*by zero, .*test_evaluate.py:\d+\)",
    }
    for name, message in said.items():
        extractor = plug(globals()[name], name)
        with pytest.raises(UserError, match=message):
            extractor.function(images.astype(np.float64))
            extractor.function(images[:2])


def test_a_run_may_have_commas_in_its_name(tmp_path, monkeypatch):
    """As default names have, of data with options or of two decays: the longest that is there is meant."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,size=16", "a,size=16,fit=pad", "b"):
        (tmp_path / name).mkdir()

    def runs(text):
        cfg = cli.resolve(evaluate.Config, evaluate.PRESETS, [f"--run={text}"])
        return cfg.run.value

    assert runs("a,b") == ["a", "b"] and runs("a,nowhere") == ["a", "nowhere"]
    assert runs("a,size=16") == ["a,size=16"]
    assert runs("b,a,size=16,fit=pad,a") == ["b", "a,size=16,fit=pad", "a"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--run or --samples is needed"),
        (["--run=a", "--samples=mnist10k"], "--run or --samples is needed"),
        (["--samples=b"], "--samples=b: must be mnist10k, "),
        (["--run=nowhere"], "nowhere: holds no run"),
        (["--run=nowhere", "--workdir=/proc/x"], "--workdir=/proc/x: cannot be written"),
        (["--run=nowhere", "--save=x.png"], "--save=x.png: must be FILE.npz"),
        (["--run=a,b", "--save=x.npz"], "--save=x.npz: holds the samples of one run"),
        (["--run=nowhere", "--save=/proc/x.npz"], "--save=/proc/x.npz: cannot be written"),
        (["--run=a,"], "--run=a,: must be run directories, separated by commas"),
        (["--run=a,./a/"], "--run=a,./a/: must name every run once"),
        (["--samples=mnist10k"], "--dataset: is needed"),
        (["--samples=npz:none.npz", "--dataset=mnist10k"], "no such file"),
        (["--run=a", "--metrics=fid"], "'fid' is not a metric"),
        (["--run=a", "--features=vgg"], "--features=vgg: must be one of classifier"),
        (["--run=a", "--n=1"], "--n=1: must be"),
        (["--run=nowhere", "--flags=truncation"], "--flags=truncation: must be NAME=VALUE"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.medium
@pytest.mark.parametrize(
    "change, said",
    [
        ({"config": {"batch_size": "x"}}, ": --batch_size=x (config.json): must be a whole number"),
        ({"config": {"net": 4}}, ": --net=4 (config.json): must be text"),
        ({"config": {"keep": "no"}}, ": --keep=no (config.json): must be N or N,best=M"),
        ({"experiment": "evaluate"}, ": holds no run of an experiment (config.json)"),
        ({"experiment": 4}, "/config.json: is damaged (experiment: Expected str, got int)"),
    ],
)
def test_damaged_records_are_one_line(gan, tmp_path, capsys, change, said):
    record = json.loads((gan / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert run(f"--run={tmp_path}", f"--workdir={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}{said}") and error.count("\n") == 1


@pytest.mark.slow
def test_a_feature_net_is_found_for_moved_data_and_made_again_if_damaged(
    tmp_path, monkeypatch, capsys
):
    """The same net again, whatever became of its file and whatever precision the run has that asks for it."""
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.integers(0, 256, (60, 8, 8), np.uint8), y=np.arange(60) % 2)

    def net(dataset):
        return features.load_classifier.__wrapped__(f"npz:{tmp_path / dataset}", 0)

    first = net("x.npz")
    (path,) = [p for p in tmp_path.glob("cache/features/*.npz") if first.sha256[:16] not in p.name]
    os.rename(tmp_path / "x.npz", tmp_path / "y.npz")
    capsys.readouterr()
    assert net("y.npz").sha256 == first.sha256
    assert "training" not in capsys.readouterr().out
    whole, other = path.read_bytes(), path.with_name("other.npz")
    path.write_bytes(whole[:-100])
    with jax.enable_x64(True):
        assert net("y.npz").sha256 == first.sha256
    assert f"warning: {path} is damaged; it is made again\n" == capsys.readouterr().err
    assert path.read_bytes() == whole
    path.unlink()
    path.mkdir()  # where no file can be written: as on a disk that is read-only
    assert net("y.npz").sha256 == first.sha256
    assert capsys.readouterr().err.endswith(f"warning: {path} cannot be written (Is a directory)\n")
    path.rmdir()
    os.rename(tmp_path / "cache" / "features", other.parent.with_name("elsewhere"))
    (tmp_path / "cache" / "features").touch()  # and none of the features can be kept, either
    assert net("y.npz").sha256 == first.sha256
    assert "File exists" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_feature_net(tmp_path, monkeypatch, capsys):
    """Nor is its best checkpoint told by two nets."""
    monkeypatch.setattr(features, "load_classifier", features.load_classifier.__wrapped__)
    flags = ["--preset=smoke", "--net=mlp", "--notensorboard", "--eval_every=4", "--sample_every=0"]
    rng, images = np.random.default_rng(0), tmp_path / "x.npz"
    np.savez(images, x=rng.integers(0, 256, (300, 28, 28), np.uint8), y=np.arange(300) % 2)
    flags += [f"--dataset=npz:{images}", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setenv("BPGAN_DATA_DIR", str(tmp_path / "cache"))

    def train(*more):
        argv = [*flags, *more]
        return cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, argv)

    assert train("--steps=4") == 0
    measure = json.loads((tmp_path / "run" / "config.json").read_text())["measure"]
    assert measure["features"] == f"classifier0-{measure['features_sha256'][:8]}"
    train_net = features.train_classifier
    monkeypatch.setattr(
        features,
        "train_classifier",
        lambda *args: jax.tree.map(lambda leaf: leaf + 1e-3, train_net(*args)),
    )
    assert train("--steps=8") == 0  # the net that was kept
    shutil.rmtree(tmp_path / "cache" / "features")
    capsys.readouterr()
    assert train("--steps=12") == 2
    error = capsys.readouterr().err
    assert f"was evaluated with features={measure['features']}" in error
    assert "from here on, whose numbers do not compare" in error


@pytest.mark.slow
@pytest.mark.parametrize("module", [classifier, toy_gan])
def test_runs_that_draw_no_images_are_named(tmp_path, capsys, module):
    path = tmp_path / "run"
    flags = ["--preset=smoke", "--steps=2", "--notensorboard", f"--workdir={path}"]
    assert cli.run(module.Config, module.build, module.PRESETS, flags) == 0
    capsys.readouterr()
    assert run(f"--run={path}", f"--workdir={tmp_path / 'out'}") == 2
    name = module.__name__.rpartition(".")[2]
    said = f"error: --run={path}: must be of a model of images, and is of {name}\n"
    assert capsys.readouterr().err == said


@pytest.mark.medium
def test_images_of_another_size_are_refused(gan, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.integers(0, 256, (40, 8, 8), np.uint8))
    flags = [f"--samples=npz:{tmp_path / 'x.npz'}", "--dataset=mnist10k", *FLAGS]
    assert run(*flags, f"--workdir={tmp_path / 'out'}") == 2
    assert "images are (8, 8, 1), those of mnist10k (28, 28, 1)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def verdicts():
    """What the metrics say of samples that are wrong in a known way, on pixels as features."""
    (x, y), (held, held_y) = (data.load("mnist10k", split).arrays() for split in ("train", "test"))
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(x))
    train, some = rows[:2000], rows[2000:2800]

    def images(x, y):
        return Images(x, y, features.pixels(x), None)

    def blurred(x):
        kernel = np.array([1, 4, 6, 4, 1]) / 16
        out = x.astype(float)
        for axis in (1, 2):
            out = np.apply_along_axis(np.convolve, axis, out, kernel, "same")
        return np.rint(out).astype(np.uint8)

    one = np.array([np.flatnonzero(y == c)[0] for c in range(10)])
    sets = {
        "fresh": (x[some], y[some]),
        "training images": (x[train[:800]], y[train[:800]]),
        "one a class": (x[np.repeat(one, 80)], y[np.repeat(one, 80)]),
        "noise": (rng.integers(0, 256, (800, 28, 28, 1), np.uint8), y[some]),
        "blurred": (blurred(x[some]), y[some]),
        "half the classes": (x[some][y[some] < 5], y[some][y[some] < 5]),
        "shuffled labels": (x[some], rng.permutation(y[some])),
    }
    found = {}
    for name, arrays in sets.items():
        fake, values = images(*arrays), {}
        for metric in ("fd", "kd", "prdc", "memorization", "class_fd"):
            call = table.METRICS[metric]
            values |= call(fake, images(held, held_y), images(x[train], y[train]), 0)
        found[name] = values
    return found


@pytest.mark.medium
@pytest.mark.parametrize(
    "samples, metric, low, high",
    [
        ("training images", "copies-%", 100, 100),
        ("training images", "authentic-%", 0, 0),
        ("training images", "C_T", -np.inf, -10),
        ("one a class", "coverage-k5", 0, 0.1),
        ("one a class", "recall-k3", 0, 0.1),
        ("noise", "precision-k3", 0, 0.01),
        ("noise", "1-NN-accuracy", 0.95, 1),
        ("noise", "C_T", 10, np.inf),
        ("half the classes", "coverage-k5", 0, 0.7),
        ("fresh", "coverage-k5", 0.85, 1),
        ("fresh", "copies-%", 0, 1),
        ("fresh", "C_T", -3, 3),
        ("fresh", "1-NN-accuracy", 0.42, 0.58),
    ],
)
def test_what_is_wrong_is_seen_by_the_metric_for_it(verdicts, samples, metric, low, high):
    assert low <= verdicts[samples][metric] <= high


@pytest.mark.medium
@pytest.mark.parametrize("samples", ["one a class", "noise", "blurred", "half the classes"])
def test_the_distance_sees_what_is_not_like_the_data(verdicts, samples):
    for metric in ("FD", "KD"):
        assert verdicts[samples][metric] > 3 * abs(verdicts["fresh"][metric]), metric


@pytest.mark.medium
def test_the_blind_spots_are_where_the_docs_say(verdicts):
    fresh, shuffled, copied = (
        verdicts[name] for name in ("fresh", "shuffled labels", "training images")
    )
    assert shuffled["FD"] == fresh["FD"] and shuffled["class-FD"] > 2 * fresh["class-FD"]
    assert (
        copied["FD"] < 1.5 * fresh["FD"]
    )  # a copy of the training set is a good sample of the data


@pytest.mark.slow
def test_runs_of_a_sweep_share_one_training_of_the_feature_net(tmp_path):
    """Two processes that ask for it at the same time: one trains it, the other waits."""
    line = (
        "from bpgan.evaluation import features; print(features.load_classifier('mnist10k', 3).name)"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen([sys.executable, "-c", line], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = [child.communicate(timeout=300)[0] for child in children]
    names = [text.split()[-1] for text in said]
    assert names[0] == names[1] and names[0].startswith("classifier3-")
    assert sum("training the feature net" in text for text in said) == 1


OWN = '''
"""A GAN, an extractor and metrics of a user's own, in one file."""

import dataclasses

import numpy as np
import optax

from bpgan import cli, data
from bpgan.algorithms import gan
from bpgan.evaluation.table import Metric
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field("mnist10k", data.forms, parse=data.parse, locates_data=True)


def build(cfg, axis_name=None):
    images = data.load(cfg.dataset.value)
    networks = gan.Networks(
        linen_net(mlp.Generator(shape=images.shape)), linen_net(mlp.Discriminator()),
        gan.normal_latents(4), images.shape,
    )
    optimizers = gan.Optimizers(optax.adam(1e-3), optax.adam(1e-3))
    algorithm = gan.make(networks, LOSSES["nonsaturating"], optimizers, axis_name=axis_name)
    source = data.source(images, seed=cfg.seed, batch_size=cfg.batch_size)
    return cli.Experiment(algorithm, source)


def corners(images):
    return images[:, ::6, ::6].reshape(len(images), -1).astype(float)


def brightness(fake, real, train, seed):
    return fake.x.mean() - real.x.mean()


def spread(fake, real, train, seed):
    if len(fake.x) < 1000:
        raise ValueError("needs 1,000 images")
    return {"spread": fake.features.std()}


def fails(fake, real, train, seed):
    return [] / 0


METRIC = Metric(
    lambda fake, real, train, seed: {"contrast": fake.x.std(), "pixels": fake.x[0].size},
    {"contrast": "higher"}, of_pixels=True,
)
'''


@pytest.mark.slow
def test_an_experiment_its_metrics_and_its_features_may_be_a_users_own(
    tmp_path, monkeypatch, capsys
):
    """In one file outside of the project, by flags alone."""
    file, path = tmp_path / "my_gan.py", tmp_path / "run"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = cli.experiments.find(str(file))
    flags = ["--steps=2", "--batch_size=8", "--notensorboard", f"--workdir={path}"]
    assert cli.run(own.config, own.action, own.presets, flags) == 0
    capsys.readouterr()
    names = ["brightness", "METRIC", "spread", "fails"]
    metrics = ",".join(["fd", *(f"my_gan:{name}" for name in names)])
    assert (
        run(
            f"--run={path}",
            "--n=100",
            "--features=my_gan:corners",
            f"--metrics={metrics}",
            f"--workdir={tmp_path / 'out'}",
            "--trust",
        )
        == 0
    )
    found = values(tmp_path / "out")
    assert list(found) == [
        *(f"{name}-my_gan:corners" for name in ("FD", "nFD", "brightness")),
        "contrast",
        "pixels",
    ]
    assert found["contrast"]["better"] == "higher" and found["pixels"]["better"] == ""
    assert found["contrast"]["features"] == "" and found["pixels"]["value"] == 784
    sample = samples.of_run(str(path), "newest", 100, 0, trust=True)[0]
    bright = sample.x.mean() - data.load("mnist10k", "test").arrays()[0].mean()
    row = found["brightness-my_gan:corners"]
    np.testing.assert_allclose(row["value"], bright, rtol=1e-12)
    assert abs(row["real"]) < 3 and row["experiment"] == str(file)
    said = capsys.readouterr().out
    assert "my_gan:spread left out: needs 1,000 images\n" in said
    assert "my_gan:fails left out: my_gan:fails: failed (TypeError: " in said
    assert f"{file}:" in said.partition("(TypeError")[2].partition(")\n")[0]


def test_a_metric_that_is_entered_while_a_program_runs_is_offered(tmp_path, monkeypatch):
    metric = table.Metric(
        lambda fake, real, train, seed: {"images": float(len(fake.x))},
        {"images": "lower"},
        of_pixels=True,
        controls=table.halves,
    )
    monkeypatch.setitem(table.METRICS, "count", metric)
    flags = ["--preset=smoke", "--metrics=count", "--n=40", f"--workdir={tmp_path}"]
    assert run(*flags) == 0
    (row,) = values(tmp_path).values()
    assert (row["value"], row["real"], row["better"]) == (40, 500, "lower")
    assert list(table.parse("all"))[-1] == "count"


def test_a_metric_of_nothing_but_text_is_refused():
    metric = table.parse(f"{__name__}:a_text")[f"{__name__}:a_text"]
    images = Images(*[np.zeros((3, 1))] * 4)
    with pytest.raises(UserError, match="a_text: gave 'much'; must be a number or"):
        metric(images, images, images, 0)


def a_text(fake, real, train, seed):
    return "much"


def test_the_table_knows_what_the_rule_for_logged_names_knows():
    """Which way is better is an attribute of the metric; logs have names only."""
    better = {k: v for metric in table.METRICS.values() for k, v in metric.better.items()}
    sign = {"higher": 1, "lower": -1}
    assert {name: direction(f"{name}-net0-12ab") for name in better} == {
        name: sign[way] for name, way in better.items()
    }


def test_the_best_checkpoint_is_by_the_first_metric_that_has_a_direction(monkeypatch):
    """And what takes long is not computed while something trains."""
    none = monitor.Monitors(lambda state: {}, lambda state: {}, {})
    monkeypatch.setattr(monitor, "monitors", lambda *_, **__: none)
    built = mnist_gan.build(cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, ["--preset=smoke"]))
    own = table.Metric(lambda *_: {}, {"shine": "higher"}, while_training=True)
    monkeypatch.setitem(table.METRICS, "shine", own)
    held = data.load("mnist10k", "test")
    assert monitor.monitor(built, "mnist10k", held).prefers == Goal("min", "eval/FD")
    for names, goal in (("kd", Goal("min", "eval/KD")), ("shine,fd", Goal("max", "eval/shine"))):
        chosen = monitor.parse(names)
        assert monitor.monitor(built, "mnist10k", held, chosen).prefers == goal
    with pytest.raises(ValueError, match="cas: not computed while .* of fd, kd, prdc, shine"):
        monitor.parse("fd,cas")
    assert monitor.monitor(built, "mnist10k", None) is built


@pytest.mark.parametrize("name", table.METRICS)
def test_what_is_computed_while_training_needs_no_more_than_features(name):
    metric = table.METRICS[name]
    if metric.while_training:
        assert not metric.needs and not metric.covers and not metric.of_pixels
        features = np.random.default_rng(0).normal(size=(metric.least, 2))
        images = Images(np.zeros((metric.least, 1)), None, features, None)
        assert all(map(math.isfinite, metric(images, images, images, 0).values()))


def _counted(path):
    return [row for row in json.loads((path / "metrics.json").read_text())]


def test_the_reference_may_be_the_training_images_or_another_dataset(tmp_path, capsys):
    """Distances are to what is named, ``real`` is of images that are not in it, and both sides are counted."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 60), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 2
    np.savez(tmp_path / "a.npz", **arrays)
    other = {"x": rng.integers(0, 128, (40, 8, 8), np.uint8), "y": np.arange(40) % 2}
    np.savez(tmp_path / "b.npz", **other)
    a, b = (f"npz:{tmp_path / name}.npz" for name in "ab")
    argv = [
        f"--samples={b}",
        f"--dataset={a}",
        "--n=30",
        "--features=pixels",
        "--metrics=fd,memorization",
    ]
    assert run(*argv, f"--workdir={tmp_path / 'train'}", "--reference=train") == 0
    said = capsys.readouterr().out
    assert (
        f"30 samples against 60 images of {a} train\nreal: 20 images of {a} test against 60\n"
        in said
    )
    assert "memorization left out: the reference is the training images themselves" in said
    row = _counted(tmp_path / "train")[0]
    train, test = (data.load(a, split) for split in ("train", "test"))
    samples_of = samples.of_files(b, 30, 0)
    x = [
        table.metrics.gaussian(features.pixels(each))
        for each in (train.arrays()[0], samples_of.x, test.arrays()[0])
    ]
    distance = table.metrics.frechet_distance_gaussians
    np.testing.assert_allclose(
        [row["value"], row["real"]], [distance(x[0], x[1]), distance(x[0], x[2])], rtol=1e-6
    )
    assert row["reference_sha256"] == train.sha256
    assert run(*argv, f"--workdir={tmp_path / 'other'}", f"--reference={b}") == 0
    row = _counted(tmp_path / "other")[0]
    assert (row["reference"], row["reference_images"]) == (f"{b} train and test", 40)
    assert (row["real_of"], row["real_images"], row["real_reference_images"]) == (
        f"{a} train",
        30,
        40,
    )
    whole = table.metrics.gaussian(features.pixels(other["x"][..., None]))
    np.testing.assert_allclose(row["value"], distance(whole, x[1]), rtol=1e-6)
    capsys.readouterr()
    assert run(*argv, f"--workdir={tmp_path / 'none'}", f"--reference={a}") == 2
    assert f"error: --reference={a}: holds images of --dataset={a}" in capsys.readouterr().err


def test_few_images_to_compare_with_are_said_to_be_few(tmp_path, capsys):
    """And how many there are in the training split; each kind of ``real`` is counted."""
    argv = ["--samples=mnist10k", "--dataset=mnist10k", FLAGS[0], f"--workdir={tmp_path}"]
    assert run(*argv, "--n=1200", "--metrics=fd,kd") == 0
    said = capsys.readouterr().out
    assert "1,000 images are few for 1,200 samples: they make FD larger" in said
    assert "--reference=train compares with 9,000 images" in said
    assert run(*argv, "--n=900", "--metrics=fd") == 0
    assert " are few " not in capsys.readouterr().out
    base = {"value": 1.0, "n": 900, "reference": "d test", "reference_images": 1000}
    rows = [
        base | {"metric": "FD", "real_of": "d train", "real_images": 900, "real_reference_images": 1000},
        base | {"metric": "KD", "real_of": "d train", "real_images": 900, "real_reference_images": 1000},
        base | {"metric": "C_T", "real_of": "a half", "real_images": 500, "real_reference_images": 500},
    ]  # fmt: skip
    assert records.compared([records.evaluation(row) for row in rows])[1:] == [
        "real: 900 images of d train against 1,000",
        "real of C_T: 500 images of a half against 500",
    ]


@pytest.mark.medium
def test_real_and_untrained_stand_beside_what_is_evaluated_while_it_trains(
    tmp_path, monkeypatch, capsys
):
    """They are those of the experiment ``evaluate``, and constants of the run."""
    monkeypatch.setattr(features, "load_classifier", lambda *_: plug(features.pixels, "pixels"))
    monkeypatch.setattr(monitor.monitors, "__defaults__", (300,))
    drawn, draw = [], cli.draw
    monkeypatch.setattr(
        cli,
        "draw",
        lambda *args, **options: drawn.append(options["seed"]) or draw(*args, **options),
    )
    path = tmp_path / "run"
    flags = [
        "--preset=smoke",
        "--net=mlp",
        "--notensorboard",
        "--eval_every=4",
        "--seed=3",
        f"--workdir={path}",
    ]
    assert cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, flags) == 0
    said = capsys.readouterr().out
    assert (
        "300 samples against 900 images held out, at the end against 1,000 of the test split; beside"
        " them 300 training images against the same\n" in said
    )
    assert drawn.count(1) == 3  # two evaluations, and the untrained once: it is kept
    assert " (real " in said and "real/" not in said
    log = [line for line in records.read_log(path / "metrics.jsonl") if "eval/FD" in line]
    assert len(log) == 2 and log[0]["eval/FD"] != log[1]["eval/FD"]
    for of in ("real", "untrained"):
        assert log[0][f"eval/FD/{of}"] == log[1][f"eval/FD/{of}"]
    found = records.read_result(path / "result.json").metrics
    assert (
        run(
            f"--run={path}",
            "--n=300",
            "--features=pixels",
            "--metrics=fd",
            f"--workdir={tmp_path / 'e'}",
        )
        == 0
    )
    row = _counted(tmp_path / "e")[0]
    np.testing.assert_allclose(found["test/FD"], row["value"], rtol=1e-6)
    np.testing.assert_allclose(found["test/FD/untrained"], row["untrained"], rtol=1e-6)
    assert 0 < found["test/FD/real"] < 0.2 * found["test/FD"]
    measure = records.read_run(path / "config.json").measure
    counts = ("samples", "real_images", "held_images", "test_images")
    assert [measure[name] for name in counts] == ["300", "300", "900", "1000"]
    assert direction("eval/precision-k3/real") == 0 and direction("eval/precision-k3") == 1


def test_a_run_that_translates_is_sent_to_its_own_numbers():
    from bpgan.evaluation import samples

    def restored(name, parts):
        dataset = types.SimpleNamespace(parts=parts)
        return types.SimpleNamespace(name=name, record=types.SimpleNamespace(dataset=dataset))

    samples.refuse_translation("runs/a", restored("image_gan", []))
    with pytest.raises(UserError, match="is of translate, .* result.json") as error:
        samples.refuse_translation("runs/a", restored("translate", ["a", "b"]))
    assert error.value.argument == "run"
