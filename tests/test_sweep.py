"""Groups of runs in one program: equal to runs alone, resumed bit for bit, and no member hurts another."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest

from bpgan import cli, data
from bpgan.algorithms import gan
from bpgan.cli import ended
from bpgan.launcher import group as _group
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp
from bpgan.penalties import PENALTIES, weighted
from bpgan.report.page import update_report
from bpgan.runtime import directory, train
from bpgan.runtime import group as groups
from bpgan.runtime.group import compile_group
from bpgan.runtime.program import compile_program
from bpgan.types import UserError
from experiments import classifier, mnist_gan

pytestmark = pytest.mark.usefixtures("no_curves", "short_fusions")

X = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
MEMBERS = [dict(seed=0, lr=1e-3, gamma=0.1), dict(seed=7, lr=3e-4, gamma=1.0),
           dict(seed=2**32 - 1, lr=2e-3, gamma=0.0)]  # fmt: skip
LOWERINGS = pytest.mark.parametrize("lowering", groups.LOWERINGS)


def make(seed, lr=1e-3, gamma=0.1, dtype="float32"):
    """A GAN with everything a member may vary, a penalty that branches on the step, and latents and data by seed."""
    g, d = (
        mlp.Generator((4, 4, 1), widths=(16,), dtype=dtype),
        mlp.Discriminator((16,), dtype=dtype),
    )
    algorithm = gan.make(
        gan.Networks(linen_net(g), linen_net(d), gan.normal_latents(4, dtype), (4, 4, 1), dtype),
        LOSSES["nonsaturating"],
        gan.Optimizers(optax.adam(lr, b1=0.5), optax.adam(lr, b1=0.5)),
        penalties=[weighted(gamma, PENALTIES["r1"], 4)],
        ema_decay=0.99,
    )
    source = data.in_memory(X, np.zeros(50, np.int32), seed=seed, batch_size=8, dtype=dtype)
    return algorithm, data.mirrored(source, seed=seed)


def ran(group, *ks, alive=None):
    size = len(group.windows(carry := group.init()))
    for k in ks:
        carry, finite = group.run(carry, k, np.ones(size, bool) if alive is None else alive)
    return carry, finite


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def alone():
    """Of each member by itself, in float64: its carry after 200 steps, five samples, and the means of its metrics."""
    found = []
    with jax.enable_x64(True):
        for values in MEMBERS:
            algorithm, source = make(**values, dtype="float64")
            program = compile_program(algorithm, source, seed=values["seed"], devices=1)
            carry, _ = program.run(program.init(), 200)
            found.append((carry, program.sample(carry, 5), carry.window.means()))
    return found


@pytest.mark.medium
@LOWERINGS
@pytest.mark.parametrize("devices,copies", [(1, 1), (None, 3)])
def test_members_are_what_they_would_be_alone(alone, x64, lowering, devices, copies):
    """After 200 steps, in float64, to 1e-9 of the norm; nine members on eight devices fill up to sixteen."""
    members = MEMBERS * copies

    def of(**values):
        return make(**values, dtype="float64")

    group = compile_group(of, members, lowering, devices=devices)
    assert group.devices == (1 if devices else min(len(members), jax.local_device_count()))
    carry, finite = ran(group, 150, 50)
    assert finite.shape == (len(members),) and finite.all()
    drawn = group.sample(carry, 5)
    for i, (wanted, samples, expected) in enumerate(alone):
        member = group.member(carry, len(members) - len(MEMBERS) + i)
        assert jax.tree.structure(member) == jax.tree.structure(wanted)
        assert int(member.state.step) == 200
        for mine, its in zip(jax.tree.leaves(member), jax.tree.leaves(wanted), strict=True):
            assert mine.dtype == its.dtype
            np.testing.assert_allclose(mine, its, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(drawn[i], samples, rtol=0, atol=1e-9)
        means = group.windows(carry)[i].means()
        assert means == pytest.approx(expected, rel=1e-9)


@pytest.mark.medium
@LOWERINGS
def test_members_come_apart_and_together(lowering):
    group = compile_group(make, MEMBERS, lowering)
    carry, _ = ran(group, 5)
    again = group.join([group.member(carry, i) for i in range(3)])
    assert bits(again) == bits(carry)
    for leaf, expected in zip(jax.tree.leaves(again), jax.tree.leaves(carry), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    window = group.windows(group.clear(carry))[1]
    assert int(window.count) == 0 and not any(np.any(v) for v in window.sums.values())


@pytest.mark.medium
@LOWERINGS
def test_who_is_not_alive_stays_and_a_broken_member_hurts_none(lowering):
    group = compile_group(make, MEMBERS, lowering)
    broken = [*MEMBERS[:1], MEMBERS[1] | dict(lr=math.inf), *MEMBERS[2:]]
    other = compile_group(make, broken, lowering)
    well, finite = ran(group, 8)
    assert finite.all()
    ill, finite = ran(other, 8)
    assert list(finite) == [True, False, True]
    for i in (0, 2):
        assert bits(group.member(well, i)) == bits(other.member(ill, i))
    before = (
        bits(group.member(well, 1).state.players["g"]),
        bits(group.member(well, 0).state.players["g"]),
    )
    after, _ = group.run(well, 3, np.array([True, False, True]))
    assert bits(group.member(after, 1).state.players["g"]) == before[0]
    assert bits(group.member(after, 0).state.players["g"]) != before[1]


@pytest.mark.medium
@pytest.mark.parametrize("platform,lowering", [("cpu", "map"), ("gpu", "vmap"), ("tpu", "vmap")])
def test_the_lowering_is_chosen_by_a_rule(monkeypatch, platform, lowering):
    """Nothing is run for it, whatever memory is free: two fresh sweeps are the same program."""
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(groups, "free_memory", lambda: 1)
    group = compile_group(make, MEMBERS)
    assert group.lowering == lowering and group.how == f"3 runs in one program ({lowering})"


# Runs on disk.


PLAN = dict(name="test", restart_safe=frozenset({"steps"}), log_every=2, sample_every=4,
            checkpoint_every=4, tensorboard=False)  # fmt: skip


def members_at(folder, members):
    return [
        train.RunSpec(
            dict(values),
            folder / str(i),
            values["seed"],
            {k: values[k] for k in ("lr", "gamma")},
            report=update_report,
        )
        for i, values in enumerate(members)
    ]


def fit(folder, steps, members=MEMBERS, lowering="", **plan):
    whole = train.Plan(steps=steps, **{**PLAN, **plan})
    of = members_at(folder, members)
    return train.fit_group(make, make(0)[1], of, whole, lowering=lowering)


def saved(folder, step):
    """Checksums of everything in a checkpoint."""
    file = folder / "checkpoints" / str(step) / "manifest" / "metadata"
    return json.loads(file.read_text())["leaves"]


@pytest.mark.slow
def test_each_run_has_a_directory_as_if_it_had_been_alone(tmp_path):
    results = fit(tmp_path / "group", 12)
    assert [r.status for r in results] == ["done"] * 3
    for i, values in enumerate(MEMBERS):
        algorithm, source = make(**values)
        train.fit(
            algorithm,
            source,
            train.RunSpec(
                values, tmp_path / "alone" / str(i), values["seed"], report=update_report
            ),
            train.Plan(steps=12, **PLAN),
        )
        mine, alone = (tmp_path / f / str(i) for f in ("group", "alone"))
        names = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (mine, alone)]
        mine_has, alone_has = ({n for n in each if "/carry/" not in n} for each in names)
        assert mine_has == alone_has
        lines = [(f / "metrics.jsonl").read_text().splitlines() for f in (mine, alone)]
        for a, b in zip(*(map(json.loads, each) for each in lines), strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {"time/elapsed", "time/steps_per_s", "time/images_per_s"}:
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name
        assert json.loads((mine / "config.json").read_text())["config"] == values
        assert (mine / "report.html").exists()


@pytest.mark.medium
def test_a_report_that_cannot_be_made_costs_no_member_its_result(tmp_path, capsys):
    fit(tmp_path, 8)
    grids = [sorted((tmp_path / str(i)).glob("samples/*.png"))[0] for i in range(2)]
    grids[0].write_bytes(grids[0].read_bytes()[:-40])
    grids[1].unlink()
    grids[1].mkdir()
    (tmp_path / "1/report.html").unlink()
    (tmp_path / "1/report.html").mkdir()
    results = fit(tmp_path, 12)
    assert [r.status for r in results] == ["done"] * 3
    for i in range(3):
        assert json.loads((tmp_path / str(i) / "result.json").read_text())["step"] == 12
    said = capsys.readouterr().err
    assert f"{grids[0]}: is damaged" in said and f"{grids[1]}: is a directory" in said
    assert f"{tmp_path / '1/report.html'}: cannot be written" in said


@pytest.mark.medium
@pytest.mark.parametrize("lowering", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("lost", [(1,), pytest.param((0, 1, 2), marks=pytest.mark.slow)])
def test_a_group_killed_between_two_saves_goes_on_bit_for_bit(tmp_path, lowering, lost):
    fit(tmp_path / "whole", 16, lowering=lowering)
    fit(tmp_path / "cut", 12, lowering=lowering)
    for i in lost:  # as if killed before this one's last checkpoint was complete
        shutil.rmtree(tmp_path / "cut" / str(i) / "checkpoints" / "12")
    results = fit(tmp_path / "cut", 16)  # the lowering is remembered
    assert [r.status for r in results] == ["done"] * 3
    for i in range(3):
        assert saved(tmp_path / "cut" / str(i), 16) == saved(tmp_path / "whole" / str(i), 16)
        logs = [(tmp_path / f / str(i) / "metrics.jsonl").read_text() for f in ("cut", "whole")]
        steps = [[json.loads(line)["step"] for line in log.splitlines()] for log in logs]
        assert steps[0] == steps[1]


def killed_while_it_records(monkeypatch, *args, **plan):
    """The group ends after the record of its first member."""
    write, written = directory.write_record, []

    def killed(*args, **kwargs):
        if written:
            raise KeyboardInterrupt
        written.append(write(*args, **kwargs))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(directory, "write_record", killed)
        fit(*args, **plan)


@pytest.mark.medium
def test_a_group_killed_while_its_records_are_written_stays_one(tmp_path, monkeypatch):
    """At its start, and when it goes on after all of it was moved; vmap gives other bits to a part of it."""
    fit(tmp_path / "whole", 8, lowering="vmap")
    killed_while_it_records(monkeypatch, tmp_path / "cut", 4, lowering="vmap")
    fit(tmp_path / "cut", 4, lowering="vmap")
    shutil.move(tmp_path / "cut", tmp_path / "moved")
    killed_while_it_records(monkeypatch, tmp_path / "moved", 8)
    fit(tmp_path / "moved", 8)
    recorded = [directory.group_of(tmp_path / "moved" / str(i)) for i in range(3)]
    assert recorded[0] == recorded[1] == recorded[2] and len(recorded[0]["members"]) == 3
    for i in range(3):
        assert saved(tmp_path / "moved" / str(i), 8) == saved(tmp_path / "whole" / str(i), 8)


@pytest.mark.slow
def test_a_group_killed_in_its_first_save_starts_over(tmp_path):
    fit(tmp_path / "whole", 8, MEMBERS[:2])
    fit(tmp_path / "cut", 4, MEMBERS[:2])
    shutil.rmtree(tmp_path / "cut" / "1" / "checkpoints" / "4")
    for result in tmp_path.glob("cut/*/result.json"):
        result.unlink()  # a run that was killed has none
    fit(tmp_path / "cut", 8, MEMBERS[:2])
    for i in range(2):
        assert saved(tmp_path / "cut" / str(i), 8) == saved(tmp_path / "whole" / str(i), 8)


@pytest.mark.medium
def test_a_member_whose_checkpoints_are_gone_costs_the_others_nothing(tmp_path, capsys):
    fit(tmp_path, 8, MEMBERS[:2])
    shutil.rmtree(tmp_path / "1" / "checkpoints")
    for name in ("result.json", ".saved"):  # else it would be refused by itself
        (tmp_path / "1" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="1: has no checkpoint, and the runs it trains with have"):
        fit(tmp_path, 12, MEMBERS[:2])
    before = saved(tmp_path / "0", 8)
    shutil.rmtree(tmp_path / "1")
    assert [r.step for r in fit(tmp_path, 12, MEMBERS[:2])] == [12, 12]
    assert saved(tmp_path / "0", 8) == before
    assert "resuming at step 8" in capsys.readouterr().out


@pytest.mark.medium
def test_nor_where_the_others_have_one_checkpoint_only(tmp_path):
    fit(tmp_path, 8, MEMBERS[:2], checkpoint_every=0)
    assert [p.name for p in (tmp_path / "0" / "checkpoints").iterdir() if p.name.isdigit()] == ["8"]
    before = saved(tmp_path / "0", 8)
    shutil.rmtree(tmp_path / "1" / "checkpoints")
    with pytest.raises(UserError, match="1: the run came to step 8, and its checkpoints are gone"):
        fit(tmp_path, 12, MEMBERS[:2], checkpoint_every=0)
    assert saved(tmp_path / "0", 8) == before


@pytest.mark.slow
def test_more_members_join_without_moving_the_old_ones(tmp_path, capsys):
    fit(tmp_path / "a", 8, MEMBERS[:2])
    fit(tmp_path / "a", 12, MEMBERS)
    said = capsys.readouterr().out
    assert "resuming at step 8" in said and "test: starting, 12 steps" in said
    fit(tmp_path / "b", 12, MEMBERS[:2])
    for i in range(2):
        assert saved(tmp_path / "a" / str(i), 12) == saved(tmp_path / "b" / str(i), 12)


@pytest.mark.medium
def test_a_member_goes_on_alone(tmp_path, capsys):
    fit(tmp_path, 8)
    algorithm, source = make(**MEMBERS[1])
    spec = train.RunSpec(MEMBERS[1], tmp_path / "1", MEMBERS[1]["seed"])
    result = train.fit(algorithm, source, spec, train.Plan(steps=12, **PLAN))
    assert result.step == 12 and "resuming at step 8" in capsys.readouterr().out
    # The others go on, too, and leave it alone.
    assert [r.step for r in fit(tmp_path, 12)] == [12, 12, 12]


@pytest.mark.medium
def test_a_run_that_breaks_is_frozen_and_reported_once_and_again(tmp_path, capsys):
    members = [MEMBERS[0], MEMBERS[1] | dict(lr=1e30), MEMBERS[2]]
    results = fit(tmp_path / "a", 8, members)
    assert isinstance(results[1], train.Anomaly) and "not finite by step" in str(results[1])
    assert [results[i].status for i in (0, 2)] == ["done"] * 2
    assert json.loads((tmp_path / "a/1/result.json").read_text())["status"] == "non-finite"
    results = fit(tmp_path / "a", 12, members)
    assert isinstance(results[1], train.Anomaly) and "not finite by step" in str(results[1])
    fit(tmp_path / "b", 12, members)
    for i in (0, 2):
        assert saved(tmp_path / "a" / str(i), 12) == saved(tmp_path / "b" / str(i), 12)


@pytest.mark.medium
def test_a_group_is_cut_to_fit_the_memory(tmp_path, monkeypatch, capsys):
    """Nine on eight devices are two on one of them."""
    members = [MEMBERS[0] | dict(seed=i) for i in range(9)]
    needed = compile_group(make, members).needed
    assert needed > 2 * X.nbytes
    monkeypatch.setattr(groups, "free_memory", lambda: needed - 1)
    results = fit(tmp_path, 2, members)
    assert [r.status for r in results] == ["done"] * 9
    said = capsys.readouterr().out
    assert "9 runs need" in said and "5 at a time" in said
    records = [json.loads((tmp_path / str(i) / "config.json").read_text()) for i in range(9)]
    assert [len(r["group"]["members"]) for r in records] == [5] * 5 + [4] * 4


@pytest.mark.slow
def test_a_group_that_has_trained_is_not_cut_when_memory_is_short(tmp_path, monkeypatch):
    """It would not be bitwise what it was."""
    members = [MEMBERS[0] | dict(seed=i) for i in range(9)]
    fit(tmp_path, 2, members, checkpoint_every=0)
    monkeypatch.setattr(groups, "free_memory", lambda: 0)
    assert [r.step for r in fit(tmp_path, 4, members, checkpoint_every=0)] == [4] * 9
    record = json.loads((tmp_path / "0" / "config.json").read_text())
    assert len(record["group"]["members"]) == 9


@pytest.mark.medium
def test_a_pause_changes_no_number(tmp_path):
    fit(tmp_path / "whole", 16)
    results = fit(tmp_path / "cut", 16, pause=5)
    assert [(r.status, r.step) for r in results] == [("paused", 5)] * 3
    assert "d/loss" in results[0].metrics
    fit(tmp_path / "cut", 16)
    for i in range(3):
        assert saved(tmp_path / "cut" / str(i), 16) == saved(tmp_path / "whole" / str(i), 16)


@pytest.mark.slow
def test_a_run_past_a_pause_counts_as_it_was_there(tmp_path):
    """Also if it is done, and if nothing was logged at the pause; its own result stays."""
    paused = fit(tmp_path, 16, pause=5)
    for steps in (12, 16):
        fit(tmp_path, 16, pause=steps % 16)
        own = (tmp_path / "0" / "result.json").read_bytes()
        again = fit(tmp_path, 16, pause=5)
        for before, now in zip(paused, again, strict=True):
            assert (now.status, now.step) == ("paused", 5)
            assert now.metrics["d/loss"] == before.metrics["d/loss"]
        assert (tmp_path / "0" / "result.json").read_bytes() == own
    last = [json.loads(x) for x in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    assert fit(tmp_path, 16, pause=7)[0].metrics["d/loss"] == next(
        line["d/loss"] for line in last if line["step"] == 6
    )
    result = json.loads((tmp_path / "0" / "result_at_7.json").read_text())
    assert (result["status"], result["step"]) == ("paused", 7)
    assert [r.status for r in fit(tmp_path, 16)] == ["done"] * 3


@pytest.mark.medium
def test_what_is_killed_leaves_no_result_of_before(tmp_path):
    def crash(state):
        raise KeyboardInterrupt  # at once, as if killed

    def trained(steps, validate=None):
        members = [
            member._replace(config={**member.config, "steps": steps}, validate=validate)
            for member in members_at(tmp_path, MEMBERS[:2])
        ]
        plan = train.Plan(steps=steps, eval_every=2, **PLAN)
        return train.fit_group(make, make(0)[1], members, plan)

    trained(4)
    with pytest.raises(KeyboardInterrupt):
        trained(8, crash)
    for i in range(2):
        assert json.loads((tmp_path / str(i) / "config.json").read_text())["config"]["steps"] == 8
        assert not (tmp_path / str(i) / "result.json").exists()
    assert [r.status for r in trained(8)] == ["done"] * 2


@pytest.mark.medium
def test_a_group_that_broke_as_a_whole_is_so_again(tmp_path):
    """Its records are of the new flags: the launcher can tell that nothing is left to do."""
    members = [MEMBERS[i] | dict(lr=1e30) for i in range(2)]
    first = fit(tmp_path, 8, members)
    again = train.fit_group(
        make,
        make(0)[1],
        [m._replace(config={**m.config, "steps": 12}) for m in members_at(tmp_path, members)],
        train.Plan(steps=12, **PLAN),
    )
    assert all(isinstance(result, train.Anomaly) for result in (*first, *again))
    assert [str(result) for result in first] == [str(result) for result in again]
    for i in range(2):
        record = json.loads((tmp_path / str(i) / "config.json").read_text())
        assert record["config"]["steps"] == 12 and len(record["group"]["members"]) == 2
        assert json.loads((tmp_path / str(i) / "result.json").read_text())["status"] == "non-finite"


def branching(how):
    def of(seed, lr=1e-3, gamma=0.1):
        if how == "a branch":
            assert lr > 0
        else:
            np.asarray(seed)
        return make(seed, lr, gamma)

    return of


@pytest.mark.medium
@pytest.mark.parametrize("how", ["a branch", "an array"])
def test_runs_that_cannot_be_one_program_train_alone(tmp_path, capsys, how):
    members = members_at(tmp_path, MEMBERS[:2])
    plan = train.Plan(steps=2, **PLAN)
    with pytest.raises(train.TRACED):
        train.fit_group(branching(how), make(0)[1], members, plan)
    results = train.fit_group(branching(how), make(0)[1], members, plan, or_alone=True)
    assert [r.status for r in results] == ["done"] * 2
    assert capsys.readouterr().out.count("one run at a time: ") == 1
    assert directory.group_of(tmp_path / "0") is None


@pytest.mark.medium
def test_a_directory_of_something_else_stops_all_before_any_is_touched(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no bpgan run"):
        fit(tmp_path, 8)
    assert not (tmp_path / "0" / "config.json").exists()


def group(tmp_path, *members, flags=(), record=ended.ignore):
    rest = [f"--member={m} --workdir={tmp_path / str(i)}" for i, m in enumerate(members)]
    return _group.run(
        ["mnist_gan", "--preset=smoke", "--net=mlp", "--notensorboard", *flags, *rest], record
    )


@pytest.mark.medium
def test_the_process_of_a_group(tmp_path, capsys):
    assert group(tmp_path, "--seed=0 --g_lr=1e-3", "--seed=1 --g_lr=1e-4", flags=["--steps=4"]) == 0
    said = capsys.readouterr().out
    assert "2 runs in one program (map)" in said and "2 of 2 runs without an anomaly" in said
    assert "steps/s in all" in said and "left" in said
    # One of them, as if it had been trained alone.
    cfg = cli.resolve(mnist_gan.Config, mnist_gan.PRESETS, [f"--workdir={tmp_path / '1'}"])
    found = cli.restore(cfg.workdir)
    assert found.step == 4 and found.config.seed == 1 and found.config.g_lr == 1e-4
    assert dataclasses.asdict(found.config)["net"] == "mlp"


def test_of_a_member_only_its_measures_are_kept(tmp_path, monkeypatch, copies):
    """One copy of the data is trained on, another is the member's that is being built."""
    alive, given = copies(classifier), []

    def fit_group(make, source, members, plan, **options):
        given.extend(members)
        return [train.Result("done", 1, {}, {}) for _ in members]

    monkeypatch.setattr(train, "fit_group", fit_group)
    rest = [f"--member=--seed={i} --workdir={tmp_path / str(i)}" for i in range(4)]
    assert _group.run(["classifier", "--net=mlp", *rest]) == 0
    assert alive == [1, 2, 2, 2]
    assert len({member.evaluate for member in given}) == 4


@pytest.mark.parametrize("how", ["a branch", "an array"])
def test_an_experiment_that_branches_is_told_to_be_off(tmp_path, monkeypatch, how):
    build = mnist_gan.build

    def branches(cfg, axis_name=None):
        branching(how)(cfg.seed, cfg.g_lr)
        return build(cfg, axis_name)

    monkeypatch.setattr(mnist_gan, "build", branches)
    with pytest.raises(UserError, match="vectorize: mnist_gan decides by the value of one of"):
        group(tmp_path, "--seed=0 --g_lr=1e-3", "--seed=1 --g_lr=1e-4")


def test_pmap_is_not_for_groups(tmp_path):
    with pytest.raises(UserError, match="vectorize: must be off with `parallel=pmap`"):
        group(tmp_path, "--seed=0", "--seed=1", flags=["--parallel=pmap"])


def test_a_member_that_is_refused_does_not_keep_the_others_from_training(
    tmp_path, monkeypatch, capsys
):
    build, trained, recorded = mnist_gan.build, [], {}

    def refuses(cfg, axis_name=None):
        if cfg.g_lr == 0.5:
            raise UserError("is too large", argument="g_lr", value=cfg.g_lr)
        return build(cfg, axis_name)

    def fit_group(make, source, members, plan, **options):
        trained.extend(member.seed for member in members)
        ends = [train.Result("done", 1, {}, {}), train.Anomaly("not finite by step 1")]
        return ends[: len(members)]

    def record(workdir, code, error=None):
        recorded[pathlib.Path(workdir).name] = code, str(error or "")

    monkeypatch.setattr(mnist_gan, "build", refuses)
    monkeypatch.setattr(train, "fit_group", fit_group)
    members = ["--seed=0 --g_lr=0.5", "--seed=1 --g_lr=1e-4", "--seed=2 --g_lr=1e-3"]
    assert group(tmp_path, *members, record=record) == 2
    assert trained == [1, 2]
    assert "error: --g_lr=0.5: is too large\n" in capsys.readouterr().err
    refused = 2, "g_lr=0.5: is too large"
    assert recorded == {"0": refused, "1": (0, ""), "2": (3, "not finite by step 1")}
    # What is common to all is refused at once, and everyone's end.
    flags = ["--g_lr=0.5"]
    with pytest.raises(UserError, match="g_lr=0.5: is too large"):
        group(tmp_path, "--seed=0", "--seed=1", flags=flags, record=record)
    assert recorded == {"0": refused, "1": refused, "2": (3, "not finite by step 1")}
    assert trained == [1, 2] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, end",
    [
        (cli.Interrupted(), (75, "")),
        (KeyboardInterrupt(), (130, "")),
        (ZeroDivisionError("by 0"), (1, "ZeroDivisionError: by 0")),
    ],
)
def test_how_a_group_ends_is_recorded_of_each(tmp_path, monkeypatch, error, end):
    def build(cfg, axis_name=None):
        raise error

    recorded = []
    monkeypatch.setattr(mnist_gan, "build", build)
    with pytest.raises(type(error)):
        group(tmp_path, "--seed=0", "--seed=1", record=lambda *how: recorded.append(how))
    assert [(code, str(cause or "")) for _, code, cause in recorded] == [end] * 2


def test_members_may_differ_in_sweepable_flags_only(tmp_path):
    with pytest.raises(UserError, match="loss: must be the same for all members"):
        group(tmp_path, "--loss=hinge", "--loss=nonsaturating")
