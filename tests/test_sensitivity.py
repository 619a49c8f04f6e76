"""The suite must reject what must be rejected: the table of defects and the ladders (T3.20 to T3.23)."""

import json

import numpy as np
import pytest

from bpgan import cli
from bpgan.evaluation import features
from bpgan.metrics.features import plug
from experiments import evaluate, mnist_gan, sensitivity


def blocks(images):
    """Means of blocks of 4 x 4 pixels and their spread within: features that see noise and blur."""
    x = images.reshape(len(images), 7, 4, 7, 4).astype(np.float64)
    return np.concatenate(
        [x.mean((2, 4)).reshape(len(x), -1), x.std((2, 4)).reshape(len(x), -1)], 1
    )


@pytest.fixture(scope="module")
def sight():
    metrics = "fd,kd,prdc,vendi,memorization,class_fd"
    cfg = sensitivity.Config(n=1500, metrics=metrics, draws=5)
    return sensitivity.look(cfg, plug(blocks, "blocks"))


SEEN = {
    "training images": {"C_T", "copies-%", "authentic-%", "NN-ratio"},
    "one image per class": {"FD", "KD", "recall-k3", "coverage-k5", "Vendi-of-1000", "class-FD"},
    "noise": {"FD", "KD", "precision-k3", "recall-k3", "coverage-k5", "C_T", "1-NN-accuracy"},
    "blurred": {"FD", "KD", "class-FD"},
    "half of the classes": {"FD", "KD", "recall-k3", "coverage-k5"},
    "shuffled labels": {"class-FD"},
}
BLIND = {
    "training images": {"FD", "KD", "precision-k3", "recall-k3", "coverage-k5", "class-FD"},
    "one image per class": {"copies-%"},
    "noise": {"copies-%"},
    "shuffled labels": {"FD", "KD", "precision-k3", "recall-k3", "coverage-k5", "C_T"},
}


@pytest.mark.slow
@pytest.mark.parametrize("defect, metric", [(d, m) for d, ms in SEEN.items() for m in sorted(ms)])
def test_defects_are_seen(sight, defect, metric):
    assert sight.sees(defect, metric), (sight.real[metric], sight.defects[defect][metric])


@pytest.mark.slow
@pytest.mark.parametrize("defect, metric", [(d, m) for d, ms in BLIND.items() for m in sorted(ms)])
def test_blind_spots_are_where_the_docs_show_them(sight, defect, metric):
    assert not sight.sees(defect, metric), (sight.real[metric], sight.defects[defect][metric])


@pytest.mark.slow
def test_real_images_are_at_the_floor(sight):
    """T3.20."""
    floor, bias = sight.floor
    assert 0.5 * bias < floor < 2 * bias


@pytest.mark.medium
@pytest.mark.parametrize("ladder", sensitivity.LADDERS)
def test_the_distance_grows_along_a_ladder(sight, ladder):
    """T3.21, of features that see local contrast."""
    assert (np.diff(sight.ladders[ladder]) > 0).all()


@pytest.mark.medium
def test_tables(sight):
    table = sensitivity.table(sight)
    assert len(table) == 2 + len(sight.real)
    labels = next(line for line in table if line.startswith("| FD |")).split(" | ")[-1]
    assert labels.startswith("(")  # not seen
    assert "| half of the classes (5 of 10) | shuffled labels |" in table[0]
    assert len(sensitivity.ladder_lines(sight)) == 3 + len(sensitivity.LADDERS)


def test_a_metric_that_cannot_be_had_is_left_out(tmp_path, capsys):
    """MS-SSIM of images smaller than its window, and classes of which hardly any has two images."""
    x, y = np.random.default_rng(0).integers(0, 256, (900, 8, 8), np.uint8), np.arange(900) % 89
    np.savez(tmp_path / "x.npz", x=x, y=y)
    argv = ["--preset=smoke", f"--dataset=npz:{tmp_path / 'x.npz'}", f"--workdir={tmp_path}"]
    argv += ["--metrics=fd,msssim,class_fd", "--n=100"]
    assert cli.run(sensitivity.Config, sensitivity.run, sensitivity.PRESETS, argv) == 0
    said = capsys.readouterr().out
    assert "pixels: msssim left out: images of 8x8" in said and "| FD |" in said


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--n=3000"], "--n=3000: must be at most a quarter of the 9000 images"),
        (["--metrics=fid"], "'fid' is not a metric"),
        (["--workdir=/proc/x"], "--workdir=/proc/x: cannot be written"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "embed", lambda *_: pytest.fail("was computed"))
    argv = ["--preset=smoke", f"--workdir={tmp_path}", *flags]
    assert cli.run(sensitivity.Config, sensitivity.run, sensitivity.PRESETS, argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_projects_feature_nets(optimized):
    """T3.20 to T3.22 on the nets that ``--features=classifier`` trains, both of them."""
    for extractor in features.parse("classifier")("mnist10k"):
        sight = sensitivity.look(sensitivity.Config(n=2000, metrics="fd,class_fd"), extractor)
        floor, bias = sight.floor
        assert floor < 2 * bias
        for name, found in sight.ladders.items():
            assert (np.diff(found) > 0).all(), name
        assert not sight.sees("shuffled labels", "FD")
        assert sight.sees("shuffled labels", "class-FD")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_feature_nets_rank_checkpoints_alike(optimized, tmp_path):
    """T3.23: two trained nets and one with random weights order five checkpoints of a run in the same way."""
    from scipy.stats import spearmanr

    flags = ["--net=dcgan:8", "--epochs=5", "--eval_every=1ep", "--keep=20", "--notensorboard"]
    flags += ["--checkpoint_every=1ep", "--sample_every=0", f"--workdir={tmp_path / 'run'}"]
    assert cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, flags) == 0
    steps = sorted(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir())
    found = {}
    for step in steps:
        argv = [f"--run={tmp_path / 'run'}", f"--checkpoint={step}", "--metrics=fd", "--n=5000"]
        for nets in ("classifier", f"{__name__}:random_features"):
            out = tmp_path / "out"
            flags = [*argv, f"--features={nets}", f"--workdir={out}"]
            assert cli.run(evaluate.Config, evaluate.run, evaluate.PRESETS, flags) == 0
            for row in json.loads((out / "metrics.json").read_text()):
                if row["metric"].startswith("FD-"):
                    found.setdefault(row["metric"], []).append(row["value"])
    assert len(found) == 3 and all(len(v) == len(steps) >= 5 for v in found.values())
    trained, random = [k for k in found if "classifier" in k], [k for k in found if "random" in k]
    assert spearmanr(found[trained[0]], found[trained[1]]).statistic >= 0.9
    assert spearmanr(found[trained[0]], found[random[0]]).statistic >= 0.8


def random_features(images):
    """The hidden layer of an untrained net."""
    import jax
    import jax.numpy as jnp

    from bpgan.nets import dcgan

    net = dcgan.Classifier(10, features=True)
    params = net.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
    x = [images[i : i + 500].astype(np.float32) / 127.5 - 1 for i in range(0, len(images), 500)]
    return np.concatenate([np.asarray(net.apply(params, part)) for part in x])
