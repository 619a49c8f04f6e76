"""Explains a trained run: what its generator has learned, and what its discriminator looks at.

Run:     python -m experiments.interpret --run=runs/mnist_gan/default
             everything that the run can have, as numbers, pictures and a page to explore
         python -m experiments.interpret --run=runs/image_gan/cgan28 --what=directions,units
             only some of it
         python -m experiments.interpret --run=runs/mnist_gan/default --what=inversion --image=mine.png
             the latents of a picture of your own
         python -m experiments.interpret --run=runs/vae/default --workdir=runs/vae/default/interpret
             in the run's directory, where its report.html links to the page

The parts are:

directions   what moves samples: SeFa, GANSpace, the Jacobian's singular vectors and attributes of samples
path         how fast samples change: perceptual path length, the Jacobian's spectrum, interpolations
attribution  what D, and a classifier of the dataset, look at, with what each map leaves unexplained
inversion    the latents of held-out images, with samples of the run as the control
neighbors    the training images nearest to samples, in pixels and in features of the classifier
units        what the ablation of each unit of a layer does to samples and classes
spectrum     the eigenvalues of the game of G and D at the checkpoints that there are

``interpret.json`` has all numbers, ``explore.html`` shows everything and needs no server. Any run with a generator of
images from latents can be explained. A part that it cannot have is left out, with a sentence. Of a private run nothing
is shown of its training images.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import bpgan
from bpgan import cli, data
from bpgan.data.images import Form, Unreadable, decode
from bpgan.explain.parts import PARTS
from bpgan.explain.subject import Absent, Found, Subject, Wanted, choose_layer, shape_of
from bpgan.files import write_json
from bpgan.report import explore
from bpgan.report.page import update_report
from bpgan.runtime import images
from bpgan.runtime.records import UNACCOUNTED, warn
from bpgan.trained.run import Run
from bpgan.types import UserError
from bpgan.version import __version__


def parse_parts(text: str) -> tuple[str, ...]:
    """The parts that are asked for; none of an empty text. Raises ValueError."""
    found = tuple(dict.fromkeys(text.split(","))) if text else ()
    if unknown := [name for name in found if name not in PARTS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.RUN
    checkpoint: str = cli.CHECKPOINT
    what: cli.Parsed[tuple[str, ...]] = cli.field(
        "", "parts, separated by commas; empty: all that the run can have", parse=parse_parts
    )
    dataset: cli.Parsed[data.Name | None] = cli.MOVED
    directions: int = cli.field(5, "directions of each method", low=1)
    samples: int = cli.field(2000, "samples that averages are taken over", low=50)
    megapixels: float = cli.field(
        9.0, "million pixel values behind the sliders of the page, which seeds and steps are chosen to fit",
        low=0.01, high=100,
    )  # fmt: skip
    layer: str = cli.field("", "layer whose units are ablated; empty: one in the middle of G")
    image: str = cli.field("", "pictures of your own to invert, separated by commas")
    iterations: int = cli.field(1000, "steps of the inversion", low=1)
    seed: int = cli.field(0, "random seed of latents and choices", low=0, high=2**31)
    trust: bool = cli.TRUST


PRESETS = {"smoke": dict(samples=50, megapixels=0.2, iterations=5, directions=2)}

# The command --------------------------------------------------------------------------------------------------------


def run(cfg: Config) -> None:
    """Explains, prints tables, and writes ``interpret.json``, pictures and ``explore.html``.

    Raises:
      UserError: for a run without a generator of images, flags that do not fit it, and a part that was asked for by
        name and cannot be had.
    """
    if not cfg.run:
        raise UserError("must name a run directory", argument="run")
    out = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    opened = bpgan.load(cfg.run, cfg.checkpoint, trust=cfg.trust)
    with opened.settings():
        subject = _subject(cfg, opened)
        found, seconds = _explained(subject, cfg.what.value)
    _write(subject, out, found, seconds)


def _subject(cfg: Config, opened: Run) -> Subject:
    """The run, if it draws images from latents and all flags fit it; before any long work."""
    if "generator" not in opened.networks or opened.algorithm.latents is None:
        reason = f"a run of {opened.experiment} has no generator that draws from latents"
        raise UserError(reason, argument="run", value=cfg.run)
    if opened.told:
        reason = (
            f"a run of {opened.experiment} draws what {opened.told} say, which is not explained"
        )
        raise UserError(reason, argument="run", value=cfg.run)
    shape = shape_of(opened)
    if len(shape) != 3 or shape[-1] not in (1, 3, 4):
        reason = f"a run of {opened.experiment} draws arrays {list(shape)}, which are not images"
        raise UserError(reason, argument="run", value=cfg.run)
    dimensions = int(np.prod(opened.latents(1).shape[1:]))
    if cfg.directions > dimensions:
        reason = f"must be at most {dimensions}, the dimensions of the latents"
        raise UserError(reason, argument="directions", value=cfg.directions)
    wanted = Wanted(
        cfg.run,
        cfg.dataset.value,
        cfg.directions,
        cfg.samples,
        cfg.megapixels,
        cfg.layer,
        cfg.iterations,
        cfg.seed,
        cfg.trust,
        _pictures(cfg, shape),
    )
    subject = Subject(wanted, opened)
    if cfg.layer:
        choose_layer(cfg.layer, subject.layers())
    return subject


def _pictures(cfg: Config, shape: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    """The user's own, uint8 ``[h, w, c]``, with their names. Raises a UserError for any that does not fit."""
    if not cfg.image:
        return []
    if cfg.what.value and "inversion" not in cfg.what.value:
        reason = "has a part in the inversion only, which `what` does not name"
        raise UserError(reason, argument="image", value=cfg.image, beside=["what"])
    height, width, channels = shape
    found = []
    for text in cfg.image.split(","):
        try:
            content = pathlib.Path(text).expanduser().read_bytes()
            image = decode(content, Form(channels=channels)).pixels
        except (OSError, Unreadable) as error:
            reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise UserError(reason, argument="image", value=text) from None
        if image.shape[:2] != (height, width):
            size = "{1}x{0}".format(*image.shape)
            reason = f"is {size} pixels, must be {width}x{height} as those of the run"
            raise UserError(reason, argument="image", value=text)
        found.append((pathlib.Path(text).name, image))
    return found


def _explained(subject: Subject, asked: Sequence[str]) -> tuple[dict[str, Found], dict[str, float]]:
    """What the parts found, by their names, and how many seconds of CPU each took."""
    found, seconds = {}, {}
    for name in asked or PARTS:
        start = time.process_time()
        print(f"{name} ...", flush=True)
        try:
            found[name] = PARTS[name](subject)
        except Absent as absent:
            if asked:
                raise UserError(str(absent), argument="what", value=name) from None
            subject.left_out.append(f"{name}: {absent}")
        except UserError as error:  # of a network that diverged, for example
            if error.argument in cli.flags_of(Config):
                raise
            if asked:
                raise UserError(error.reason, argument="what", value=name) from None
            subject.left_out.append(f"{name}: {error}")
        seconds[name] = round(time.process_time() - start, 2)
    return found, seconds


def _write(
    subject: Subject, out: pathlib.Path, found: Mapping[str, Found], seconds: Mapping[str, float]
) -> None:
    """Files and the tables for a terminal."""
    wanted, opened = subject.wanted, subject.run
    trained = opened.record.dataset
    where = {} if trained is None else {"dataset": f"{trained.name} {trained.split}"}
    facts = {
        "run": wanted.run,
        "run_id": opened.record.run,
        "experiment": opened.experiment,
        "step": opened.step,
        "seed": wanted.seed,
        "private": opened.private,
        "classifier": subject.net_used,
        "versions": {"bpgan": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "cpu_seconds": dict(seconds),
        **where,
    }
    numbers = facts | {name: each.numbers for name, each in found.items()}
    shows: dict[str, Any] = {}
    for each in found.values():
        for field, value in each.shows.items():
            shows[field] = [*shows.get(field, ()), *value] if isinstance(value, list) else value
    about = [
        f"{opened.experiment}, checkpoint of step {opened.step:,}, seed {wanted.seed}.",
        *(f"Trained on {name}." for name in where.values()),
    ]
    notes = [f"{wanted.run} is private; the numbers {UNACCOUNTED}"] if opened.private else []
    page = explore.Explored(wanted.run, about, **shows, notes=notes, left_out=subject.left_out)
    try:
        write_json(out / "interpret.json", _plain(numbers | {"left_out": subject.left_out}))
        for each in found.values():
            for name, picture in each.pictures.items():
                images.save_png(out / f"{name}.png", picture)
        explore.write_page(out / "explore.html", page)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    if pathlib.Path(wanted.run).resolve() in (out.resolve(), out.resolve().parent):
        update_report(wanted.run)  # so that it leads to the page
    if opened.private:
        warn(f"{wanted.run}: is private; the numbers {UNACCOUNTED}")
    print("\n".join(line for table in shows.get("tables", ()) for line in ["", *table.text()]))
    print("\n".join(f"left out: {text}" for text in subject.left_out))
    print(f"wrote {out / 'interpret.json'} and {out / 'explore.html'}")


def _plain(value: Any) -> Any:
    """For JSON, which has no numbers that are not finite: these are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
