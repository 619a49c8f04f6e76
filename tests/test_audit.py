"""experiments/audit.py: what it attacks and what it refuses, and its page."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpgan import cli, data, files
from bpgan.algorithms import gan
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.privacy import audit as numbers
from bpgan.privacy import canaries
from bpgan.privacy.canaries import MEMORY, Canaries
from bpgan.report import audit as report
from bpgan.runtime import records
from bpgan.types import UserError
from experiments import audit, classifier, linear_regression, mnist_gan, private_gan, vae

pytestmark = pytest.mark.usefixtures("no_curves", "short_fusions")


def train(module, path, *flags):
    argv = ["--preset=smoke", "--notensorboard", f"--workdir={path}", *flags]
    assert cli.run(module.Config, module.build, module.PRESETS, argv) == 0
    return path


def run(*flags):
    return cli.run(audit.Config, audit.run, audit.PRESETS, ["--preset=smoke", *flags])


def some(n, of):
    """Rows at random: the digits are sorted by class."""
    return np.random.default_rng(0).permutation(of)[:n]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """300 digits to train on, 200 others."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    train, test = (data.load("mnist10k", split) for split in ("train", "test"))
    x, y = train.read(some(300, 9000))
    rest = test.read(some(200, 1000))
    np.savez(path, x_train=x, y_train=y, x_test=rest[0], y_test=rest[1])
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A short run of a GAN, with canaries."""
    flags = ["--net=mlp", f"--dataset=npz:{digits}", "--canaries=80:1"]
    return train(mnist_gan, tmp_path_factory.mktemp("gan") / "run", *flags)


def stub(**changes):
    """As much of an opened run as the choice of records needs."""
    images = Canaries(20, 1).plant(data.load("mnist10k"))
    config = {"dataset": "mnist10k", "eval_every": cli.Parsed("0", cli.Duration.parse)}
    config |= {"canaries": cli.Parsed("20:1", Canaries.parse)} | changes.pop("config", {})
    facts = files.convert(images.facts, records.DatasetRecord)
    record = {"dataset": facts, "data": images.sha256} | changes.pop("record", {})
    found = {"config": types.SimpleNamespace(**config), "record": types.SimpleNamespace(**record)}
    return types.SimpleNamespace(experiment="some_gan", path="r", **found, **changes)


# The choice of records ----------------------------------------------------------------------------------------------


def test_members_are_training_images_and_no_canaries():
    found = audit.choose_records(audit.Config(run="r", n=500), stub())
    own = {x.tobytes() for x in data.load("mnist10k").arrays()[0]}
    assert len(found.members[0]) == len(found.others[0]) == 500
    assert all(x.tobytes() in own for x in found.members[0])
    assert (
        found.held_out == "mnist10k test"
        and "9,011 images of mnist10k train with canaries" in found.trained_on
    )
    again = audit.choose_records(audit.Config(run="r", n=500, seed=1), stub())
    assert (again.members[0] != found.members[0]).any()


def test_the_part_that_eval_every_held_out_comes_first():
    trained, _ = data.load_for_training("mnist10k", True)
    evaluated = {"eval_every": cli.Parsed("1ep", cli.Duration.parse), "canaries": "0"}
    opened = stub(config=evaluated, record={"data": trained.sha256})
    assert audit.choose_records(audit.Config(run="r", n=900), opened).held_out.endswith(
        "validation"
    )
    assert audit.choose_records(audit.Config(run="r", n=901), opened).held_out.endswith("test")


@pytest.mark.parametrize(
    "flags, changes, message",
    [
        ({}, {"record": {"dataset": None}}, "a run of some_gan has no dataset of images"),
        ({"n": 1001}, {}, "there are 1,000 held-out images of mnist10k, too few"),
        ({"n": 9500}, {}, "there are 9,000 training images of mnist10k, too few"),
        ({}, {"record": {"data": "0"}}, "other data than those that r was trained on; if the data"),
        ({"dataset": "mnist10k"}, {"record": {"data": "0"}}, "holds other data than those"),
        ({}, {"config": {"dataset": "folder:/absent"}}, "`dataset` says where to"),
    ],
)
def test_records_that_cannot_be_had(flags, changes, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        audit.choose_records(audit.Config(run="r", **flags), stub(**changes))
    assert message in str(error.value)


def test_a_run_is_needed(tmp_path, capsys):
    assert run(f"--workdir={tmp_path}") == 2
    assert "--run: must name a run directory" in capsys.readouterr().err


def test_what_a_private_run_claims():
    privacy = {"epsilon": 1.5, "delta": 1e-5, "sampling": "poisson"}
    opened = types.SimpleNamespace(result=types.SimpleNamespace(privacy=privacy))
    assert audit.claim(opened) == {"epsilon": 1.5, "delta": 1e-5, "guarantee": True}
    privacy |= {"delta_total": 2e-5, "guarantee": False}
    assert audit.claim(opened) == {"epsilon": 1.5, "delta": 2e-5, "guarantee": False}
    for said in (None, {}, {"epsilon": None, "delta": 1e-5}):
        assert (
            audit.claim(types.SimpleNamespace(result=types.SimpleNamespace(privacy=said))) is None
        )
    assert audit.claim(types.SimpleNamespace(result=None)) is None


def test_gradient_canaries_are_read_from_the_state():
    inside = Canaries(200, 3).included
    scores = jnp.where(jnp.asarray(inside), 5.0, 0.0)
    opened = stub(
        config={"canaries": cli.Parsed("200:3", Canaries.parse)},
        networks={},
        state=types.SimpleNamespace(memory={MEMORY: scores}),
    )
    rows, left_out = audit.bound_epsilon(opened, 1e-5, 0.95)
    assert [row["canaries_are"] for row in rows] == ["gradient canaries"]
    assert rows[0]["correct"] >= rows[0]["guesses"] - 1 > 98 and rows[0]["epsilon"] > 2.5
    assert left_out == ["Image canaries: a run of some_gan has no discriminator"]


# Runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_a_run_is_audited(trained, tmp_path, capsys, digits):
    other = train(mnist_gan, tmp_path / "other", "--net=mlp")
    flags = [f"--run={trained}", f"--reference_run={other}", f"--workdir={tmp_path / 'audit'}"]
    assert run(*flags) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    names = [row["attack"] for row in found["attacks"]]
    assert names == ["LOGAN", "GAN-Leaks", "GAN-Leaks, calibrated"]
    assert all(row["members"] == row["others"] == 100 for row in found["attacks"])
    assert found["bounds"][0]["canaries"] == 80 and found["claimed"] is None
    assert found["left_out"] == ["Gradient canaries: only a private turn of D has them"]
    assert "LOGAN" in said and "epsilon >= " in said and "not computed: Gradient" in said
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page == report.page(found) and "<script" not in page and "://" not in page
    same = [f"--run={trained}", f"--reference_run={trained}", f"--workdir={tmp_path}"]
    assert run(*same) == 2 and "was trained on the same records" in capsys.readouterr().err
    # The data moved; then they changed.
    moved = digits.rename(digits.with_name("moved.npz"))
    assert run(f"--run={trained}", f"--workdir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert "--dataset says where to" in error and error.count("\n") == 1
    assert run(f"--run={trained}", f"--dataset=npz:{moved}", f"--workdir={tmp_path}") == 0
    x = np.load(moved)["x_train"]
    np.savez(digits, x_train=255 - x, y_train=np.arange(300) % 10, x_test=x, y_test=np.arange(300) % 10)  # fmt: skip
    capsys.readouterr()
    assert run(f"--run={trained}", f"--workdir={tmp_path}") == 2
    assert "holds other data than those that" in capsys.readouterr().err


@pytest.mark.medium
def test_a_private_run_is_audited(tmp_path, capsys, digits):
    """It claims an epsilon, and has canaries of both kinds."""
    pytest.importorskip("dp_accounting")
    flags = [
        f"--dataset=npz:{digits}",
        "--canaries=80:1",
        "--secret_seed=1",
        "--delta=1e-4",
        "--net=mlp",
    ]
    path = train(private_gan, tmp_path / "run", *flags)
    assert run(f"--run={path}", f"--workdir={tmp_path / 'audit'}") == 0
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    kinds = [row["canaries_are"] for row in found["bounds"]]
    assert kinds == ["image canaries", "gradient canaries"]
    assert found["claimed"]["epsilon"] <= 10 and found["bounds"][0]["delta"] == pytest.approx(
        1e-4, rel=1e-5
    )
    assert all(row["epsilon"] <= found["claimed"]["epsilon"] for row in found["bounds"])
    said = capsys.readouterr()
    assert "The run claims epsilon" in said.out and "its key is known" in said.out
    assert f"warning: {path}: is private; the numbers were computed on records" in said.err
    flags = [flag if "canaries" not in flag else "--canaries=999999" for flag in flags]
    argv = ["--preset=smoke", f"--workdir={tmp_path / 'other'}", *flags]
    assert cli.run(private_gan.Config, private_gan.build, private_gan.PRESETS, argv) == 2
    assert "--canaries=999999: must be at most 300 examples" in capsys.readouterr().err


@pytest.mark.slow
def test_a_vae_has_no_discriminator(tmp_path, capsys):
    path = train(vae, tmp_path / "run", "--bound=0")
    assert run(f"--run={path}", f"--workdir={tmp_path / 'audit'}") == 0
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [row["attack"] for row in found["attacks"]] == ["GAN-Leaks"]
    assert "LOGAN: a run of vae has no discriminator" in found["left_out"]
    assert any("without canaries" in text for text in found["left_out"])


@pytest.mark.medium
@pytest.mark.parametrize(
    "module, message",
    [
        (linear_regression, "has neither a generator nor a discriminator"),
        (classifier, "has neither a generator nor a discriminator"),
    ],
)
def test_runs_that_cannot_be_attacked(module, message, tmp_path, capsys):
    path = train(module, tmp_path / "run")
    assert run(f"--run={path}", f"--workdir={tmp_path / 'audit'}") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# The page -----------------------------------------------------------------------------------------------------------


def found(**changes):
    rng = np.random.default_rng(0)
    rows = []
    for name, shift in (("LOGAN", 2.0), ("GAN-Leaks", 0.0)):
        members, others = rng.normal(shift, 1, 400), rng.normal(0, 1, 300)
        fpr, tpr = numbers.roc(members, others, points=50)
        attack = numbers.attack(members, others, confidence=0.975)
        known = {**attack._asdict(), "leaks": attack.says_something}
        rows.append({"attack": name, **known, "roc": [fpr.tolist(), tpr.tolist()]})
    bound = numbers.lower_bound(np.arange(100.0), np.arange(100) > 50, 1e-5)
    return {
        "run": "runs/<b>", "experiment": "private_gan", "step": 1000, "dataset": "9,000 images of mnist10k train",
        "held_out": "mnist10k test", "samples": 10_000, "confidence": 0.95, "private": True,
        "claimed": {"epsilon": 5.0, "delta": 1e-5, "guarantee": True}, "attacks": rows,
        "bounds": [{"canaries_are": "gradient canaries", **bound._asdict()}],
        "left_out": ["something: for a reason"],
    } | changes  # fmt: skip


def test_the_page():
    page = report.page(found())
    assert "runs/&lt;b&gt;" in page and "members are told from others" in page
    assert page.count("<figure") == 2 and "false positive rate" in page and "epsilon" in page
    assert "The run claims epsilon 5.000 at delta 1e-05." in page and "for a reason" in page
    said = "were computed on records and are not accounted for"
    assert said in page and said not in report.page(found(private=False))


@pytest.mark.parametrize(
    "changes, verdict",
    [
        (
            {"claimed": {"epsilon": 0.5, "delta": 1e-5, "guarantee": False}},
            "the claimed epsilon is refuted",
        ),
        (
            {"claimed": {"epsilon": 0.5, "delta": 1e-4, "guarantee": True}},
            "members are told from others",
        ),
        ({"attacks": [], "claimed": None}, "canaries are found"),
        ({"attacks": []}, "these attacks find nothing"),
        ({"attacks": [], "bounds": [], "left_out": []}, "these attacks find nothing"),
    ],
)
def test_the_verdict(changes, verdict):
    page = report.page(found(**changes))
    assert verdict in page
    assert report.lines(found(**changes))


def test_a_thinned_curve_is_the_curve():
    rng = np.random.default_rng(8)
    members, others = rng.normal(1, 1, 5000), np.round(rng.normal(0, 1, 3000), 2)
    whole, thin = numbers.roc(members, others), numbers.roc(members, others, points=60)
    assert len(thin[0]) <= 60 and thin[0][0] == 0 and thin[0][-1] == thin[1][-1] == 1
    for fpr, tpr in zip(*thin, strict=True):
        assert tpr == whole[1][whole[0] <= fpr + 1e-12].max()


@pytest.mark.slow
def test_an_overfit_gan_is_caught(optimized):
    """200 digits and 100 canaries, no penalty, many epochs: LOGAN finds the members, and the canaries refute privacy.

    Two halves of what it has not seen are not told apart.
    """
    train, test = (data.load("mnist10k", split) for split in ("train", "test"))
    x, y = train.read(some(200, 9000))
    planted = Canaries(100, 2)
    whole = planted.plant(data.of_arrays("few", "train", x, y, 10))
    g = linen_net(mlp.Generator(x.shape[1:], (256,)))
    d = linen_net(mlp.Discriminator((512,)))
    networks = gan.Networks(g, d, gan.normal_latents(32), x.shape[1:])
    adam = optax.adam(1e-3, b1=0.5)
    system = gan.make(networks, LOSSES["hinge"], gan.Optimizers(adam, adam), d_steps=2)
    source = data.source(whole, seed=0, batch_size=100)

    def step(state, _):
        batch = source.batch_at(source.data, state.step)
        return system.step(state, batch, jax.random.key(0))[0], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, None, 5000))(system.init(jax.random.key(1)))
    net = system.networks["discriminator"]
    opened = types.SimpleNamespace(
        discriminator=lambda z: net.apply(net.variables(state), z),
        config=types.SimpleNamespace(precision="float32"),
        classes=0,
        settings=lambda: jax.enable_x64(False),
    )

    def scores(x, y):
        return audit.score_by_d(opened, x, y)

    members, others = scores(x, y), scores(*test.read(some(1000, 1000)))
    assert numbers.attack(members, others).auc > 0.95
    halves = numbers.attack(others[::2], others[1::2])
    assert abs(halves.auc - 0.5) < 0.03 and not halves.says_something
    boards = scores(*canaries.images(2, 100, x.shape[1:], 10))
    assert numbers.lower_bound(boards, planted.included, 1e-5).epsilon > 1
