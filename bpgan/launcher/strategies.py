"""Who trains how long: all runs of a sweep, successive halving, or what Optuna's TPE asks for."""

import math
from collections.abc import Callable, Mapping, Sequence

from bpgan.launcher import search
from bpgan.launcher.runs import PlannedRun, hash_of
from bpgan.launcher.sweep import Sweep
from bpgan.measures import Goal
from bpgan.types import UserError, counted

_FACTOR = 3  # of successive halving


def plan_first_rung(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """What successive halving trains first."""
    count = len(search.group_by_setting([run.values for run in runs]))
    share, _ = search.rungs(count, _FACTOR)[0]
    return [run.pause_at(share) for run in runs]


def halve(sweep: Sweep, runs: Sequence[PlannedRun], aim: Goal) -> None:
    """Successive halving of the settings of these runs; see ``search.rungs``.

    Raises:
      UserError: if no setting that is left has a finite score.
    """
    left = search.group_by_setting([run.values for run in runs])
    steps = search.rungs(len(left), _FACTOR)
    facts = [aim, *((str(r.workdir), r.config["epochs"], r.config["steps"]) for r in runs)]
    name = f"rungs {hash_of(facts)[:8]}"
    for rung, (share, _) in enumerate(steps):
        part = [[runs[i].pause_at(share) for i in setting] for setting in left]
        scores = _score_rung(sweep, name, rung, part, aim)
        if scores is None:
            return
        order = sorted(range(len(left)), key=scores.__getitem__)
        best = runs[left[order[0]][0]].name_setting(without={"seed"})
        print(
            f"rung {rung + 1} of {len(steps)}: {counted(len(left), 'setting')} at {share:.3g} of a run;"
            f" best: {best}, {aim.metric} {aim.sign * scores[order[0]]:.4g}",
            flush=True,
        )
        if rung + 1 == len(steps):
            return
        keep = steps[rung + 1][1]
        left = [left[i] for i in order[:keep] if math.isfinite(scores[i])]
        if not left:
            reason = f"no setting reached rung {rung + 2}"
            raise UserError(reason, argument="search", value="halving")


def _score_rung(
    sweep: Sweep, name: str, rung: int, settings: Sequence[Sequence[PlannedRun]], aim: Goal
) -> list[float] | None:
    """The scores of settings: as they were decided before, though the runs may have gone on, or after training them.

    None if the sweep is over before they are known.
    """
    runs = [run for setting in settings for run in setting]
    past = sweep.ledger.get(name, [])
    if rung < len(past):
        if len(past[rung]) != len(settings):
            found, needed = len(past[rung]), len(settings)
            raise sweep.damaged(
                f"{name}: {counted(found, 'score')} of {counted(needed, 'setting')}"
            )
        sweep.recall(runs)
        return past[rung]
    results = iter(sweep.train(runs))
    if sweep.is_over(runs):
        return None
    scores = [search.score(aim, [next(results) for _ in setting]) for setting in settings]
    sweep.remember(**{name: [*past, scores]})
    return scores


def ask_study(
    sweep: Sweep,
    study: search.Study,
    axes: Sequence[search.Axis],
    samples: int,
    aim: Goal,
    plan: Callable[[Sequence[Mapping[str, str]]], list[PlannedRun]],
) -> None:
    """Trains what the study asks for, generation by generation.

    Args:
      sweep, study: who trains, and who asks.
      axes: those that are drawn, and a grid that each draw is crossed with.
      samples: how many draws.
      aim: what is looked for.
      plan: the runs of combinations of texts.
    """
    best, crossed = math.inf, {axis.name for axis in axes if not axis.is_drawn}

    def compare(setting: Sequence[PlannedRun], score: float) -> None:
        nonlocal best
        if score < best:
            best, drawn = score, setting[0].name_setting(without=crossed)
            print(f"best so far: {drawn}, {aim.metric} {aim.sign * score:.4g}")

    before = [
        (plan(search.cross(axes, [texts])), score) for texts, score in study.scored()[:samples]
    ]
    for setting, _ in before:
        sweep.recall(setting)
    if before:
        compare(*min(before, key=lambda each: each[1]))
    while (left := samples - len(study.scored())) > 0 and not sweep.is_over():
        trials = study.ask(min(left, search.GENERATION))
        settings = [plan(search.cross(axes, [texts])) for _, texts in trials]
        runs = list({run.workdir: run for setting in settings for run in setting}.values())
        results = dict(zip((run.workdir for run in runs), sweep.train(runs), strict=True))
        if sweep.is_over(runs):
            return
        for (number, _), setting in zip(trials, settings, strict=True):
            score = search.score(aim, [results[run.workdir] for run in setting])
            study.tell(number, score)
            compare(setting, score)
