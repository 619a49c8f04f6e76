"""The protocol of "Are GANs Created Equal?": equal budgets, random search, repeats, distributions.

Run:     python -m experiments.lucic --dataset=idx:/usr/share/datasets/fashion-mnist --budget=small
             search, selection on held-out data, repeats over seeds and the table, in one command
         python -m experiments.lucic --budget=paper --dataset=tfds:fashion_mnist
             as in the paper: 100 and 50 settings and 50 repeats a model, a million images each; for a cluster of GPUs
Papers:  Lucic et al. 2018, arXiv:1711.10337.

Every model of ``experiments.infogan`` gets the same number of random settings from the paper's "wide" ranges, and again
from its "narrow" ones, and every run sees as many real images: with five updates of D to one of G, G has a fifth of the
updates. The setting with the least Frechet distance to a tenth of the training data, held out, is trained again with
other seeds, which decide the table: distances to the test split, mean, deviation and quartiles. A setting that breaks
counts as one of the search; a repeat that breaks is named. The same command goes on where it stopped; ``lucic.json``
holds every number, ``table.md`` the table, ``distributions.svg`` all runs of it.

Two differences: distances are in the features of a classifier trained on the same data, not Inception's, so that orders
can be compared with the paper's, values cannot; and the setting to repeat is the best of both searches, where the
paper's is the best of the wide one, which needs many settings to find any.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan import cli, data
from bpgan.cli import experiments
from bpgan.launcher import processes, runs, search, sweep
from bpgan.measures import Goal
from bpgan.report import plot
from bpgan.types import UserError

from . import infogan


class Budget(NamedTuple):
    """What a model may cost: settings of either search, repeats, real images of every run, and its other flags.

    The paper's images are those for MNIST and Fashion-MNIST, 20 epochs of 50,000; its CIFAR-10 runs had 5 million:
    ``--images``.
    """

    wide: int
    narrow: int
    repeats: int
    images: int
    flags: tuple[str, ...] = ()


BUDGETS = {
    "smoke": Budget(2, 1, 2, 64, ("--preset=smoke",)),
    "small": Budget(4, 3, 3, 32_000, ("--channels=32", "--hidden=256")),
    "paper": Budget(100, 50, 50, 1_000_000),
}

_AT_THE_END = "1000000000"  # steps between evaluations

_WEIGHTS = {"wide": ("weight=log:0.1:100",), "narrow": ("weight=log:0.1:10",)}
_OWN = {
    "wgan_gp": _WEIGHTS,
    "dragan": _WEIGHTS,
    "wgan": dict.fromkeys(_WEIGHTS, ("clip=log:0.001:1",)),
    "began": dict.fromkeys(_WEIGHTS, ("k_step=log:0.0001:0.01", "balance=uniform:0:1")),
}
"""A model's own flags, in the wide and in the narrow search."""


def ranges(model: str, space: str) -> list[str]:
    """The axes of a model's search, as in the paper's Table 1 and the authors' code.

    Args:
      model: of ``infogan.MODELS``.
      space: ``wide`` or ``narrow``.
    """
    narrow = space == "narrow"
    axes = ["lr=log:1e-4:1e-3"] if narrow else ["lr=log:1e-5:1e-2", "b1=uniform:0:0.9999"]
    if not narrow and infogan.MODELS[model].loss:
        axes.append("d_steps=choice:1,5")
    if infogan.MODELS[model].takes_norm:
        axes.append("d_norm=choice:true,false")
    return [*axes, *_OWN.get(model, {}).get(space, ())]


def _models(text: str) -> list[str]:
    names = list(infogan.MODELS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in infogan.MODELS]:
        raise ValueError(
            f"{unknown[0]!r} is none; must be all or some of {', '.join(infogan.MODELS)}"
        )
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    dataset: cli.Parsed[data.Name] = cli.field("mnist10k", data.forms, parse=data.parse)
    budget: str = cli.field("small", "of every model", choices=BUDGETS)
    images: int = cli.field(0, "real images of every run; 0: as the budget says", low=0)
    models: cli.Parsed[list[str]] = cli.field(
        "all", "all, or names separated by commas", parse=_models
    )
    seed: int = cli.field(0, "of what is drawn", low=0)


PRESETS = {"smoke": dict(budget="smoke", models="ns,wgan_gp")}


class _Study:
    """The runs of a study, all of which have flags in common.

    Attributes:
      cfg: what is asked for.
      budget: of every model.
      folder: where everything goes.
      common: flags of all runs.
      spaces: settings of a model by the space in which they are drawn.
    """

    def __init__(self, cfg: Config):
        budget = BUDGETS[cfg.budget]
        self.cfg, self.folder = cfg, pathlib.Path(cfg.workdir)
        self.budget = budget._replace(images=cfg.images or budget.images)
        images, _ = data.load_for_training(cfg.dataset.value, held_out=True)
        epochs = self.budget.images / images.length
        self.common = [f"--dataset={cfg.dataset}", f"--epochs={epochs:.6g}", f"--eval_every={_AT_THE_END}",
                       "--notensorboard", "--metrics=fd", "--log_every=0.1ep", "--sample_every=0",
                       "--checkpoint_every=0", "--keep=1", *budget.flags]  # fmt: skip
        self.spaces = {
            name: n for name, n in (("wide", budget.wide), ("narrow", budget.narrow)) if n
        }
        self._script, self._slots = experiments.find("infogan"), processes.count_slots(0)

    def plan(self, model: str, combinations: Sequence[Mapping[str, str]]) -> list[runs.PlannedRun]:
        """The runs of a model with these flags."""
        argv = [*self.common, f"--model={model}"]
        return runs.plan(self._script, argv, combinations, self.folder)

    def plan_search(self, model: str, space: str) -> list[runs.PlannedRun]:
        """The settings of a model that are drawn in a space."""
        specs = cli.flags_of(infogan.Config)
        axes = [search.parse_axis(text, specs) for text in ranges(model, space)]
        # With one seed, both would be the same points of their ranges.
        seed = 2 * self.cfg.seed + (space == "narrow")
        return self.plan(model, search.combine(axes, self.spaces[space], seed))

    def plan_repeats(self, model: str, setting: Mapping[str, Any]) -> list[runs.PlannedRun]:
        """A setting of a model with other seeds than that of the search, which is 0."""
        texts = {name: cli.show(value) for name, value in setting.items()}
        seeds = range(1, self.budget.repeats + 1)
        return self.plan(model, [{**texts, "seed": str(seed)} for seed in seeds])

    def train(
        self, label: str, groups: Mapping[Any, list[runs.PlannedRun]]
    ) -> dict[Any, list[dict[str, Any]]]:
        """Results by the groups' keys; all runs are trained together.

        Raises:
          UserError: if a run ended otherwise than well or by an anomaly: only that is the model's failure.
          cli.Interrupted: by a signal.
        """
        every = [run for group in groups.values() for run in group]
        results = iter(sweep.train_all(self._script, self.folder, label, every, self._slots))
        return {key: [next(results) for _ in group] for key, group in groups.items()}


def run(cfg: Config) -> None:
    """Searches, selects, repeats and writes the table.

    Raises:
      UserError: if nothing of a model's search came to an end.
      cli.Interrupted: by a signal; the same command goes on.
    """
    study, models = _Study(cfg), cfg.models.value
    searches = {
        (model, space): study.plan_search(model, space)
        for model in models
        for space in study.spaces
    }
    found = study.train("search", searches)
    rows, repeats = {}, {}
    for model in models:
        planned = {space: searches[model, space] for space in study.spaces}
        rows[model] = _select(cfg, model, planned, {s: found[model, s] for s in study.spaces})
        repeats[model] = study.plan_repeats(model, rows[model]["setting"])
    tested = Goal("min", "test/FD")
    for model, results in study.train("repeats", repeats).items():
        rows[model]["repeats (test)"] = [search.score(tested, [result]) for result in results]
    _write(study, list(rows.values()))


def _select(
    cfg: Config,
    model: str,
    planned: Mapping[str, Sequence[runs.PlannedRun]],
    found: Mapping[str, Sequence[dict[str, Any]]],
) -> dict[str, Any]:
    """The best setting of a model, and the scores of all, by space. Raises a UserError if none came to an end."""
    aim = Goal("min", "eval/FD")
    scores = {
        space: [search.score(aim, [result]) for result in results]
        for space, results in found.items()
    }
    space = min(scores, key=lambda space: min(scores[space]))
    best = int(np.argmin(scores[space]))
    if not math.isfinite(scores[space][best]):
        reason = f"no setting of {model} came to an end"
        raise UserError(reason, argument="budget", value=cfg.budget)
    setting = planned[space][best].values
    return {"model": model, "searches (validation)": scores, "space": space, "setting": setting}


def _write(study: _Study, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes and prints what was found."""
    cfg, folder = study.cfg, study.folder
    table = _table(cfg, study.budget, rows)
    record = {"config": dataclasses.asdict(cfg), "flags": study.common, "rows": rows}
    with processes.open_file(folder / "lucic.json", "w") as file:
        json.dump(record, file, indent=1)
    with processes.open_file(folder / "table.md", "w") as file:
        file.write(table)
    shown = {}
    for row in rows:
        searches = row["searches (validation)"].items()
        shown[row["model"]] = {f"{space} search, validation": fds for space, fds in searches}
        shown[row["model"]]["repeats, test"] = row["repeats (test)"]
    title = f"{cfg.dataset}, budget {cfg.budget}: FD in the features of a classifier, all runs"
    plot.save_distributions(folder / "distributions.svg", title, shown)
    print(f"\n{table}\nwrote table.md, distributions.svg and lucic.json to {folder}")


def _table(cfg: Config, budget: Budget, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""

    def numbers(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.4g}" for value in values)

    spaces = list(rows[0]["searches (validation)"])
    lines = [
        f"{cfg.dataset}, budget {cfg.budget}: {budget.images:,} images a run{'; ' * bool(budget.flags)}"
        f"{' '.join(budget.flags)}. FD of 10,000 samples in the features of a classifier of the data.",
        "",
        f"| model | {' | '.join(f'{s} search: best, median' for s in spaces)} | repeats, test: mean ± sd | quartiles |"
        " broken | setting repeated |",
        "|---" * (len(spaces) + 5) + "|",
    ]
    for row in rows:
        tested = row["repeats (test)"]
        fine = [x for x in tested if math.isfinite(x)]
        spread = f" ± {np.std(fine, ddof=1):.3g}" if len(fine) > 1 else ""
        searches = [(min(s), float(np.median(s))) for s in row["searches (validation)"].values()]
        broken = [sum(not math.isfinite(x) for x in s)
                  for s in (*row["searches (validation)"].values(), tested)]  # fmt: skip
        setting = " ".join(f"{k}={cli.show(v)}" for k, v in row["setting"].items())
        cells = [
            row["model"],
            *map(numbers, searches),
            f"{np.mean(fine):.4g}{spread} (n = {len(fine)})" if fine else "none",
            numbers(np.quantile(fine, [0.25, 0.5, 0.75]).tolist()) if fine else "",
            " + ".join(map(str, broken)),
            f"{row['space']}: {setting}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
