"""Evaluates runs, or images from anywhere, against a dataset: distances, diversity, memorization.

Run:     python -m experiments.evaluate --run=runs/mnist_gan/default
         python -m experiments.evaluate --run=runs/a,runs/b,runs/c
             several training seeds: mean and standard deviation
         python -m experiments.evaluate --run=runs/mnist_gan/default_eval_every=1ep --checkpoint=best
             the checkpoint that a run with --eval_every found best on data held out of its training
         python -m experiments.evaluate --run=runs/image_gan/powers --ema=0.08
             the average of G of another length, from the checkpoints of a run with power averages
         python -m experiments.evaluate --samples=folder:PATH --dataset=tfds:fashion_mnist
         python -m experiments.evaluate --run=runs/mnist_gan/default --metrics=fd,my_metrics:sharpness
             a metric of your own, a function or a Metric of bpgan.evaluation.table; --features takes your own, too
         python -m experiments.evaluate --run=runs/mnist_gan/default --n=5000 --save=samples.npz
             keeps the samples, too: --samples=npz:samples.npz reads them, and so does --dataset of every experiment
Papers:  Heusel et al. 2017, arXiv:1706.08500; Binkowski et al. 2018, arXiv:1801.01401; Kynkaanniemi et al. 2019,
         arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797; Meehan et al. 2020, arXiv:2004.05675.

The reference is the test split, which no run has seen, or what --reference names. Beside each value stand the same
metric of real images in the place of the samples, which no generator should beat, and that of an untrained one (of
noise, for --samples), and over the table how many images each of them compares with how many. Samples
are drawn anew, as uint8, from latents that training never sees. Classes of the samples and of the dataset are matched
by their names. ``metrics.json`` says of each number all that it depends on (``bpgan/evaluation/rows.py`` has its
form); that in the directory of a run keeps every evaluation of the run, and the run's report shows it. See
docs/metrics.md for what the numbers mean, and when they lie.
"""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Sequence

from bpgan import cli, data
from bpgan.evaluation import evaluate, rows, samples, table
from bpgan.evaluation.features import FEATURES, Make
from bpgan.files import write_json
from bpgan.runtime import records, remote
from bpgan.types import UserError, counted


def _reference(text: str) -> None:
    if text not in ("test", "train"):
        try:
            data.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}; or test or train") from None


def _file(text: str) -> pathlib.Path | None:
    """``FILE.npz``; None of an empty text. Raises ValueError for another."""
    if text and not text.endswith(".npz"):
        raise ValueError("must be FILE.npz")
    return pathlib.Path(text).expanduser() if text else None


def _runs(text: str) -> list[str]:
    """Directories, separated by commas, of which one that is there may have some in its name.

    Raises ValueError, saying what is allowed.
    """
    parts, paths = text.split(",") if text else [], []
    while parts:
        longest = range(len(parts), 1, -1)
        ends = (i for i in longest if os.path.isdir(os.path.expanduser(",".join(parts[:i]))))
        end = next(ends, 1)
        paths.append(",".join(parts[:end]))
        parts = parts[end:]
    if not all(paths):
        raise ValueError("must be run directories, separated by commas")
    for path in paths:
        remote.check_place(path)
    if len(set(map(os.path.realpath, paths))) < len(paths):  # of which a deviation would be 0
        raise ValueError("must name every run once")
    return paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: cli.Parsed[list[str]] = cli.field(
        "",
        "run directory, also gs://... or s3://...; several, separated by commas: training seeds of one setting",
        parse=_runs,
    )
    checkpoint: str = cli.field(
        "newest",
        "of the runs: newest, best (by their --keep) or a step",
        check=cli.parse_checkpoint,
    )
    samples: cli.Parsed[data.Name | None] = cli.field(
        "", "images instead of a run: npz:FILE, folder:PATH or zip:FILE", parse=data.parse_or_none
    )
    dataset: cli.Parsed[data.Name | None] = cli.field(
        "",
        lambda: f"what to compare with; empty: the run's own; {data.forms()}",
        parse=data.parse_or_none,
    )
    reference: str = cli.field(
        "test",
        "what distances are to: test or train, the splits of the dataset, or another dataset, both splits of it",
        check=_reference,
    )
    features: cli.Parsed[Make] = FEATURES
    metrics: cli.Parsed[dict[str, table.Metric]] = cli.field(
        "all", "all, or names separated by commas; MODULE:NAME for your own", parse=table.parse
    )
    n: int = cli.field(10_000, "samples to draw, or to use of --samples", low=10)
    flags: cli.Parsed[list[str]] = cli.field(
        "",
        "flags that are to be other than the runs', for the samples: truncation=0.7 samples_of=draw; dataset=FORM where"
        " the data of the runs have moved to",
        parse=cli.assignments,
    )
    ema: cli.Parsed[float | None] = cli.AVERAGE
    save: cli.Parsed[pathlib.Path | None] = cli.field(
        "",
        "FILE.npz for the samples: x, uint8 [n, h, w, c], and y and class_names where they have labels",
        restart_safe=True,
        parse=_file,
    )
    seed: int = cli.field(0, "of latents and subsets", low=0, high=2**32 - 1)
    trust: bool = cli.TRUST


PRESETS = {
    "smoke": dict(samples="mnist10k", dataset="mnist10k", metrics="fd", n=500, features="pixels")
}


def run(cfg: Config) -> None:
    """Evaluates, prints the table and writes ``metrics.json``; a run's directory that cannot take it is a warning.

    Raises:
      UserError: for runs or samples that cannot be read, or do not fit the dataset, and for a workdir or a file of
        samples that cannot be written.
    """
    from bpgan.report import page as report
    from bpgan.runtime import images

    out = _check(cfg)
    candidates, dataset = _candidates(cfg)
    for candidate in candidates:
        if candidate.private:
            records.warn(f"{candidate.name}: is private; the numbers {records.UNACCOUNTED}")
    if cfg.save.value:
        samples.save(cfg.save.value, candidates[0])
        print(f"wrote {counted(len(candidates[0].x), 'sample')} to {cfg.save.value}", flush=True)
    found: list[rows.Row] = []
    metrics = cfg.metrics.value
    for extractor in cfg.features.value(dataset):
        found += evaluate.evaluate(candidates, dataset, extractor, metrics, cfg.seed, cfg.reference)
        metrics = {name: metric for name, metric in metrics.items() if not metric.of_pixels}
    if not found:
        raise UserError("none can be had of these images", argument="metrics", value=cfg.metrics)
    print("\n".join([*_circumstances(found), *rows.table(found)]))
    here = [os.path.expanduser(path) for path in cfg.run.value if not remote.is_url(path)]
    kept_there = any(os.path.samefile(path, out) for path in here)
    where = ""
    try:
        images.save_png(out / "samples.png", images.image_grid(candidates[0].x[:100]))
        if not kept_there:  # or it would replace all that is kept there
            write_json(out / "metrics.json", found)
            where = f"; the numbers are in {out / 'metrics.json'}"
            print(f"wrote {out / 'metrics.json'}", flush=True)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    for path in cfg.run.value:
        own = [row for row in found if row["of"] == path]
        try:
            with remote.visited(path, remote.in_run()) as folder:
                count = rows.add(folder / "metrics.json", own)
                page = report.write_report(folder)
            shown = remote.join(path, page.name) if remote.is_url(path) else page
            print(f"added to {shown}, which has {counted(count, 'number')} now")
        except (OSError, UserError) as error:  # of a disk that is read-only, of a damaged log
            print(f"warning: not added to the report of {path} ({error}){where}", file=sys.stderr)


def _check(cfg: Config) -> pathlib.Path:
    """The directory that is written.

    Raises:
      UserError: for flags that do not go together, and for places that cannot be written.
    """
    if bool(cfg.run) == bool(cfg.samples):
        raise UserError("`run` or `samples` is needed, and not both")
    if cfg.samples and cfg.checkpoint != Config.checkpoint:
        reason = "of `run` only; has no effect on `samples`"
        raise UserError(reason, argument="checkpoint", value=cfg.checkpoint)
    if cfg.samples and cfg.flags:
        reason = "of `run` only; must be empty with `samples`"
        raise UserError(reason, argument="flags", value=cfg.flags)
    if cfg.samples and cfg.ema:
        reason = "of `run` only; must be empty with `samples`"
        raise UserError(reason, argument="ema", value=cfg.ema)
    if cfg.samples and not cfg.dataset:
        raise UserError("is needed with `samples`", argument="dataset")
    if cfg.save and len(cfg.run.value) > 1:
        reason = "holds the samples of one run; `run` must name one"
        raise UserError(reason, argument="save", value=cfg.save)
    out, file = cli.make_folder(cfg.workdir, "workdir", cfg.workdir), cfg.save.value
    if file:
        cli.make_folder(file.parent, "save", cfg.save)
        if file.is_dir():
            raise UserError("cannot be written (Is a directory)", argument="save", value=cfg.save)
    return out


def _candidates(cfg: Config) -> tuple[list[samples.Candidate], str]:
    """What is evaluated, and the name of the dataset it is compared with.

    Raises:
      UserError: as ``samples.of_run``; if no dataset is named, and the runs are of several.
    """
    if cfg.samples:
        return [samples.of_files(cfg.samples, cfg.n, cfg.seed)], cfg.dataset
    options = cfg.checkpoint, cfg.n, cfg.seed, cfg.flags.value
    turn = any("latents" in metric.needs for metric in cfg.metrics.value.values())
    of_run = functools.partial(samples.of_run, turn=turn, trust=cfg.trust, ema=cfg.ema.value)
    pairs = [of_run(path, *options) for path in cfg.run.value]
    trained_on = {dataset for _, dataset in pairs}
    if not cfg.dataset and len(trained_on) > 1:
        names = ", ".join(sorted(trained_on))
        reason = f"trained on different data ({names}); name one by `dataset`"
        raise UserError(reason, argument="run", value=cfg.run)
    return [candidate for candidate, _ in pairs], cfg.dataset or trained_on.pop()


def _circumstances(found: Sequence[rows.Row]) -> list[str]:
    """What stands over the table: the checkpoints, how many images were compared with how many, the seed."""
    lines: list[str] = []
    first = found[0]
    for row in {row["of"]: row for row in found if row["checkpoint"]}.values():
        flags = f", {row['flags']}" if row["flags"] else ""
        lines.append(f"{row['of']}: checkpoint of step {row['step']} ({row['checkpoint']}){flags}")
    said = records.compared([records.evaluation(row) for row in found if row["of"] == first["of"]])
    few = first["reference_images"] < first["n"]
    more = few and first["reference"].endswith(" test") and first["train_images"]
    if more and more > first["reference_images"]:
        said.append(f"--reference=train compares with {more:,} images")
    return [*lines, *said, f"seed {first['seed']}"]


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
