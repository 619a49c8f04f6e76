"""A run that begins from another one: `--init_from=RUN[:STEP]`, `--init=g,d,ema,optimizer`."""

import json
import shutil

import jax
import numpy as np
import pytest
from checks.training import small_gan

import bpgan
from bpgan import cli
from bpgan.runtime import origin, records
from bpgan.types import UserError
from experiments import classifier, image_gan, mnist_gan, toy_gan, vae

pytestmark = pytest.mark.usefixtures("no_curves")
QUIET = ("--preset=smoke", "--notensorboard", "--sample_every=0")


def train(experiment, workdir, *flags):
    argv = [*QUIET, *flags, f"--workdir={workdir}"]
    return cli.run(experiment.Config, experiment.build, experiment.PRESETS, argv)


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """A run of the article's networks with an average of G; its data are gone."""
    folder = tmp_path_factory.mktemp("gan")
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", x=rng.integers(0, 256, (60, 8, 8, 1), np.uint8), y=np.arange(60))
    flags = ("--net=mlp", f"--dataset=npz:{folder / 'own.npz'}", "--keep=9")
    assert train(mnist_gan, folder / "run", *flags) == 0
    (folder / "own.npz").unlink()
    return folder / "run"


@pytest.fixture
def other(tmp_path):
    """Other images of the same shape, and of another."""
    rng = np.random.default_rng(1)
    for name, shape in (("same", (40, 8, 8, 1)), ("larger", (40, 16, 16, 1))):
        x = rng.integers(0, 256, shape, np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.arange(40) % 2)
    return tmp_path


def source_of(state, place="there"):
    """As if it had been saved."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    name = jax.tree_util.keystr
    arrays = {name(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}
    return origin.Source(place, records.RunRecord(experiment="x"), 7, arrays)


def states():
    """Of the same networks at two beginnings, the second one after a few updates' worth of change."""
    algorithm = small_gan()
    a, b = (algorithm.init(jax.random.key(seed)) for seed in (0, 1))
    return a, jax.tree.map(lambda x: x + 1, b)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == y).all()), a, b))


# The state ----------------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("parts", [[], ["g"], ["d"], ["g", "ema"], ["g", "d", "ema", "optimizer"]])
def test_what_is_asked_for_is_taken(parts):
    new, old = states()
    begun = origin.begin(new, source_of(old), parts)
    wanted, state = parts or ["g", "d", "ema"], begun.state
    for name in ("g", "d"):
        took, player = name in wanted, state.players[name]
        assert equal(player.params, (old if took else new).players[name].params)
        assert equal(player.stats, (old if took else new).players[name].stats)
        from_old = took and "optimizer" in wanted
        assert equal(player.opt, (old if from_old else new).players[name].opt)
    average = old.ema["g"] if {"g", "ema"} <= {*wanted} else state.players["g"].variables
    assert equal(state.ema["g"], average)
    assert int(state.step) == 0 and equal(state.memory, new.memory) and not begun.left
    assert jax.tree.structure(state) == jax.tree.structure(new)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
    assert len(set(buffers)) == len(buffers)  # each is given away once


@pytest.mark.medium
def test_what_does_not_fit_begins_anew_and_is_named():
    new, old = states()
    source = source_of(old)
    kernel = next(name for name in source.arrays if name.startswith("players/g/params"))
    moment = next(name for name in source.arrays if name.startswith("players/d/opt/"))
    arrays = {**source.arrays, kernel: np.zeros((2, 3), np.float32)}
    del arrays[moment]
    begun = origin.begin(new, source._replace(arrays=arrays), ["g", "d", "optimizer"])
    assert begun.left[kernel].startswith("is [2, 3] there, [")
    assert begun.left["players/d/opt"] == f"{moment} is not in it"
    assert equal(begun.state.players["d"].opt, new.players["d"].opt)
    assert not equal(begun.state.players["g"].params, new.players["g"].params)
    assert equal(begun.state.ema["g"], begun.state.players["g"].variables)


@pytest.mark.medium
def test_a_state_that_cannot_begin_so_is_refused():
    new, old = states()
    with pytest.raises(
        UserError, match="init=g,x: 'x' is not a part of this run; must be some of d, g, ema, opt"
    ):
        origin.check_parts(new, ["g", "x"])
    with pytest.raises(UserError, match="init=ema: must name a player, too: d, g"):
        origin.check_parts(new, ["ema"])
    with pytest.raises(UserError, match="init_from: this experiment cannot begin"):
        origin.check_parts((1, 2), [])
    with pytest.raises(UserError, match="init_from=there: nothing of it fits: players/g/params"):
        origin.begin(new, source_of(old)._replace(arrays={}), [])


def test_names_of_a_checkpoint(tmp_path):
    assert origin.parse("runs/a") == ("runs/a", None) and origin.parse("") == ("", None)
    assert origin.parse("runs/a:12") == ("runs/a", 12) and origin.parse("a:b") == ("a:b", None)
    (tmp_path / "latents=normal:8").mkdir()  # no step, but the end of a name
    assert origin.parse(f"{tmp_path}/latents=normal:8") == (f"{tmp_path}/latents=normal:8", None)
    with pytest.raises(ValueError, match="must be RUN or RUN:STEP"):
        origin.parse(":3")


def test_a_flag_that_is_newer_than_a_run_changes_nothing_while_it_is_empty(tmp_path):
    from bpgan.runtime import directory

    old = records.RunRecord(experiment="x", format=records.FORMAT, config={"lr": 1.0})
    (tmp_path / "config.json").write_text(json.dumps(records.fields(old)))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    options = {"name": "x", "restart_safe": frozenset(), "fingerprint": "f"}
    directory.open_run(tmp_path, config={"lr": 1.0, "init_from": ""}, **options)
    with pytest.raises(UserError, match="`init_from` was None, now 'a'"):
        directory.open_run(tmp_path, config={"lr": 1.0, "init_from": "a"}, **options)


# The command --------------------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_a_run_begins_where_another_was(gan, other, tmp_path, capsys):
    """Its first checkpoint is of a step that changes nothing; it says where it came from, and goes on without it."""
    run = tmp_path / "run"
    copy = shutil.copytree(gan, tmp_path / "source")
    flags = ["--net=mlp", f"--dataset=npz:{other / 'same.npz'}", f"--init_from={copy}:4"]
    still = ["--g_lr=0", "--d_lr=0", "--ema=1", "--loss=hinge", "--penalty=none"]
    assert train(mnist_gan, run, *flags, *still, "--steps=2") == 0
    said = f"began from {copy} (mnist_gan, step 4): "
    assert said in capsys.readouterr().out
    mine, theirs = bpgan.load(run), bpgan.load(gan, 4)
    assert equal(mine.state.players["g"].params, theirs.state.players["g"].params)
    assert equal(mine.state.players["d"].params, theirs.state.players["d"].params)
    # The decay of an average begins at 1/10, and is 2/11 in the second step.
    weights, average = (theirs.state.players["g"].variables, theirs.state.ema["g"])
    blend = jax.tree.map(lambda w, a: w + 0.1 * 2 / 11 * (a - w), weights, average)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mine.generator.variables, blend
    )
    found = mine.record.origin
    assert (found.step, found.run, found.data) == (4, theirs.record.run, theirs.record.data)
    assert found.left == {} and mine.record.config["init_from"] == f"{copy}:4"
    assert f"B{said[1:]}" in (run / "report.html").read_text()
    shutil.rmtree(copy)
    assert train(mnist_gan, run, *flags, *still, "--steps=4") == 0
    assert bpgan.load(run).record.origin == found and bpgan.load(run).step == 4
    moved = [*flags[:2], f"--init_from={tmp_path / 'elsewhere'}"]
    assert train(mnist_gan, run, *moved, *still, "--steps=6") == 2
    assert "another configuration (--init_from was" in capsys.readouterr().err


@pytest.mark.slow
def test_another_resolution_is_named(gan, other, tmp_path, capsys):
    flags = ["--net=mlp", f"--dataset=npz:{other / 'larger.npz'}", f"--init_from={gan}"]
    assert train(mnist_gan, tmp_path / "run", *flags, "--init=g,d") == 0
    left = bpgan.load(tmp_path / "run").record.origin.left
    assert left["players/g/params/dense1/kernel"] == "is [128, 64] there, [128, 256] here"
    assert left["players/d/params/dense0/kernel"] == "is [64, 128] there, [256, 128] here"
    assert set(left) == {
        "players/g/params/dense1/kernel",
        "players/g/params/dense1/bias",
        "players/d/params/dense0/kernel",
    }
    assert "3 begin anew: " in capsys.readouterr().out


@pytest.mark.slow
def test_another_experiment_and_labels_are_allowed(gan, other, tmp_path):
    """The perceptron with labels has a wider first layer and an embedding."""
    flags = ["--net=mlp", "--condition=concat", f"--dataset=npz:{other / 'same.npz'}"]
    assert train(image_gan, tmp_path / "run", *flags, f"--init_from={gan}", "--init=g") == 0
    found = bpgan.load(tmp_path / "run").record.origin
    assert found.experiment == "mnist_gan" and found.taken > 0
    assert "players/g/params/embed0/embedding" in found.left


@pytest.mark.medium
def test_what_it_cannot_begin_from_is_said_in_a_line(gan, tmp_path, capsys):
    def said(experiment, *flags):
        assert train(experiment, tmp_path / "run", *flags) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return error

    assert "--init_from=nowhere: holds no run (config.json)" in said(
        mnist_gan, "--init_from=nowhere"
    )
    assert f"--init_from={gan}:5: has no sound checkpoint of step 5" in said(
        mnist_gan, f"--init_from={gan}:5"
    )
    assert "--init=g: has no effect without --init_from" in said(mnist_gan, "--init=g")
    assert "--init=g,g: must be names" in said(mnist_gan, "--init=g,g")
    assert "--init=q: 'q' is not a part of this run; must be some of d, g, ema" in said(
        mnist_gan, f"--init_from={gan}", "--init=q"
    )
    assert "nothing of it fits: players/vae/params" in said(vae, f"--init_from={gan}", "--bound=0")
    assert "--init_from: this experiment cannot begin from another run" in said(
        toy_gan, f"--init_from={gan}", "--problem=dirac"
    )
    broken = shutil.copytree(gan, tmp_path / "broken")
    for step in (broken / "checkpoints").iterdir():
        (step / "manifest" / "metadata").write_text("{}")
    assert "has no sound checkpoint" in said(mnist_gan, f"--init_from={broken}")


@pytest.mark.medium
def test_a_classifier_begins_from_another(tmp_path):
    """One player of another name; and no average."""
    assert train(classifier, tmp_path / "a") == 0
    flags = [f"--init_from={tmp_path / 'a'}", "--init=net,optimizer", "--steps=9"]
    assert train(classifier, tmp_path / "b", *flags) == 0
    assert bpgan.load(tmp_path / "b").record.origin.left == {}
