"""experiments/interpret.py: every part of a small run, what others cannot have, and what is refused."""

import json
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bpgan import cli
from bpgan.explain import spectra, subject, walks
from bpgan.runtime import records
from bpgan.types import UserError
from experiments import image_gan, interpret, linear_regression, vae

pytestmark = pytest.mark.usefixtures("no_curves")


def train(module, path, *flags):
    argv = ["--preset=smoke", "--notensorboard", f"--workdir={path}", *flags]
    assert cli.run(module.Config, module.build, module.PRESETS, argv) == 0
    return path


def run(*flags):
    return cli.run(interpret.Config, interpret.run, interpret.PRESETS, ["--preset=smoke", *flags])


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """90 images of 8 x 8 pixels in three classes, each of its own color, and 30 others."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.integers(0, 60, (120, 8, 8, 3)).astype(np.uint8)
    x[np.arange(120), :, :, y] += 120
    path = tmp_path_factory.mktemp("toys") / "toys.npz"
    np.savez(path, x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toys):
    """A short run on labels."""
    flags = [f"--dataset=npz:{toys}", "--net=mlp", "--condition=projection"]
    return train(image_gan, tmp_path_factory.mktemp("gan") / "run", *flags)


@pytest.mark.medium
@pytest.mark.timeout(600)
def test_all_of_a_run(trained, tmp_path, capsys):
    """Numbers, pictures and the page; the controls and known bounds hold whatever was learned."""
    picture = tmp_path / "mine.png"
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(picture)
    out = tmp_path / "out"
    assert run(f"--run={trained}", f"--workdir={out}", f"--image={picture}") == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "interpret.json").read_text(), parse_constant=pytest.fail)
    assert set(interpret.PARTS) <= set(found) and (found["step"], found["seed"]) == (8, 0)
    assert found["classifier"].startswith("classifier0-") and set(found["cpu_seconds"]) >= {"units"}
    made = {path.name for path in out.iterdir()}
    pictures = [
        "traversals_sefa",
        "interpolations",
        "attribution",
        "inversion",
        "neighbors",
        "units",
    ]
    assert {f"{name}.png" for name in pictures} | {"explore.html", "interpret.json"} <= made
    with Image.open(out / "traversals_sefa.png") as strips:  # two directions, nine steps
        assert strips.size == (9 * 10 - 2, 2 * 10 - 2)
    assert (out / "explore.html").stat().st_size < 12e6
    for title in ("Directions and classes", "What D looks at", "The game at its checkpoints"):
        assert title in printed
    vectors = np.array(found["directions"]["SeFa"]["vectors"])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-5)
    for effect in found["directions"]["SeFa"]["effects"]:
        np.testing.assert_allclose(np.sum(effect["change"], 1), 0, atol=1e-5)
    assert found["units"]["none"]["pixels"] < 1e-6 < found["units"]["all"]["pixels"]
    complete = found["attribution"]["classifier"]["integrated gradients, black"]["residual"]
    assert max(complete) < 1e-3 < max(found["attribution"]["classifier"]["gradient"]["residual"])
    assert [c["step"] for c in found["spectrum"]["checkpoints"]] == [4, 8]
    assert len([c for c in found["inversion"]["captions"] if c.startswith("mine.png, as")]) == 3
    assert 1 <= np.min(found["path"]["jacobian"]["dimension"]) <= 8
    assert np.shape(found["neighbors"]["pixels"]["indices"]) == (8, 5)


@pytest.mark.medium
def test_a_private_run_shows_no_training_image(trained, tmp_path, capsys, monkeypatch):
    private = tmp_path / "private"
    shutil.copytree(trained, private)
    (private / records.TERMS).write_text("{}")

    def forbidden(*_):
        raise AssertionError("training images were asked for")

    what = "attribution,inversion"
    monkeypatch.setattr(subject.Subject, "classifier", "there is no classifier")
    monkeypatch.setattr(subject, "data_of", forbidden)
    out = private / "interpret"
    assert run(f"--run={private}", f"--workdir={out}", f"--what={what}") == 0
    assert 'href="interpret/explore.html"' in (private / "report.html").read_text()
    left_out = json.loads((out / "interpret.json").read_text())["left_out"]
    assert sum("the run is private, so that nothing is shown" in text for text in left_out) == 2
    assert "is private; the numbers" in capsys.readouterr().err
    assert run(f"--run={private}", f"--workdir={tmp_path / 'out'}", "--what=neighbors") == 2
    assert "--what=neighbors: the run is private" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_run_cannot_have(toys, tmp_path, capsys):
    """A VAE has no D and is no game: left out, and an error where it was asked for by name."""
    path = train(vae, tmp_path / "vae", f"--dataset=npz:{toys}")
    moved = toys.with_name("moved.npz")
    shutil.copy(toys, moved)
    flags = [f"--run={path}", f"--workdir={tmp_path / 'out'}"]
    assert run(*flags, "--what=spectrum") == 2
    assert "--what=spectrum: a run of vae is no game of two players" in capsys.readouterr().err
    assert run(*flags, "--what=inversion", f"--dataset=npz:{moved}") == 0
    toys.rename(toys.with_suffix(".gone"))
    try:
        assert run(*flags, "--what=neighbors") == 2
        assert "the data are not there" in capsys.readouterr().err
    finally:
        toys.with_suffix(".gone").rename(toys)


@pytest.mark.medium
def test_bad_input(trained, toys, tmp_path, capsys):
    """One line, which names the flag, before any long work."""
    wide, broken = tmp_path / "wide.png", tmp_path / "broken.png"
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(wide)
    broken.write_text("no picture")
    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    for file in (damaged / "checkpoints").rglob("*"):
        if file.is_file() and "manifest" not in str(file):
            file.write_bytes(b"0" * 10)
    line = train(linear_regression, tmp_path / "line")
    of_run = [f"--run={trained}"]
    cases = [
        ([], "--run: must name a run directory"),
        ([f"--run={tmp_path / 'none'}"], "holds no run"),
        ([f"--run={line}"], "a run of linear_regression has no generator that draws from latents"),
        ([f"--run={damaged}"], "checkpoint"),
        ([*of_run, "--directions=9"], "--directions=9: must be at most 8, the dimensions"),
        ([*of_run, f"--image={wide}"], f"--image={wide}: is 9x8 pixels, must be 8x8"),
        ([*of_run, f"--image={broken}"], f"--image={broken}: cannot be read (not an image"),
        ([*of_run, "--image=absent.png"], "--image=absent.png: cannot be read (No such file"),
        ([*of_run, f"--image={wide}", "--what=path"], "which --what does not name"),
        ([*of_run, "--what=units", "--layer=conv9"], "--layer=conv9: must be one of "),
        ([*of_run, "--what=stars"], "--what=stars: 'stars' is none of directions, path"),
    ]
    for flags, message in cases:
        assert run(*flags, f"--workdir={tmp_path / 'out'}") == 2, flags
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, error
        assert len([line for line in error.splitlines() if line.startswith("error")]) == 1, error


@pytest.mark.medium
def test_directions_of_styles():
    """Of w, not of z: SeFa finds the axes of a synthesis that is known, and truncation draws styles to their mean."""
    stretch = jnp.diag(jnp.array([1.0, 3.0, 2.0]))
    paint = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16)), jnp.float32)

    def synthesis(w):
        return jnp.tanh(jnp.tanh(w @ stretch) @ paint).reshape(-1, 4, 4, 1)

    def mapping(z):
        return z[:, ::-1] ** 3

    def latents(n, *, seed=0, truncation=None):
        return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)

    run = types.SimpleNamespace(
        config=types.SimpleNamespace(truncation=0.0), experiment="styles", classes=0, private=True, path="r",
        class_names=(), networks={"mapping": mapping, "synthesis": synthesis}, latents=latents,
        generator=lambda z: synthesis(mapping(z)), record=types.SimpleNamespace(dataset=None),
    )  # fmt: skip
    explained = subject.Subject(
        subject.Wanted("r", directions=2, samples=200, megapixels=0.02), run
    )
    found = walks.walked(explained)
    assert {walk.method for walk in found.shows["walks"]} == {
        "SeFa",
        "GANSpace",
        "Jacobian",
        "attributes",
    }
    assert found.numbers["space"] == "w"
    vectors = np.array(found.numbers["SeFa"]["vectors"])
    np.testing.assert_allclose(vectors, [[0, 1, 0], [0, 0, 1]], atol=1e-5)
    first, strip = found.shows["walks"][0], found.shows["strips"][0]
    assert first.scores is None and first.grids is not None
    middle = first.steps.index(0)
    b = len(strip.tiles)
    for i in range(b):  # psi = 1 and a step of 0 are the sample itself, psi = 0 is the same for all
        np.testing.assert_array_equal(strip.tiles[i, -1], first.strips[i, 0, middle])
        np.testing.assert_array_equal(strip.tiles[i, 0], strip.tiles[0, 0])
    # The first direction of a pair goes down.
    ends = first.pair_steps.index(0)
    np.testing.assert_array_equal(first.grids[0, 0, 0, ends], first.strips[0, 0, 0])
    np.testing.assert_array_equal(first.grids[0, 0, ends, 0], first.strips[0, 1, 0])


@pytest.mark.parametrize(
    "budget, size, classes", [(9e6, 784, 10), (9e6, 784, 0), (9e6, 3 * 64**2, 10), (1e5, 784, 3)]
)
def test_the_plan_of_the_page_keeps_its_budget(budget, size, classes):
    plan = walks.Plan.of(budget, size, classes, 4, 5)
    bases = plan.seeds * plan.labels
    used = size * bases * (4 * 5 * plan.steps + len(plan.pairs) * plan.grid**2)
    assert plan.labels <= max(classes, 1) and plan.steps >= 5
    assert used <= budget or bases == 1
    if budget == 9e6 and size == 784:
        assert (plan.steps, plan.grid, len(plan.pairs)) == (11, 7, 3) and bases >= 24


def test_the_intervals_of_lazy_penalties():
    terms = types.SimpleNamespace(terms=[types.SimpleNamespace(every=n) for n in (4, None)])
    penalty = cli.Parsed("r1", lambda text: terms)
    assert spectra.intervals({"penalty": penalty, "penalty_every": 3}) == [4, 3]
    assert spectra.intervals({}) == spectra.intervals({"penalty": 0.1}) == []


def test_parts_are_read():
    assert interpret.parse_parts("units,path,units") == (
        "units",
        "path",
    ) and not interpret.parse_parts("")
    with pytest.raises(ValueError, match="'x' is none of directions"):
        interpret.parse_parts("units,x")
    with pytest.raises(UserError, match="what=x"):
        interpret.Config(what="x")
