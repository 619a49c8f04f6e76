"""The study's models on its architecture, its search spaces, and its protocol from end to end."""

import json
import math

import jax
import numpy as np
import pytest

from bpgan import cli
from bpgan.launcher import processes, search
from experiments import infogan, lucic

SPECS = cli.flags_of(infogan.Config)
SPACES = pytest.mark.parametrize("space", ["wide", "narrow"])
MODELS = pytest.mark.parametrize("model", infogan.MODELS)


def config(*argv):
    return cli.resolve(infogan.Config, infogan.PRESETS, argv)


@pytest.mark.medium
@MODELS
def test_every_model_takes_a_step(model):
    d_steps = 1 if model == "vae" else 2
    built = infogan.build(config(f"--model={model}", "--preset=smoke", f"--d_steps={d_steps}"))
    algorithm, source = built.algorithm, built.source
    root = jax.random.key(0)

    def two():
        state, metrics = algorithm.init(root), {}
        for step in range(2):
            batch = source.batch_at(source.data, jax.numpy.int32(step))
            state, metrics = algorithm.step(state, batch, root)
        return state, metrics, algorithm.sample(state, root, 3)

    state, metrics, drawn = jax.eval_shape(two)
    assert drawn.shape == (3, 28, 28, 1) and state.step.shape == ()
    assert ("d/penalty" in metrics) == (model in ("wgan_gp", "dragan"))


def test_the_architecture_has_the_size_of_the_study():
    """Chen et al. 2016, Table 1, as the study uses it: one logit, no InfoGAN head; kernels 4, as compare_gan has."""
    state = jax.eval_shape(infogan.build(config()).algorithm.init, jax.random.key(0))

    def count(params):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    g = (64 + 1) * 1024 + 2 * 1024 + (1024 + 1) * 6272 + 2 * 128
    g += 4 * 4 * 128 * 64 + 64 + 2 * 64 + 4 * 4 * 64 + 1
    d = 4 * 4 * 64 + 64 + 4 * 4 * 64 * 128 + 128 + (6272 + 1) * 1024 + 1024 + 1
    assert count(state.players["g"].params) == g and count(state.players["d"].params) == d


@pytest.mark.parametrize(
    "model, flag", [("ns", "weight"), ("wgan", "weight"), ("wgan_gp", "clip"), ("vae", "balance")]
)
def test_flags_of_other_models_are_named(model, flag):
    found = cli.without_effect(infogan.Config, {}, [f"--model={model}", f"--{flag}=0.1"])
    assert found == {flag: f"has no effect with --model={model}"}


@pytest.mark.slow
def test_clipping_and_the_step_of_k_have_the_papers_defaults():
    """Arjovsky et al. 2017, arXiv:1701.07875; Berthelot et al. 2017, arXiv:1703.10717. Both were a penalty's, 10."""
    root = jax.random.key(0)

    def stepped(model):
        built = infogan.build(config(f"--model={model}", "--preset=smoke"))
        batch = built.source.batch_at(built.source.data, jax.numpy.int32(0))
        return jax.jit(built.algorithm.step)(built.algorithm.init(root), batch, root)[0]

    params = jax.tree.leaves(stepped("wgan").players["d"].params)
    assert max(float(abs(leaf).max()) for leaf in params) == pytest.approx(0.01, rel=1e-6)
    (k,) = jax.tree.leaves(stepped("began").memory)
    assert 0 <= k < 1e-2


@MODELS
@SPACES
def test_search_spaces_are_flags_that_the_models_take(model, space):
    axes = [search.parse_axis(text, SPECS) for text in lucic.ranges(model, space)]
    for texts in search.combine(axes, 30, 0):
        cfg = config(f"--model={model}", *(f"--{k}={v}" for k, v in texts.items()))
        low, high = (1e-4, 1e-3) if space == "narrow" else (1e-5, 1e-2)
        assert low <= cfg.lr <= high
        assert cfg.d_steps == 1 or (space == "wide" and cfg.d_steps == 5)
        assert cfg.b1 == 0.5 or space == "wide"
        assert not (cfg.d_norm and (model in ("wgan_gp", "dragan", "began", "vae")))


def test_the_study_and_its_budgets():
    paper = lucic.BUDGETS["paper"]
    assert (paper.wide, paper.narrow, paper.repeats) == (100, 50, 50)
    assert paper.images == 20 * 50_000 and not paper.flags
    with pytest.raises(ValueError, match="'sngan' is none; must be all or some of mm, ns"):
        lucic._models("ns,sngan")


def test_the_table_tells_what_broke():
    row = {"model": "ns", "space": "narrow", "setting": {"lr": 1e-3, "d_norm": True},
           "searches (validation)": {"wide": [5.0, math.inf, 3.0], "narrow": [2.0, 4.0]},
           "repeats (test)": [4.0, math.inf, 6.0]}  # fmt: skip
    cfg = cli.resolve(lucic.Config, lucic.PRESETS, [])
    lines = lucic._table(cfg, lucic.BUDGETS["small"], [row]).splitlines()
    assert "32,000 images a run; --channels=32 --hidden=256" in lines[0]
    heads, cells = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (2, -1))
    mean = f"5 ± {np.std([4, 6], ddof=1):.3g} (n = 2)"
    setting = "narrow: lr=0.001 d_norm=true"
    assert cells == ["ns", "3, 5", "2, 3", mean, "4.5, 5, 5.5", "1 + 0 + 1", setting]
    assert len(heads) == len(cells)


@pytest.mark.parametrize("code, ends", [(75, 75), (2, 2), (1, 2), (-9, 75)])
def test_only_an_anomaly_is_a_models_failure(tmp_path, monkeypatch, capsys, code, ends):
    def execute(jobs, slots, affordable, attempt):
        return dict.fromkeys(range(len(jobs)), code), False

    monkeypatch.setattr(processes, "execute", execute)
    argv = ["--preset=smoke", f"--workdir={tmp_path}"]
    assert cli.run(lucic.Config, lucic.run, lucic.PRESETS, argv) == ends
    assert not (tmp_path / "lucic.json").exists()
    if ends == 2:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --workdir={tmp_path}: ") and "; see " in line


@pytest.mark.slow
def test_the_whole_protocol_and_again(tmp_path, monkeypatch, capfd):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    argv = ["--preset=smoke", f"--workdir={tmp_path}"]
    assert cli.run(lucic.Config, lucic.run, lucic.PRESETS, argv) == 0
    record = json.loads((tmp_path / "lucic.json").read_text())
    assert [row["model"] for row in record["rows"]] == ["ns", "wgan_gp"]
    for row in record["rows"]:
        assert len(row["repeats (test)"]) == 2 and np.isfinite(row["repeats (test)"]).all()
        searches = row["searches (validation)"]
        assert {space: len(found) for space, found in searches.items()} == {"wide": 2, "narrow": 1}
        assert min(searches[row["space"]]) == min(map(min, searches.values())) > 0
    for config in sorted(tmp_path.glob("infogan/*/config.json")):  # as many real images, to a batch
        cfg, done = (
            json.loads((config.parent / f"{n}.json").read_text()) for n in ("config", "result")
        )
        per_step = cfg["config"]["d_steps"] * cfg["config"]["batch_size"]
        assert abs(done["step"] * per_step - 64) < per_step
    assert (tmp_path / "distributions.svg").read_bytes()[:4] == b"<svg"
    table = (tmp_path / "table.md").read_text()
    capfd.readouterr()
    assert cli.run(lucic.Config, lucic.run, lucic.PRESETS, argv) == 0
    said = capfd.readouterr().out
    assert "started" not in said and (tmp_path / "table.md").read_text() == table
