"""Studies: several methods with several seeds, trained, evaluated and put in one table.

Run:     python -m experiments.study --preset=smoke
             two methods of eight steps each, to see that it works
         python -m experiments.study --study=private --dataset=idx:/usr/share/datasets/fashion-mnist
             what privacy costs: private GANs at epsilon = 10 and 1, DP-MERF and a GAN without privacy
         python -m experiments.study --study=pairs --dataset=idx:/usr/share/datasets/fashion-mnist
             translation learned from pairs, with D and without; domains is the study of translation without pairs
         python -m experiments.study --study=transport --dataset=idx:/usr/share/datasets/fashion-mnist
             one-step adversarial flow: latents of the images' shape, with the penalty of transport and without
         python -m experiments.study --study=flows --dataset=idx:/usr/share/datasets/fashion-mnist
             flow matching and adversarial flow by the number of evaluations of the network for a sample
         python -m experiments.study --study=my_studies:TABLE
             a Study of your own, in a module or a file
Papers:  each study names its own.

The same command goes on where it stopped: what is trained is not trained again, and what is evaluated is not evaluated
again. A run that ends by an anomaly, such as a loss that is no number, is named as broken, and has no numbers.
``study.json`` holds every number with what it depends on, ``table.md`` means and standard deviations over seeds.
Both are written after every evaluation, so that a study that is not done has a table, too.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bpgan import cli, data
from bpgan.cli import experiments
from bpgan.evaluation import evaluate, rows, samples, table
from bpgan.evaluation.features import FEATURES, Make
from bpgan.files import replaced, write_json
from bpgan.launcher import outcomes, processes, runs, sweep
from bpgan.launcher.studies import Arm, Study
from bpgan.lookup import find
from bpgan.measures import mean_of
from bpgan.types import UserError, counted


def _of_privacy() -> tuple[Arm, ...]:
    """A private GAN and DP-MERF at two values of epsilon, and the same GAN with neither noise nor clipping."""
    plain = {"preset": "fashion", "epsilon": "0", "noise_multiplier": "0", "clip": "1e9"}
    arms = [Arm("the same GAN, not private", "private_gan", plain)]
    for name, experiment in (("private GAN", "private_gan"), ("DP-MERF", "dp_merf")):
        for epsilon in ("10", "1"):
            flags = {"preset": "fashion", "epsilon": epsilon}
            arms.append(Arm(f"{name}, epsilon = {epsilon}", experiment, flags))
    return tuple(arms)


def _of_pairs() -> tuple[Arm, ...]:
    """One task with three seeds, with D and without, and others once."""
    edges = {"preset": "pix2pix28", "task": "edges"}
    arms = [Arm("pix2pix, edges", "translate", edges)]
    arms.append(Arm("L1 alone, edges", "translate", {**edges, "loss": "none"}))
    for task in ("half", "downscale:4", "gray"):
        arms.append(Arm(f"pix2pix, {task}", "translate", {**edges, "task": task}, seeds=(0,)))
    return tuple(arms)


def _of_domains() -> tuple[Arm, ...]:
    """One task with three seeds by each system, and others once."""
    cyclegan, once = {"preset": "cyclegan28", "task": "invert"}, (0,)
    digits = {"dataset_a": "mnist10k", "dataset_b": "digits,size=28", "task": ""}
    return (
        Arm("CycleGAN, invert", "translate", cyclegan),
        Arm("CycleGAN, dilate", "translate", {**cyclegan, "task": "dilate"}, once),
        Arm("CycleGAN, digits", "translate", {**cyclegan, **digits}, once),
        Arm("CUT, invert", "translate", {"preset": "cut28", "task": "invert"}),
    )


def _of_transport() -> tuple[Arm, ...]:
    """Latents of the images' shape with transport and without, the same networks and penalties; and lite28 itself."""
    flow = {"preset": "afm28"}
    plain = {**flow, "penalty": "r1=0.3/4+r2=0.3/4+centering=0.01"}
    return (
        Arm("adversarial flow", "image_gan", flow),
        Arm("the same without transport", "image_gan", plain),
        Arm("lite28", "image_gan", {"preset": "lite28"}),
    )


def _of_flows() -> tuple[Arm, ...]:
    """A flow and a game of steps, each trained once, by how many evaluations of the network make a sample."""
    match, steps = {"preset": "match28"}, {"preset": "adversarial28"}
    return (
        *(
            Arm(f"flow matching, {n} evaluations", "flow_gan", match, samples={"sampler": f"euler:{n}"})
            for n in (1, 4, 32)
        ),
        *(
            Arm(f"adversarial flow, {n} evaluations", "flow_gan", steps, samples={"sampler": f"euler:{n}"})
            for n in (1, 4)
        ),
    )  # fmt: skip


STUDIES: dict[str, Study] = {
    "private": Study(
        "What does privacy cost? (Bie, Kamath & Zhang 2023, arXiv:2302.02936; Harder et al. 2021, arXiv:2002.11603)",
        _of_privacy(),
    ),
    "pairs": Study(
        "What does an adversarial loss add to a distance of pairs? (Isola et al. 2017, arXiv:1611.07004)",
        _of_pairs(),
        results=(
            "l1",
            "l1/mean",
            "l1/identity",
            "l1/nearest",
            "l1/ridge",
            "ssim",
            "fd",
            "accuracy",
        ),
    ),
    "domains": Study(
        "What is translated without pairs? (Zhu et al. 2017, arXiv:1703.10593; Park et al. 2020, arXiv:2007.15651)",
        _of_domains(),
        results=(
            "agreement",
            "fd_b",
            "told_apart",
            "moved",
            "l1",
            "cycle_a",
            "cycle_b",
            "hidden",
        ),
    ),
    "transport": Study(
        "What does it change to ask of a GAN for the cheapest map of its latents? (adversarial flow models)",
        _of_transport(),
        beside=("transport", "transport/known"),
    ),
    "flows": Study(
        "What do few evaluations of a network cost? (Lipman et al. 2023, arXiv:2210.02747; adversarial flow models)",
        _of_flows(),
        seeds=(0,),
        beside=("transport", "transport/known"),
    ),
    "smoke": Study(
        "Do studies work?",
        (Arm("GAN", "image_gan", {"preset": "smoke"}), Arm("VAE", "vae", {"preset": "smoke"})),
        seeds=(0,),
    ),
}
"""By the names of ``--study``."""


def parse(text: str) -> Study:
    """A study by its name, or ``module:name``. Raises ValueError for what is none, saying what is allowed."""
    found = find(STUDIES, text, "a study")
    if not isinstance(found, Study):
        raise ValueError(f"is {type(found).__name__}, must be a Study of bpgan.launcher.studies")
    return found


def _seeds(text: str) -> tuple[int, ...] | None:
    """Numbers separated by commas; None of an empty text."""
    parts = text.split(",") if text else []
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise ValueError("must be different whole numbers separated by commas")
    return tuple(map(int, parts)) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    study: cli.Parsed[Study] = cli.field(
        "private", f"one of {', '.join(STUDIES)}, or MODULE:NAME", parse=parse
    )
    dataset: cli.Parsed[data.Name] = cli.field("mnist10k", data.forms, parse=data.parse)
    seeds: cli.Parsed[tuple[int, ...] | None] = cli.field(
        "", "of every method, separated by commas; empty: those of the study", parse=_seeds
    )
    metrics: cli.Parsed[dict[str, table.Metric]] = cli.field(
        "fd,prdc,cas", "names separated by commas; see evaluate", parse=table.parse
    )
    features: cli.Parsed[Make] = FEATURES
    n: int = cli.field(10_000, "samples of every run", low=10)
    steps: int = cli.field(0, "of every run, in the place of its own length; 0: that", low=0)

    def idle(self) -> dict[str, str]:
        asked = ("metrics", "features", "n") if self.study.value.results else ()
        return dict.fromkeys(asked, "study")


PRESETS = {"smoke": dict(study="smoke", metrics="fd", features="pixels", n=100)}


def run(cfg: Config) -> None:
    """Trains and evaluates what is missing, and writes the table.

    Raises:
      UserError: for a run that is refused or ends otherwise than well.
      cli.Interrupted: by a signal; the same command goes on.
    """
    folder = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    planned, kept = plan(cfg, folder), Evaluations(cfg, folder)
    arms = cfg.study.value.arms
    for arm in {
        planned[arm.name][0].workdir: arm for arm in arms
    }.values():  # some share their runs
        _try(arm, planned[arm.name])
    for experiment in dict.fromkeys(arm.experiment for arm in arms):
        group = [arm for arm in arms if arm.experiment == experiment]
        together = {member.workdir: member for arm in group for member in planned[arm.name]}
        script = experiments.find(experiment)
        sweep.train_all(script, folder, "study", list(together.values()), processes.count_slots(0))
        for arm in group:
            for member in planned[arm.name]:
                kept.measure(arm, member)
    print(f"\n{kept.table()}\nwrote table.md and study.json to {folder}")


def plan(cfg: Config, folder: pathlib.Path) -> dict[str, list[runs.PlannedRun]]:
    """The runs of every method by its name, all of them checked before the first one trains."""
    study, argv = cfg.study.value, [f"--dataset={cfg.dataset}"]
    argv += [f"--steps={cfg.steps}"] if cfg.steps else []
    planned = {}
    for arm in study.arms:
        seeds = cfg.seeds.value or arm.seeds or study.seeds
        each = [{**arm.flags, "seed": str(seed)} for seed in seeds]
        try:
            planned[arm.name] = runs.plan(experiments.find(arm.experiment), argv, each, folder)
        except UserError as error:
            raise UserError(f"{arm.name}: {cli.message_of(error)}") from None
    return planned


def _try(arm: Arm, members: Sequence[runs.PlannedRun]) -> None:
    """Builds a run of a method that has not ended. Raises a UserError if it is refused, before any method trains."""
    script, todo = (
        experiments.find(arm.experiment),
        [m for m in members if not outcomes.is_finished(m)],
    )
    if todo and script.trains:
        try:
            script.action(
                cli.resolve(script.config, script.presets, [*todo[0].common, *todo[0].own])
            )
        except UserError as error:
            raise UserError(f"{arm.name}: {cli.message_of(error)}") from None


class Evaluations:
    """The evaluations of a study, as ``study.json`` holds them, each with what it depends on.

    By run directory, and by the flags of the samples where a method has some.
    """

    def __init__(self, cfg: Config, folder: pathlib.Path):
        self._cfg, self._folder = cfg, folder
        self._asked = {name: str(getattr(cfg, name)) for name in ("dataset", "metrics", "features", "n")}  # fmt: skip
        self._rows: dict[str, dict[str, Any]] = {}
        self.by_arm: dict[str, list[dict[str, Any]]] = {
            arm.name: [] for arm in cfg.study.value.arms
        }
        path = folder / "study.json"
        if path.exists():
            try:
                self._rows = dict(json.loads(path.read_text(encoding="utf-8"))["runs"])
            except (ValueError, KeyError, TypeError, OSError) as error:
                reason = (
                    f"{path} cannot be read ({error}); remove it, and its runs are evaluated again"
                )
                raise UserError(reason) from None

    def measure(self, arm: Arm, run: runs.PlannedRun) -> None:
        """Evaluates a run that has ended, unless that was done, and writes what is known by now."""
        changes = [f"{flag}={value}" for flag, value in arm.samples.items()]
        name = " ".join([str(run.workdir.relative_to(self._folder)), *changes])
        result = outcomes.read_result(run)
        known = self._rows.get(name, {})
        facts = {**self._asked, "run": result["run"], "step": result["step"]}
        if any(known.get(key) != value for key, value in facts.items()):
            known = {
                "arm": arm.name,
                "seed": run.values["seed"],
                **facts,
                "minutes": _minutes(result),
                "epsilon": result.get("privacy", {}).get("epsilon"),
                "broken": result["status"] != "done",
                "numbers": self._numbers(run.workdir, changes, result)
                if result["status"] == "done"
                else [],
            }
        self._rows[name] = known
        self.by_arm[arm.name].append(known)
        self._write()

    def _numbers(
        self, workdir: pathlib.Path, changes: Sequence[str], result: Mapping[str, Any]
    ) -> list[Any]:
        study, found = self._cfg.study.value, result["metrics"]
        names = study.results or study.beside
        if changes and names:
            run = cli.restore(workdir, changes=changes, trust=True)
            found = run.experiment.evaluate(run.state) if run.experiment.evaluate else {}
        own = [
            {"metric": name, "value": found.get(f"test/{name}", found.get(name)), "real": None}
            for name in names
        ]
        return own if study.results else self._evaluate(workdir, changes) + own

    def _evaluate(self, workdir: pathlib.Path, changes: Sequence[str]) -> list[rows.Row]:
        cfg = self._cfg
        turn = any("latents" in metric.needs for metric in cfg.metrics.value.values())
        candidate, dataset = samples.of_run(
            str(workdir), "newest", cfg.n, 0, changes, turn=turn, trust=True  # by whom it was trained just now
        )  # fmt: skip
        found: list[rows.Row] = []
        metrics = cfg.metrics.value
        for extractor in cfg.features.value(dataset):
            found += evaluate.evaluate([candidate], dataset, extractor, metrics, 0)
            metrics = {name: metric for name, metric in metrics.items() if not metric.of_pixels}
        rows.add(workdir / "metrics.json", found)
        return found

    def table(self) -> str:
        """Means and standard deviations over seeds, in Markdown; under them the same of real images."""
        every = [known for members in self.by_arm.values() for known in members]
        metrics = dict.fromkeys(row["metric"] for known in every for row in known["numbers"])
        study, title = self._cfg.study.value, self._cfg.study.value.says
        if not study.results:
            numbers = (row for known in every for row in known["numbers"] if "reference" in row)
            of = dict.fromkeys(row["reference"] for row in numbers)
            title += f" {counted(self._cfg.n, 'sample')} of each run against {', '.join(of)}."
        lines = [
            title,
            "",
            f"| method | {' | '.join(metrics)} | epsilon | minutes | seeds |",
            "|---" * (len(metrics) + 4) + "|",
        ]
        for name, members in self.by_arm.items():
            if members:
                cells = [_cell(members, metric, "value") for metric in metrics]
                spent = [known["epsilon"] for known in members if known["epsilon"] is not None]
                cells += [f"{max(spent):.3g}" if spent else ""]
                cells += [mean_of([known["minutes"] for known in members])]
                cells += [", ".join(map(_seed, members))]
                lines.append(f"| {name} | {' | '.join(cells)} |")
        if not study.results:  # whose real images are others for every method
            real = [_cell(every, metric, "real") for metric in metrics]
            lines.append(f"| real images | {' | '.join(real)} | | | |")
        return "\n".join(lines) + "\n"

    def _write(self) -> None:
        record = {
            "study": str(self._cfg.study),
            "says": self._cfg.study.value.says,
            "runs": self._rows,
        }
        try:
            write_json(self._folder / "study.json", record)
            with replaced(self._folder / "table.md") as temporary:
                temporary.write_text(self.table(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {error.filename}: {error.strerror}") from None


def _cell(members: Sequence[Mapping[str, Any]], metric: str, column: str) -> str:
    numbers = (row for known in members for row in known["numbers"] if row["metric"] == metric)
    found = [row[column] for row in numbers if row[column] is not None]
    # What stands beside the values is the same for every seed, and has no deviation.
    return mean_of(found if column == "value" else list(dict.fromkeys(found)))


def _seed(known: Mapping[str, Any]) -> str:
    return f"{known['seed']} (broken)" if known["broken"] else str(known["seed"])


def _minutes(result: Mapping[str, Any]) -> float:
    """How long a run took, with all that belongs to it."""
    return result.get("timings", {}).get("total_s", math.nan) / 60


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
