"""Images from captions: D is told of mismatched captions, and what was drawn is judged by its captions."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import bpgan
from bpgan import cli, data
from bpgan.algorithms import gan, text
from bpgan.algorithms.turns import TOGETHER, Now
from bpgan.losses import LOSSES
from bpgan.metrics import retrieval
from bpgan.types import Net, UserError
from experiments import audit, evaluate_text, export, interpret, sample, text_gan

# Mismatched captions ------------------------------------------------------------------------------------------------


def test_a_mismatched_caption_has_another_meaning():
    """Each of the others with equal probability; none where there is none."""
    meaning = jnp.asarray([0, 1, 1, 2, 0, 1])
    captions = jnp.arange(6, dtype=jnp.int32)[:, None]
    counts = np.zeros((6, 6))
    numbers = jax.random.uniform(jax.random.key(0), (2000, 6, 6))
    chosen, differs = jax.vmap(lambda u: text.mismatched(u, meaning, meaning, captions))(numbers)
    assert np.asarray(differs).all()
    for i in range(6):
        counts[i] = np.bincount(np.asarray(chosen)[:, i, 0], minlength=6)
    allowed = np.asarray(meaning)[:, None] != np.asarray(meaning)[None]
    assert not counts[~allowed].any()
    expected = 2000 / allowed.sum(1, keepdims=True) * allowed
    assert np.abs(counts - expected).max() < 5 * np.sqrt(2000 / 3)
    _, differs = text.mismatched(numbers[0], jnp.zeros(6), jnp.zeros(6), captions)
    assert not np.asarray(differs).any()


def setting(loss="nonsaturating"):
    """``D(x, t) = psi x t``, so that every logit is known by hand."""
    d = Net(
        lambda key, x, t: {"params": jnp.ones(())},
        lambda v, x, t, train: (v["params"] * (x if t.ndim == 2 else x[:, None]) * t[..., 0], {}),
    )
    g = Net(
        lambda key, z, t: {"params": jnp.ones(())},
        lambda v, z, t, train: (v["params"] * z[:, 0], {}),
    )
    networks = gan.Networks(g, d, gan.normal_latents(1), ())
    return gan.Setting(networks, LOSSES[loss], gan.Condition(1))


def now(players, differs, psi=0.7):
    batch = {
        "x": jnp.asarray([1.0, -2.0, 0.5]),
        "z": jnp.asarray([[0.3], [1.5], [-1.0]]),
        "fake": jnp.asarray([0.3, 1.5, -1.0]),
        "y": jnp.asarray([[2], [1], [3]]),
        "wrong": jnp.asarray([[1], [3], [2]]),
        "differs": jnp.asarray(differs),
    }
    player = gan.turns.Player(jnp.asarray(psi), {}, ())
    return Now({"d": player, "g": player}, batch, jax.random.key(0), 0, 0, {}, TOGETHER)


@pytest.mark.parametrize("differs", [[True, True, True], [True, False, True]])
def test_d_minimizes_the_loss_of_three_kinds_of_pairs(differs):
    """Reed et al.'s ``log D(x, t) + (log(1 - D(x, t')) + log(1 - D(G(z), t))) / 2``, by hand."""
    here = now(None, differs)
    x, fake, y, wrong = (np.asarray(here.batch[k]).reshape(-1) for k in ("x", "fake", "y", "wrong"))
    matching, made, mismatched = 0.7 * x * y, 0.7 * fake * y, 0.7 * x * wrong
    third = np.where(differs, mismatched, made)

    def s(logit):
        return 1 / (1 + np.exp(-logit))

    expected = -np.log(s(matching)) - (np.log(1 - s(made)) + np.log(1 - s(third))) / 2
    value, aux = text.d_objective(setting(), here)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["wrong"], mismatched.mean(), rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["fake"], made.mean(), rtol=1e-6)
    # A D that forgets the mismatched captions would minimize something else.
    forgotten, _ = gan.d_objective(setting(), here)
    assert abs(float(forgotten) - float(value)) > 0.01


def test_relativistic_losses_compare_both_with_the_matching_pair():
    here = now(None, [True] * 3)
    x, fake, y, wrong = (np.asarray(here.batch[k]).reshape(-1) for k in ("x", "fake", "y", "wrong"))
    matching, made, mismatched = 0.7 * x * y, 0.7 * fake * y, 0.7 * x * wrong
    expected = (np.log1p(np.exp(made - matching)) + np.log1p(np.exp(mismatched - matching))) / 2
    np.testing.assert_allclose(
        text.d_objective(setting("relativistic"), here)[0], expected.mean(), rtol=1e-6
    )


@pytest.mark.medium
def test_half_of_the_mismatched_captions_are_foils():
    """The others are those of rows of another meaning; a foil is there also where no row differs."""
    n = 400
    batch = {
        "x": jnp.zeros((n, 2, 2, 1)),
        "meaning": jnp.arange(n) // (n - 1),  # all rows but the last mean the same
        "text": jnp.arange(n)[:, None],
        "foil": -1 - jnp.arange(n)[:, None],
    }
    here = Now({}, batch, jax.random.key(0), jnp.zeros(()), jnp.zeros(()), {}, TOGETHER)
    found = text.drawn(setting(), here)
    wrong, foil = np.asarray(found["wrong"])[:, 0], np.asarray(batch["foil"])[:, 0]
    is_foil = wrong == foil
    assert 150 < is_foil.sum() < 250
    np.testing.assert_array_equal(wrong[~is_foil][:-1], n - 1)
    assert np.all(found["differs"])
    same = here._replace(batch=batch | {"meaning": jnp.zeros(n, int)})
    np.testing.assert_array_equal(text.drawn(setting(), same)["differs"], is_foil)


def test_g_is_told_the_caption_that_d_compares_with():
    """``mean_b softplus(-D(G(z), t))`` with each fake's own caption."""
    here = now(None, [True] * 3)
    z = here.batch["z"]
    value, _ = gan.g_objective(setting(), here)
    logits = 0.7 * 0.7 * np.asarray(z)[:, 0] * np.array([2, 1, 3])
    np.testing.assert_allclose(value, np.log1p(np.exp(-logits)).mean(), rtol=1e-6)


# Training -----------------------------------------------------------------------------------------------------------

TINY = ["--preset=smoke", "--net=mlp", "--canvas=8", "--batch_size=16", "--notensorboard"]


def config(*flags):
    return cli.resolve(text_gan.Config, text_gan.PRESETS, [*TINY, *flags])


@pytest.mark.slow
def test_eight_devices_train_as_one(one_device_is_eight):
    """In one program and in one for each: latents and mismatched captions are those of the global batch."""
    flags = ["--precision=float64", "--augment=none", "--penalty=r1=0.3+r2=0.1/2", "--ema=100"]
    one_device_is_eight(functools.partial(text_gan.build, config(*flags)), 3)


def run(*flags):
    return cli.run(text_gan.Config, text_gan.build, text_gan.PRESETS, [*TINY, *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of eight steps, with everything that remembers."""
    path = tmp_path_factory.mktemp("text") / "run"
    assert run(*REMEMBERING, f"--workdir={path}") == 0
    return path


REMEMBERING = ["--augment=blit@ada", "--penalty=r1=0.3/2+lecam=0.3", "--ema=100", "--d_steps=2"]


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_bit(trained, tmp_path, trees_equal):
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut)
    shutil.rmtree(cut / "checkpoints" / "8")
    (cut / "result.json").unlink()
    assert run(*REMEMBERING, f"--workdir={cut}") == 0
    a, b = (cli.restore(str(path)) for path in (trained, cut))
    assert a.step == b.step == 8
    trees_equal(a.state, b.state)


@pytest.mark.slow
def test_a_run_is_prompted_without_its_data(trained, tmp_path, capsys):
    """By the words that it remembers; a word that it does not know is named."""
    opened = bpgan.load(str(trained))
    row, unknown = sample.read_prompt(opened, "a small pink seven, top left")
    words = opened.words
    assert [words[i] for i in row[0, :6]] == ["a", "small", "<unk>", "seven", "top", "left"]
    assert unknown == ["pink"] and row.shape == (1, 16) and not row[0, 6:].any()
    for prompt, reason in (
        ("hello world", "knows none of these words"),
        ("a " * 17, "has 17 words, must have at most 16"),
        ("", "draws what a caption says"),
    ):
        with pytest.raises(UserError, match=reason):
            sample.run(sample.Config(run=str(trained), prompt=prompt, workdir=str(tmp_path)))
    sample.run(
        sample.Config(
            run=str(trained), prompt="a red 7!", seeds="0:3", workdir=str(tmp_path / "drawn")
        )
    )
    record = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert record["prompt"] == "a red 7!" and len(record["files"]) == 4
    # The same images as by the network, and other ones for another caption.
    z = np.concatenate([opened.latents(1, seed=s) for s in range(3)])
    one, other = (sample.read_prompt(opened, text)[0] for text in ("a red 7!", "large zero"))
    drawn = [opened.generator(z, np.repeat(row, 3, axis=0)) for row in (one, other)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-4


@pytest.mark.slow
def test_what_asks_for_latents_alone_refuses_a_run_of_captions(trained, tmp_path):
    places = {"run": str(trained), "workdir": str(tmp_path)}
    compiled = cli.resolve(export.Config, export.PRESETS, ["--to=stablehlo"])
    for module, cfg, reason in (
        (interpret, interpret.Config(**places), "draws what captions say, which is not explained"),
        (export, dataclasses.replace(compiled, **places), "which only safetensors keeps"),
        (audit, audit.Config(**places), "captions say, which is not attacked"),
    ):
        with pytest.raises(UserError, match=reason):
            module.run(cfg)


@pytest.mark.slow
def test_a_run_without_captions_takes_no_prompt(tmp_path):
    from experiments import mnist_gan

    flags = ["--preset=smoke", f"--workdir={tmp_path / 'run'}", "--notensorboard"]
    assert cli.run(mnist_gan.Config, mnist_gan.build, mnist_gan.PRESETS, flags) == 0
    with pytest.raises(UserError, match="was trained without captions; must be empty"):
        sample.run(
            sample.Config(run=str(tmp_path / "run"), prompt="seven", workdir=str(tmp_path / "out"))
        )


@pytest.mark.slow
def test_a_run_is_evaluated(trained, tmp_path):
    cfg = evaluate_text.Config(
        run=str(trained), samples=200, judge_steps=30, workdir=str(tmp_path), seed=1
    )
    evaluate_text.run(cfg)
    found = json.loads((tmp_path / "text_metrics.json").read_text())
    assert (tmp_path / "text.png").exists()
    for split in ("test", "held_out"):
        assert set(found[split]["generated"]) == {
            "r_precision",
            "class",
            "color",
            "position",
            "size",
            "all",
        }
        assert found[split]["real"]["position"] > 0.5 > found[split]["shuffled"]["position"]
        assert len(found[split]["captions"]) == 10


@pytest.mark.medium
def test_own_captions_are_trained_on_and_not_needed_afterwards(tmp_path):
    """The step of a run on them; and the same networks where the files are gone."""
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{i}.png")
        rows.append([f"{i}.png", f"number {i % 5} of a few"])
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"captions": rows}))
    cfg = config(f"--captions={file}")
    built = text_gan.build(cfg)
    facts = json.loads(json.dumps(dict(built.source.facts)))
    file.unlink()
    with data.without_images(facts):
        again = text_gan.build(cfg)
    shapes = [jax.eval_shape(each.algorithm.init, jax.random.key(0)) for each in (built, again)]
    assert shapes[0] == shapes[1] and again.frame.columns == [text for _, text in rows[:5]]
    batch = jax.eval_shape(built.source.batch_at, built.source.data, np.int32(0))
    state, metrics = jax.eval_shape(built.algorithm.step, shapes[0], batch, jax.random.key(0))
    assert state == shapes[0] and "d/wrong" in metrics
    with pytest.raises(UserError, match="No such file"):
        text_gan.build(cfg)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--loss=began"], "--loss=began: must be one of"),
        (["--net=dcgan:4/autoencoder:8"], "autoencoder as D has no head"),
        (["--feed=stream"], "kept in memory"),
        (["--accumulate=3"], "--accumulate=3: must divide"),
        (["--embedding=6"], "--embedding=6: must be a multiple of 4"),
        (["--caption_length=5"], "--caption_length=5: the caption"),
        (["--captions=/nowhere/dataset.json"], "--captions=/nowhere/dataset.json: cannot be read"),
        (["--penalty=r1", "--net=cnn"], "--penalty=r1: does not go with"),
        (["--canvas=9", "--net=lite:4"], "images are 9x9"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, reason):
    with pytest.raises(UserError) as error:
        text_gan.build(config(*flags))
    assert reason in cli.message_of(error.value)


@pytest.mark.medium
@pytest.mark.parametrize("preset", text_gan.PRESETS)
def test_presets_are_sound(preset):
    built = text_gan.build(
        cli.resolve(text_gan.Config, text_gan.PRESETS, [f"--preset={preset}", "--copies=1"])
    )
    state = jax.eval_shape(built.algorithm.init, jax.random.key(0))
    batch = jax.eval_shape(built.source.batch_at, built.source.data, np.int32(0))
    jax.eval_shape(built.algorithm.step, state, batch, jax.random.key(0))
    drawn = jax.eval_shape(lambda s: built.algorithm.sample(s, jax.random.key(0), 12), state)
    assert drawn.shape == (12, 32, 32, 3)


# Retrieval ----------------------------------------------------------------------------------------------------------


def test_r_precision_by_hand():
    """Of two images and three captions: the first image is nearest to its own, the second is not."""
    texts = np.array([[2.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    images = np.array([[3.0, 1.0], [1.0, 1.0]])
    choices = np.array([[0, 1, 2], [1, 0, 2]])
    cosines = images @ texts.T / np.outer(np.sqrt([10, 2]), [2, 1, np.sqrt(41)])
    assert cosines[0].argmax() == 0 and cosines[1].argmax() == 2
    np.testing.assert_array_equal(retrieval.hits(images, texts, choices), [1, 0])
    assert retrieval.r_precision(images, texts, choices) == 0.5
    assert retrieval.r_precision(7 * images, texts / 3, choices) == 0.5  # norms do not count


def test_r_precision_of_what_knows_nothing_is_chance():
    meaning = np.arange(1000) % 500
    choices = retrieval.candidates(meaning, seed=1)
    assert retrieval.r_precision(np.ones((1000, 4)), np.ones((1000, 4)), choices) == pytest.approx(
        0.01
    )
    rng = np.random.default_rng(0)
    random = retrieval.r_precision(*rng.normal(size=(2, 1000, 8)), choices)
    assert abs(random - 0.01) < 4 * np.sqrt(0.01 * 0.99 / 1000)
    known = rng.normal(size=(500, 8))[meaning]
    assert retrieval.r_precision(known, known, choices) == 1


def test_candidates_mean_something_else():
    meaning = np.random.default_rng(0).integers(0, 5, 300)
    choices = retrieval.candidates(meaning, others=20)
    np.testing.assert_array_equal(choices[:, 0], np.arange(300))
    assert (meaning[choices[:, 1:]] != meaning[:, None]).all()
    assert all(len(set(row)) == 21 for row in choices)
    with pytest.raises(ValueError, match="differ from caption 0, need 99"):
        retrieval.candidates(np.zeros(200))


@pytest.mark.medium
def test_the_contrastive_loss_is_that_of_numpy():
    """Both directions; captions that mean the same are not among the others."""
    rng = np.random.default_rng(0)
    images, texts, meaning = (
        rng.normal(size=(5, 3)),
        rng.normal(size=(5, 3)),
        np.array([0, 1, 0, 2, 3]),
    )
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    scores, expected = a @ b.T / 0.1, []
    for i in range(5):
        others = [j for j in range(5) if j == i or meaning[j] != meaning[i]]
        rows, columns = (np.log(np.exp(s[others]).sum()) for s in (scores[i], scores[:, i]))
        expected.append((rows + columns) / 2 - scores[i, i])
    found = text.contrastive(jnp.asarray(images), jnp.asarray(texts), jnp.asarray(meaning))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_heads_are_parted_by_their_counts():
    parts = text.split_heads(jnp.arange(10.0).reshape(1, 10), (5, 3, 2))
    assert [part.tolist() for part in parts] == [[[0, 1, 2, 3, 4]], [[5, 6, 7]], [[8, 9]]]


@pytest.mark.medium
def test_judges_learn_from_pairs():
    """Two embeddings of numbers find each other; neither shares a parameter with the classifier."""
    table = Net(
        lambda key, t: {"params": jax.random.normal(key, (8, 4))},
        lambda v, t, train: (v["params"][t[:, 0]], {}),
    )
    image = Net(
        lambda key, x: {"params": jax.random.normal(key, (8, 4))},
        lambda v, x, train: (x @ v["params"], {}),
    )
    batch = {
        "x": jnp.eye(8),
        "text": jnp.arange(8)[:, None],
        "meaning": jnp.arange(8),
        "attributes": jnp.stack([jnp.arange(8) % 2, jnp.arange(8) // 4], 1),
    }
    judges = text.Judges(image, table, image, (2, 2))
    algorithm = text.judge(judges, optax.adam(0.1), batch)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    for _ in range(60):
        state, metrics = step(state, batch, jax.random.key(1))
    assert metrics["contrastive"] < 0.2 and metrics["attributes"] < 0.2
    said = algorithm.networks["text"].apply(
        algorithm.networks["text"].variables(state), batch["text"]
    )
    seen = algorithm.networks["image"].apply(
        algorithm.networks["image"].variables(state), batch["x"]
    )
    choices = retrieval.candidates(np.arange(8), others=7)
    assert retrieval.r_precision(np.asarray(seen), np.asarray(said), choices) == 1
