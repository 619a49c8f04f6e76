"""What a search runs: draws that nothing moves, halving, and TPE that goes on where it stopped."""

import json
import math
import os
import pathlib
import sys
import time

import numpy as np
import pytest
from scipy import stats

from bpgan import cli
from bpgan.launcher import search
from bpgan.measures import Goal
from bpgan.types import UserError
from experiments import mnist_gan

SPECS = cli.flags_of(mnist_gan.Config)


def axis(text):
    return search.parse_axis(text, SPECS)


@pytest.mark.parametrize(
    "text,cdf",
    [
        ("g_lr=log:1e-5:1e-2", lambda x: (math.log10(x) + 5) / 3),
        ("g_lr=uniform:2:6", lambda x: (x - 2) / 4),
        ("loss=log:0.5:2", lambda x: math.log2(2 * x) / 2),  # a text flag takes numbers, too
    ],
)
def test_draws_are_distributed_as_they_say(text, cdf):
    found = [float(axis(text).draw(0, i)) for i in range(400)]
    assert stats.kstest([cdf(x) for x in found], "uniform").pvalue > 1e-3


def test_whole_numbers_may_be_drawn_log_uniformly():
    wide = axis("batch_size=log:1:1000")
    found = [int(wide.draw(0, i)) for i in range(400)]
    assert 1 <= min(found) and max(found) <= 1000
    below = sum(x < 32 for x in found) / 400
    assert below == pytest.approx(math.log(32) / math.log(1001), abs=0.07)
    assert {axis("d_steps=log:1:3").draw(0, i) for i in range(100)} == {"1", "2", "3"}
    with pytest.raises(UserError, match="LOW and HIGH must be whole numbers, as `d_steps` is"):
        axis("d_steps=uniform:1.5:3")


def test_tpe_draws_whole_numbers_log_uniformly(tmp_path):
    study = search.Study(tmp_path / "a.log", [axis("batch_size=log:1:1000000")], 0)
    found = [int(texts["batch_size"]) for _, texts in study.ask(10)]
    assert sum(x < 30000 for x in found) >= 5


@pytest.mark.parametrize("text", ["b2=uniform:0.9:0.99999", "g_lr=log:1.00004e-4:1.1e-4"])
def test_rounding_does_not_leave_the_range(text):
    one = axis(text)
    for share in np.linspace(0, 1, 1001)[:-1]:
        assert one.low <= float(one.at(share)) <= one.high
    assert float(one.at(0.0)) == one.low and float(one.at(1 - 1e-12)) == one.high


def test_a_draw_that_occurs_twice_is_one_setting():
    combinations = search.combine([axis("d_steps=uniform:1:3"), axis("seed=0:2")], 20, 0)
    assert sorted((c["d_steps"], c["seed"]) for c in combinations) == [
        (d, s) for d in "123" for s in "01"
    ]


def test_whole_numbers_and_choices():
    found = [axis("d_steps=uniform:1:3").draw(0, i) for i in range(300)]
    assert set(found) == {"1", "2", "3"}
    counts = [found.count(v) for v in "123"]
    assert stats.chisquare(counts).pvalue > 1e-3
    assert {axis("net=choice:mlp,dcgan:8").draw(0, i) for i in range(40)} == {"mlp", "dcgan:8"}


def test_more_draws_and_more_axes_move_none():
    one, other, seed = axis("g_lr=log:1e-5:1e-2"), axis("b1=uniform:0:0.9"), axis("seed=0:2")
    short = search.combine([one, seed], 3, 7)
    long = search.combine([other, one, seed], 5, 7)
    assert [c["g_lr"] for c in short] == [c["g_lr"] for c in long][:6]
    assert [c["seed"] for c in short] == ["0", "1"] * 3
    assert short != search.combine([one, seed], 3, 8)
    assert len({c["b1"] for c in long}) == 5


@pytest.mark.parametrize(
    "text",
    ["g_lr=log:0:1", "g_lr=log:1:1", "g_lr=uniform:2:1", "g_lr=log:1", "g_lr=uniform:a:b",
     "g_lr=log:1:nan"],
)  # fmt: skip
def test_ranges_that_are_empty_are_refused(text):
    with pytest.raises(UserError, match=f"sweep={text}: must be (log|uniform):LOW:HIGH with"):
        axis(text)


def test_samples_and_draws_need_each_other():
    with pytest.raises(UserError, match="`samples=N` must say"):
        search.combine([axis("g_lr=log:1e-5:1e-2")], 0, 0)
    with pytest.raises(UserError, match="samples=3: no `sweep` draws"):
        search.combine([axis("seed=0:2")], 3, 0)


@pytest.mark.parametrize("count,factor", [(1, 3), (2, 3), (9, 3), (27, 3), (100, 3), (64, 4)])
def test_every_rung_costs_about_the_same_and_the_last_is_a_whole_run(count, factor):
    steps = search.rungs(count, factor)
    assert steps[0][1] == count and steps[-1][0] == 1.0 and steps[-1][1] < factor
    for (share, kept), (longer, fewer) in zip(steps, steps[1:], strict=False):
        assert longer == pytest.approx(factor * share) and fewer == kept // factor
    costs = [share * kept for share, kept in steps]
    assert max(costs) <= factor * min(costs)


def test_scores():
    aim = Goal.parse("max:eval/recall")
    done = [{"status": "done", "metrics": {"eval/recall": v}} for v in (0.2, 0.4)]
    assert search.score(aim, done) == pytest.approx(-0.3)
    for bad in (math.nan, math.inf):
        assert (
            search.score(aim, [*done, {"status": "done", "metrics": {"eval/recall": bad}}])
            == math.inf
        )
    assert search.score(aim, [*done, {"status": "non-finite"}]) == math.inf == search.score(aim, [])
    with pytest.raises(UserError, match="eval/recal is not logged .* did you mean eval/recall"):
        search.score(Goal("min", "eval/recal"), done)


def test_goals():
    for text, sign in (("max:eval/recall", -1), ("min:d/loss", 1)):
        goal = Goal.parse(text)
        assert (str(goal), goal.sign, goal.metric) == (text, sign, text[4:])
    for text in ("recall", "best:recall", "min:", "min:a b", "max", ""):
        with pytest.raises(ValueError, match="must be min:METRIC or max:METRIC"):
            Goal.parse(text)


def test_settings_are_runs_that_differ_in_the_seed():
    values = [{"lr": lr, "seed": seed} for lr in (1, 2) for seed in (0, 1, 2)]
    assert search.group_by_setting(values) == [[0, 1, 2], [3, 4, 5]]


AXES = [axis("g_lr=log:1e-5:1e-1"), axis("b1=uniform:0:0.9"), axis("d_steps=uniform:1:5")]


def objective(texts):
    """Least at g_lr 1e-3, b1 0.5."""
    return (math.log10(float(texts["g_lr"])) + 3) ** 2 + (float(texts["b1"]) - 0.5) ** 2


def searched(path: pathlib.Path, trials: int, restart_every: int = 10**9) -> list[dict]:
    study, asked = search.Study(path, AXES, 5), []
    while len(study.scored()) < trials:
        for number, texts in study.ask(search.GENERATION):
            study.tell(number, objective(texts))
            asked.append(texts)
            if len(asked) % restart_every == 0:
                study = search.Study(path, AXES, 5)
                break
    return asked


def test_tpe_finds_more_than_chance_and_goes_on_as_if_undisturbed(tmp_path):
    whole = searched(tmp_path / "a.log", 48)
    assert searched(tmp_path / "b.log", 48, restart_every=5) == whole
    drawn = [{a.name: a.draw(5, i) for a in AXES} for i in range(48)]
    late, chance = ([objective(t) for t in ts] for ts in (whole[24:], drawn))
    assert np.median(late) < np.median(chance) / 2


def test_a_kill_while_it_asks_costs_nothing(tmp_path):
    """At first before the trial has a value of each axis, then before its runs are planned."""
    study = search.Study(tmp_path / "a.log", AXES, 0)
    study._study.ask({"g_lr": study._distribution(AXES[0])})
    study._study.ask({a.name: study._distribution(a) for a in AXES})
    study = search.Study(tmp_path / "a.log", AXES, 0)
    ((number, texts),) = study.ask(4)
    assert number == 1 and texts.keys() == {"g_lr", "b1", "d_steps"}
    study.tell(number, 0.5)
    assert study.scored() == [(texts, 0.5)]
    assert len(study.ask(4)) == 4


def test_a_trial_that_came_to_nothing_does_not_stop_the_search(tmp_path):
    study = search.Study(tmp_path / "a.log", AXES, 0)
    for number, _ in study.ask(4):
        study.tell(number, math.inf)
    study = search.Study(tmp_path / "a.log", AXES, 0)
    assert [score for _, score in study.scored()] == [math.inf] * 4
    assert [trial.value for trial in study._study.get_trials()] == [math.inf] * 4
    assert len(study.ask(4)) == 4


@pytest.mark.medium
@pytest.mark.parametrize("seed", [0, 1])
def test_tpe_learns_where_runs_diverge(tmp_path, seed):
    """Told that they failed, it drew them more often than chance does (57 %): in 81 to 94 % of its last draws."""

    def diverges(texts):
        return float(texts["g_lr"]) > 10**-3.3

    study, asked = search.Study(tmp_path / "a.log", AXES[:2], seed), []
    while len(asked) < 64:
        for number, texts in study.ask(search.GENERATION):
            bad = diverges(texts)
            study.tell(number, math.inf if bad else (math.log10(float(texts["g_lr"])) + 3.5) ** 2)
            asked.append(bad)
    chance = np.mean([diverges({"g_lr": AXES[0].draw(seed, i)}) for i in range(400)])
    assert chance == pytest.approx(0.57, abs=0.08) and np.mean(asked[-32:]) < chance - 0.1


def journal(path):
    """A study of two trials of which one has a value, and the bytes of its journal."""
    study = search.Study(path, AXES, 0)
    (number, texts), _ = study.ask(2)
    study.tell(number, 1.0)
    return study.scored(), [texts for _, texts in study.ask(2)], path.read_bytes()


@pytest.mark.parametrize(
    "end",
    [b"\n\n", b"\0" * 100, b'{"op_code":', b"\n\n\0\n", b"\xff\xfe", b'[1]\n{"a": 1', b"{" * 9999],
)
def test_a_journal_with_a_torn_end_is_mended_and_a_copy_kept(tmp_path, capsys, end):
    path = tmp_path / "a.log"
    told, waiting, whole = journal(path)
    path.write_bytes(whole + end)
    os.symlink(path, tmp_path / "a.log.lock")  # of a process that was killed while it wrote
    for repeated in (False, True):
        study = search.Study(path, AXES, 0)
        assert study.scored() == told and [texts for _, texts in study.ask(2)] == waiting
        # Optuna notes each time that the study was opened.
        assert path.read_bytes().startswith(whole)
        assert all("op_code" in json.loads(line) for line in path.read_bytes().splitlines())
        assert ("cut off; " in capsys.readouterr().out) != repeated
    (copy,) = tmp_path.glob("a.log.torn-*")
    assert copy.read_bytes() == whole + end


def test_a_journal_cut_anywhere_goes_on_from_what_is_whole(tmp_path):
    path = tmp_path / "a.log"
    _, _, whole = journal(path)
    for cut in (1, 7, len(whole.splitlines(True)[-1]), len(whole) // 2, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:-cut])
        assert search.Study(path, AXES, 0).ask(2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[:2], b"\0" * 9 + lines[2], *lines[3:]],
        lambda lines: [b"no journal\n", *lines],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [b"{}\n", *lines],
        lambda lines: [
            *lines[:-1],
            b'{"op_code": 6, "worker_id": "x", "trial_id": 99}\n',
            lines[-1],
        ],
    ],
)
def test_a_journal_damaged_before_its_end_is_refused_as_it_is(tmp_path, damage):
    path = tmp_path / "a.log"
    path.write_bytes(b"".join(damage(journal(path)[2].splitlines(keepends=True))))
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(
            UserError, match="a.log: the journal of the search is damaged"
        ) as caught:
            search.Study(path, AXES, 0)
        assert "\n" not in str(caught.value) and path.read_bytes() == before


def test_any_seed_is_a_seed_of_tpe(tmp_path):
    assert search.Study(tmp_path / "a.log", AXES, 10**15).ask(1)


@pytest.mark.parametrize(
    "texts, samples, said",
    [
        (["seed=0:99999999999"], 0, "--sweep=seed=0:99999999999: is more than 10,000 values"),
        ([f"seed=0:{'9' * 5000}"], 0, f"--sweep=seed=0:{'9' * 193}...: is more than"),
        ([f"seed=-{'9' * 5000}:1"], 0, f"--sweep=seed=-{'9' * 194}...: is more than"),
        (["seed=0:400", "d_steps=1:400"], 0, "--sweep: asks for 400 x 399 = 159,600 runs; must be"),
        (["g_lr=log:1e-5:1", "seed=0:2000"], 2000, "--sweep: asks for 2,000 x 2,000 = 4,000,000"),
    ],
)
def test_sizes_are_looked_at_before_they_are_built(texts, samples, said):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        search.combine([axis(text) for text in texts], samples, 0)
    assert cli.message_of(caught.value).startswith(said) and time.monotonic() - start < 1


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install"):
        search.Study(tmp_path / "a.log", AXES, 0)
