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
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bpgan
from bpgan import cli, data
from bpgan.evaluation.features import load_classifier
from bpgan.evaluation.images import embed_split, progress
from bpgan.files import write_json
from bpgan.insight import attribution, directions, dynamics, geometry, inversion, units
from bpgan.metrics.features import Extractor
from bpgan.metrics.neighbors import nearest
from bpgan.report import explore, plot
from bpgan.report.tables import Table
from bpgan.runtime import images, remote
from bpgan.runtime.records import UNACCOUNTED, warn
from bpgan.trained.run import Function, Run, parse_checkpoint
from bpgan.types import UserError, counted, stream
from bpgan.version import __version__

_BATCH = 200  # samples at a time
_COMPONENTS = 1024  # numbers of a layer whose principal components are computed
_FAR = 3.0  # standard deviations to which directions are followed


def parse_parts(text: str) -> tuple[str, ...]:
    """The parts that are asked for; none of an empty text. Raises ValueError."""
    found = tuple(dict.fromkeys(text.split(","))) if text else ()
    if unknown := [name for name in found if name not in PARTS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return found


def _name(text: str) -> data.Name | None:
    return data.parse(text) if text else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.field("", "run directory, also gs://... or s3://...", check=remote.check_place)
    checkpoint: str = cli.field(
        "newest", "newest, best (by the run's --keep) or a step", check=parse_checkpoint
    )
    what: cli.Parsed[tuple[str, ...]] = cli.field(
        "", "parts, separated by commas; empty: all that the run can have", parse=parse_parts
    )
    dataset: cli.Parsed[data.Name | None] = cli.field(
        "", "where the data of the run are now; empty: where they were", parse=_name
    )
    directions: int = cli.field(5, "directions of each method", low=1)
    samples: int = cli.field(2000, "samples of the run that numbers are means over", low=50)
    megapixels: float = cli.field(
        8.0, "million numbers of pixels on the page, by which seeds and steps are chosen",
        low=0.01, high=100,
    )  # fmt: skip
    layer: str = cli.field("", "whose units are ablated; empty: one in the middle of G")
    image: str = cli.field("", "pictures of your own to invert, separated by commas")
    iterations: int = cli.field(300, "steps of the inversion", low=1)
    seed: int = cli.field(0, "of latents and of every choice at random", low=0, high=2**31)
    trust: bool = cli.TRUST


PRESETS = {"smoke": dict(samples=50, megapixels=0.2, iterations=5, directions=2)}


class Absent(Exception):
    """Why a run cannot have a part, as a sentence."""


class Found(NamedTuple):
    """What a part found.

    Attributes:
      numbers: for ``interpret.json``.
      shows: fields of ``explore.Explored``.
      pictures: uint8 ``[h, w, c]`` by the names of their files.
    """

    numbers: dict[str, Any]
    shows: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}


class Data(NamedTuple):
    """The training split of a run and another one, which it has not seen."""

    trained: data.Dataset
    others: data.Dataset


class Space(NamedTuple):
    """Where directions are: the latents, or the styles of a network that makes some of them.

    Attributes:
      name: ``z`` or ``w``.
      draw: ``(points[n, ...], labels[n] or nothing) -> samples``, traceable.
      points: ``(z[n, ...], labels or None) -> points``, of latents.
      bound: what the numbers of a point may not exceed, of latents that are uniform; infinite else.
    """

    name: str
    draw: Callable[..., Any]
    points: Callable[[Any, Any], np.ndarray]
    bound: float


class Subject:
    """A run that is being explained, with what the parts share.

    Attributes:
      cfg, run: the flags and the run.
      generator: ``(z, labels) -> samples``, without truncation.
      left_out: sentences on what cannot be had.
    """

    def __init__(self, cfg: Config, run: Run):
        self.cfg, self.run = cfg, run
        whole = vars(run.config).get("truncation")
        self.generator: Function = run.generator_with(0.0) if whole else run.generator
        self.left_out: list[str] = []
        self._programs: dict[Any, Any] = {}
        self.shape = tuple(
            self.draw(self.space_of_latents, self.latents(1), self.labels(1)).shape[1:]
        )

    @property
    def names(self) -> list[str]:
        """Of the classes that G draws by; one empty name without labels."""
        run = self.run
        return [run.class_names[y] if run.class_names else str(y) for y in range(run.classes)] or [
            ""
        ]

    def latents(self, n: int, seed: int = 0) -> np.ndarray:
        """``z[n, ...]``, without truncation."""
        truncation = 0.0 if vars(self.run.config).get("truncation") else None
        return self.run.latents(n, seed=self.cfg.seed + seed, truncation=truncation)

    def labels(self, n: int) -> np.ndarray | None:
        """In turn; None of a run without labels."""
        return np.arange(n, dtype=np.int32) % self.run.classes if self.run.classes else None

    @functools.cached_property
    def space_of_latents(self) -> Space:
        """z."""
        bound = 1.0 if np.abs(self.latents(500)).max() <= 1 else np.inf
        generator = self.generator
        return Space("z", lambda z, *y: generator(z, *y), lambda z, y: np.asarray(z), bound)

    @functools.cached_property
    def space_of_styles(self) -> Space | None:
        """w, of a network with a mapping; None of others."""
        networks = self.run.networks
        if "synthesis" not in networks:
            return None
        mapping, synthesis = jax.jit(networks["mapping"]), networks["synthesis"]

        def draw(w: Any, *y: Any) -> Any:
            del y  # they are in the styles
            return synthesis(w)

        return Space("w", draw, lambda z, y: np.asarray(mapping(z, *self.given(y))), np.inf)

    @property
    def space(self) -> Space:
        """Where directions are: that of styles where there is one."""
        return self.space_of_styles or self.space_of_latents

    def given(self, y: Any) -> tuple[Any, ...]:
        """Labels as arguments."""
        return () if y is None else (y,)

    def bound(self, space: Space, y: Any = None) -> Callable[[Any], Any]:
        """``points[n, ...] -> samples``, with labels that are repeated if there are more points."""
        y = self.labels(_BATCH) if y is None else y
        if y is None:
            return space.draw
        return lambda points: space.draw(points, jnp.resize(jnp.asarray(y), (len(points),)))

    def draw_and_score(
        self, space: Space, points: np.ndarray, y: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples as bytes, and D's logits of them, None without a D."""
        if space.name not in self._programs:
            d = self.run.networks.get("discriminator")

            @jax.jit
            def program(points: Any, *y: Any) -> Any:
                x = space.draw(points, *y)
                return x, (d(x, *y) if d else jnp.zeros(len(x)))

            self._programs[space.name] = program
        tell = progress("drawing", len(points), "samples")
        tiles, scores = [], []
        for start in range(0, len(points), _BATCH):
            part = np.resize(points[start : start + _BATCH], (_BATCH, *points.shape[1:]))
            labels = () if y is None else (np.resize(y[start : start + _BATCH], _BATCH),)
            x, score = self._programs[space.name](part, *labels)
            tiles.append(images.to_bytes(np.asarray(x, np.float32)))
            scores.append(np.asarray(score, np.float64))
            tell(min(start + _BATCH, len(points)))
        n, has_d = len(points), "discriminator" in self.run.networks
        return np.concatenate(tiles)[:n], np.concatenate(scores)[:n] if has_d else None

    def draw(self, space: Space, points: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        """Samples as bytes."""
        return self.draw_and_score(space, points, y)[0]

    @functools.cached_property
    def data(self) -> Data | str:
        """The data of the run, or why they cannot be had."""
        try:
            return data_of(self.cfg, self.run)
        except UserError as error:
            if self.cfg.dataset:
                raise
            return cli.message_of(error)

    def need_data(self) -> Data:
        """Raises Absent, if they cannot be had or must not be shown."""
        if self.run.private:
            raise Absent("the run is private, so that nothing is shown of its training images")
        if isinstance(self.data, str):
            raise Absent(self.data)
        return self.data

    @functools.cached_property
    def classifier(self) -> Extractor | str:
        """Of the dataset, or why there is none."""
        if isinstance(self.data, str):
            return f"there is no classifier ({self.data})"
        if self.data.trained.classes < 2:
            return "there is no classifier: the dataset has no labels"
        try:
            return load_classifier(str(self.data.trained.name), 0)
        except UserError as error:
            return f"there is no classifier ({cli.message_of(error)})"

    @property
    def net(self) -> Extractor | None:
        """The classifier if there is one."""
        return None if isinstance(self.classifier, str) else self.classifier

    @property
    def net_used(self) -> str | None:
        """The name of the classifier, if any part asked for it."""
        return self.net.name if "classifier" in vars(self) and self.net else None

    @property
    def names_of_data(self) -> list[str]:
        """Of the classes of the dataset."""
        assert isinstance(self.data, Data)
        known = self.data.trained.class_names
        return list(known or map(str, range(self.data.trained.classes)))

    def logits(self, x: Any) -> np.ndarray:
        """The classifier's, of samples as floats."""
        assert self.net is not None and self.net.logits is not None
        return self.net.logits(images.to_bytes(np.asarray(x, np.float32)))


def data_of(cfg: Config, opened: Run) -> Data:
    """Raises a UserError if a run was trained on no dataset of images, or its data are gone or others."""
    if opened.record.dataset is None or "dataset" not in vars(opened.config):
        raise UserError(f"a run of {opened.experiment} has no dataset of images")
    name = cfg.dataset.value or vars(opened.config)["dataset"]
    hint = "" if cfg.dataset else "; if the data have moved, `dataset` says where to"
    try:
        trained, held = data.load_for_training(name, bool(opened.config.eval_every.value))
        others = held or data.load(name, "test")
    except UserError as error:
        raise UserError(f"the data are not there ({cli.message_of(error)}){hint}") from None
    planted = vars(opened.config).get("canaries")
    whole = planted.value.plant(trained) if planted else trained
    if whole.sha256 != opened.record.data:
        reason = f"{name} holds other data than those that {cfg.run} was trained on{hint}"
        if cfg.dataset:
            raise UserError(reason, argument="dataset", value=cfg.dataset)
        raise UserError(reason)
    return Data(trained, others)


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
        own = _pictures(cfg, subject)
        found, seconds = _explained(subject, own)
    _write(subject, out, found, seconds)


def _subject(cfg: Config, opened: Run) -> Subject:
    """The run, if it draws images from latents, of at least as many dimensions as directions are asked for."""
    if "generator" not in opened.networks or opened.algorithm.latents is None:
        reason = f"a run of {opened.experiment} has no generator that draws from latents"
        raise UserError(reason, argument="run", value=cfg.run)
    one = opened.sample(1).shape[1:]
    if len(one) != 3 or one[-1] not in (1, 3, 4):
        reason = f"a run of {opened.experiment} draws arrays {list(one)}, which are not images"
        raise UserError(reason, argument="run", value=cfg.run)
    dimensions = int(np.prod(opened.latents(1).shape[1:]))
    if cfg.directions > dimensions:
        reason = f"must be at most {dimensions}, the dimensions of the latents"
        raise UserError(reason, argument="directions", value=cfg.directions)
    return Subject(cfg, opened)


def _pictures(cfg: Config, subject: Subject) -> list[tuple[str, np.ndarray]]:
    """The user's own, uint8 ``[h, w, c]`` by their names. Raises a UserError for any that does not fit."""
    from PIL import Image

    if not cfg.image:
        return []
    if cfg.what.value and "inversion" not in cfg.what.value:
        reason = "has a part in the inversion only, which `what` does not name"
        raise UserError(reason, argument="image", value=cfg.image, beside=["what"])
    height, width, channels = subject.shape
    found = []
    for text in cfg.image.split(","):
        try:
            with Image.open(pathlib.Path(text).expanduser()) as picture:
                image = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or "is no picture that can be read"
            raise UserError(reason, argument="image", value=text) from None
        if image.size != (width, height):
            size = "{}x{}".format(*image.size)
            reason = f"is {size} pixels, must be {width}x{height} as those of the run"
            raise UserError(reason, argument="image", value=text)
        found.append((pathlib.Path(text).name, np.asarray(image).reshape(subject.shape)))
    return found


def _explained(
    subject: Subject, own: Sequence[tuple[str, np.ndarray]]
) -> tuple[dict[str, Found], dict[str, float]]:
    """What the parts found, by their names, and how many seconds of CPU each took."""
    asked = subject.cfg.what.value
    found, seconds = {}, {}
    for name in asked or PARTS:
        start = time.process_time()
        print(f"{name} ...", flush=True)
        make = PARTS[name]
        try:
            found[name] = make(subject, own) if make is inverted else make(subject)
        except Absent as absent:
            if asked:
                raise UserError(str(absent), argument="what", value=name) from None
            subject.left_out.append(f"{name}: {absent}")
        seconds[name] = round(time.process_time() - start, 2)
    return found, seconds


def _write(
    subject: Subject, out: pathlib.Path, found: Mapping[str, Found], seconds: Mapping[str, float]
) -> None:
    """Files and the tables for a terminal."""
    cfg, opened = subject.cfg, subject.run
    trained = opened.record.dataset
    where = {} if trained is None else {"dataset": f"{trained.name} {trained.split}"}
    facts = {
        "run": cfg.run,
        "run_id": opened.record.run,
        "experiment": opened.experiment,
        "step": opened.step,
        "seed": cfg.seed,
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
        f"{opened.experiment}, checkpoint of step {opened.step:,}, seed {cfg.seed}.",
        *(f"Trained on {name}." for name in where.values()),
    ]
    notes = [f"{cfg.run} is private; the numbers {UNACCOUNTED}"] if opened.private else []
    page = explore.Explored(cfg.run, about, **shows, notes=notes, left_out=subject.left_out)
    try:
        write_json(out / "interpret.json", numbers | {"left_out": subject.left_out})
        for each in found.values():
            for name, picture in each.pictures.items():
                images.save_png(out / f"{name}.png", picture)
        explore.write_page(out / "explore.html", page)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    if opened.private:
        warn(f"{cfg.run}: is private; the numbers {UNACCOUNTED}")
    print("\n".join(line for table in shows.get("tables", ()) for line in _lines(table)))
    print("\n".join(f"left out: {text}" for text in subject.left_out))
    print(f"wrote {out / 'interpret.json'} and {out / 'explore.html'}")


def _lines(table: Table) -> list[str]:
    """A table for a terminal."""
    rows = [[text.partition("\n")[0] for text in table.head]]
    rows += [[cell if isinstance(cell, str) else "" for cell in row] for row in table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return ["", table.title, *(f"  {line}" for line in cells)]


# Directions ---------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What of the sliders fits the page: seeds, labels, steps of a strip, pairs of directions and steps of a grid."""

    seeds: int
    labels: int
    steps: int
    pairs: Sequence[tuple[int, int]]
    grid: int

    @classmethod
    def of(cls, budget: float, size: int, classes: int, methods: int, k: int) -> "Plan":
        """The finest that has six samples to start from, or the coarsest.

        Args:
          budget: numbers of pixels on the page; size: those of a sample.
          classes: of the labels; 0: none.
          methods: that have strips; the first one also has grids.
          k: directions of a method.
        """
        pairs = [(0, 1), (0, 2), (1, 2)] if k > 2 else [(0, 1)] * (k > 1)
        plan = cls(1, 1, 5, [], 0)
        for steps, some, grid in ((11, pairs, 7), (9, pairs[:1], 7), (7, pairs[:1], 5), (5, [], 0)):
            each = size * (methods * k * steps + len(some) * grid**2 + 6)
            bases = max(1, int(budget // each))
            labels = min(max(classes, 1), 10, bases)
            seeds = min(bases // labels, 3 if classes else 24)
            plan = cls(seeds, labels, steps, some, grid)
            if seeds * labels >= min(6, max(classes, 6)):
                break
        return plan


class Method(NamedTuple):
    """The directions of a method, and what to call them."""

    name: str
    vectors: np.ndarray
    names: list[str]
    says: str
    numbers: dict[str, Any]


def walked(subject: Subject) -> Found:
    """The part ``directions``."""
    cfg, space, shape = subject.cfg, subject.space, subject.shape
    methods = _methods(subject, space)
    if not methods:
        raise Absent("no method finds directions in this generator")
    size = int(np.prod(shape))
    plan = Plan.of(1e6 * cfg.megapixels, size, subject.run.classes, len(methods), cfg.directions)
    seeds = [cfg.seed + i for i in range(plan.seeds)]
    chosen = np.linspace(0, max(subject.run.classes - 1, 0), plan.labels).astype(np.int32)
    z = np.repeat(
        np.concatenate([subject.latents(1, i) for i in range(plan.seeds)]), plan.labels, 0
    )
    y = np.tile(chosen, plan.seeds) if subject.run.classes else None
    start = space.points(z, y)
    bases = explore.Bases(seeds, [subject.names[i] for i in chosen])
    draws = _draws(subject, space, 1000)
    walks = [
        _walk(subject, space, method, start, y, draws, plan if i == 0 else plan._replace(pairs=[]))
        for i, method in enumerate(methods)
    ]
    tables, effects = _effects(subject, space, methods, draws)
    pictures = {
        f"traversals_{method.name.lower().replace(' ', '_')}": _traversal(
            subject, space, method, start, y, draws
        )
        for method in methods
    }
    numbers = {m.name: m.numbers | {"effects": effects.get(m.name)} for m in methods}
    numbers |= {"space": space.name, "steps": list(walks[0].steps), "seeds": seeds}
    strips = _truncated(subject, seeds, plan, y)
    shows = {"bases": bases, "walks": walks, "strips": strips, "tables": tables}
    return Found(numbers, shows, pictures)


def _draws(subject: Subject, space: Space, n: int) -> np.ndarray:
    """Points as they are drawn."""
    return space.points(subject.latents(n, 500), subject.labels(n))


def _methods(subject: Subject, space: Space) -> list[Method]:
    """Those that find directions in a generator; of the others why not is told."""
    found = []
    for make in (_sefa, _ganspace, _jacobian, _attributes):
        try:
            found.append(make(subject, space))
        except (UserError, Absent, NotImplementedError) as error:
            name = make.__name__.strip("_").replace("sefa", "SeFa").replace("ganspace", "GANSpace")
            reason = cli.message_of(error) if isinstance(error, UserError) else str(error)
            subject.left_out.append(f"directions by {name}: {reason}")
    return found


def _named(name: str, found: directions.Directions, what: str, says: str) -> Method:
    names = [f"{i + 1} ({100 * share:.0f} % {what})" for i, share in enumerate(found.shares)]
    numbers = {"vectors": found.vectors, "values": found.values, "shares": found.shares}
    listed = {key: np.asarray(value).tolist() for key, value in numbers.items()}
    return Method(name, np.asarray(found.vectors), names, says, listed)


def _sefa(subject: Subject, space: Space) -> Method:
    kernels = directions.first_maps(subject.bound(space), _draws(subject, space, 2))
    found = directions.sefa(list(kernels.values()), subject.cfg.directions)
    found = found._replace(vectors=found.vectors.reshape(-1, *_draws(subject, space, 1).shape[1:]))
    says = f"What the first affine map of G stretches most, of {counted(len(kernels), 'layer')}."
    return _named("SeFa", found, "of the squares", says)


def _ganspace(subject: Subject, space: Space) -> Method:
    g, n, block = subject.bound(space), 5 * subject.cfg.samples, 500
    if space.name == "w":
        activation, of = (lambda w: w), "of the styles"
    else:
        layer = _layer(subject.cfg, units.layers(g, subject.latents(2)))
        whole = int(np.prod(layer.shape)) <= _COMPONENTS

        def activation(z: Any) -> Any:
            a = units.capture(g, z, layer.name)[1]
            return a if whole else a.mean(tuple(range(1, a.ndim - 1)))

        of = f"of the layer {layer.name}" + ", whose pixels are averaged" * (not whole)

    def drawn(i: int) -> np.ndarray:
        return space.points(subject.latents(block, 600 + i), subject.labels(block))

    found = directions.ganspace(
        activation, drawn, n, subject.cfg.directions, in_latents=space.name == "z"
    )
    says = f"Principal components {of}, of {counted(n, 'sample')}."
    return _named("GANSpace", found, "of the variance", says)


def _jacobian(subject: Subject, space: Space) -> Method:
    points, key = _draws(subject, space, 8), stream(jax.random.key(subject.cfg.seed), "jacobian")
    found = directions.jacobian_directions(
        subject.bound(space), points, subject.cfg.directions, key
    )
    says = "What moves samples most, in pixels: the top singular vectors of dG/dz at 8 points."
    return _named("Jacobian", found, "of the squares", says)


def _attributes(subject: Subject, space: Space) -> Method:
    """What tells bright samples from dark ones, and one class from the others where G knows no labels."""
    n, k = subject.cfg.samples, subject.cfg.directions
    points, y = _draws(subject, space, n), subject.labels(n)
    x = subject.draw(space, points, y)
    light = x.reshape(n, -1).mean(1)
    answers = {"bright": light > np.median(light)}
    if subject.net is not None and not subject.run.classes:
        seen = subject.net.logits(x).argmax(1) if subject.net.logits else np.zeros(n)
        answers |= {name: seen == i for i, name in enumerate(subject.names_of_data)}
    found = {}
    for name, answer in answers.items():
        if min(answer.sum(), n - answer.sum()) >= 20:
            found[name] = directions.supervised(points, answer, seed=subject.cfg.seed)
    if not found:
        raise Absent("no attribute varies among the samples")
    gain = {name: each.accuracy - each.controls.mean() for name, each in found.items()}
    best = sorted(gain, key=lambda name: (name != "bright", -gain[name]))[:k]
    numbers = {
        name: {
            "accuracy": each.accuracy,
            "standard_error": each.standard_error,
            "chance": each.chance,
            "calibration": each.calibration,
            "random_directions": float(each.controls.mean()),
            "vector": each.vector.tolist(),
        }
        for name, each in ((name, found[name]) for name in best)
    }
    names = [f"{name} (right {100 * found[name].accuracy:.0f} %)" for name in best]
    says = "Logistic regression of attributes of samples; how often it is right on the half that it was not fitted to."
    return Method("attributes", np.stack([found[n].vector for n in best]), names, says, numbers)


def _moved(
    space: Space, start: np.ndarray, vector: np.ndarray, draws: np.ndarray, step: float
) -> np.ndarray:
    """Points a number of standard deviations along a direction, within the bound of the latents."""
    spread = float(np.tensordot(draws, vector, vector.ndim).std())
    moved = start + np.asarray(step * spread * vector, start.dtype)
    return np.clip(moved, -space.bound, space.bound)


def _walk(
    subject: Subject,
    space: Space,
    method: Method,
    start: np.ndarray,
    y: np.ndarray | None,
    draws: np.ndarray,
    plan: Plan,
) -> explore.Walk:
    """The strips and grids of a method."""
    steps, few = (np.linspace(-_FAR, _FAR, n).round(2).tolist() for n in (plan.steps, plan.grid))
    b, vectors = len(start), method.vectors
    move = functools.partial(_moved, space, draws=draws)

    def tiles(points: list[np.ndarray], *shape: int) -> tuple[np.ndarray, np.ndarray | None]:
        labels = None if y is None else np.tile(y, len(points))
        x, scores = subject.draw_and_score(space, np.concatenate(points), labels)
        x = x.reshape(*shape, b, *x.shape[1:])
        return x, None if scores is None else scores.reshape(*shape, b)

    along = [move(start, vector, step=step) for vector in vectors for step in steps]
    x, scores = tiles(along, len(vectors), len(steps))
    strips = np.moveaxis(x, 2, 0)
    of = None if scores is None else np.moveaxis(scores, 2, 0)
    walk = explore.Walk(method.name, space.name, method.names, steps, strips, of, says=method.says)
    pairs = [(i, j) for i, j in plan.pairs if max(i, j) < len(vectors)]
    if not pairs:
        return walk
    both = [
        move(move(start, vectors[i], step=down), vectors[j], step=across)
        for i, j in pairs
        for down in few
        for across in few
    ]
    x, scores = tiles(both, len(pairs), len(few), len(few))
    of = None if scores is None else np.moveaxis(scores, 3, 1)
    grids = np.moveaxis(x, 3, 1)
    return walk._replace(pairs=pairs, pair_steps=few, grids=grids, grid_scores=of)


def _traversal(
    subject: Subject,
    space: Space,
    method: Method,
    start: np.ndarray,
    y: np.ndarray | None,
    draws: np.ndarray,
) -> np.ndarray:
    """A picture of the first sample along each direction, nine steps."""
    steps = np.linspace(-_FAR, _FAR, 9)
    points = [_moved(space, start[:1], v, draws, step) for v in method.vectors for step in steps]
    labels = None if y is None else np.repeat(y[:1], len(points))
    x = subject.draw(space, np.concatenate(points), labels)
    return images.image_grid(x, columns=9)


def _effects(
    subject: Subject, space: Space, methods: Sequence[Method], draws: np.ndarray
) -> tuple[list[Table], dict[str, Any]]:
    """What each direction does to the classes that a classifier sees, at both ends."""
    if subject.net is None or subject.net.traced is None:
        subject.left_out.append(f"effects on classes: {subject.classifier}")
        return [], {}
    g, logits, names = subject.bound(space), subject.net.traced[1], subject.names_of_data
    found: dict[str, Any] = {}
    rows = []
    for method in methods:
        found[method.name] = []
        for vector, name in zip(method.vectors, method.names, strict=True):
            spread = float(np.tensordot(draws, vector, vector.ndim).std())
            steps = [-_FAR * spread, _FAR * spread]
            effect = directions.effects(g, logits, draws[:_BATCH], vector, steps)
            listed = {key: np.asarray(v).tolist() for key, v in effect._asdict().items()}
            found[method.name].append(listed)
            cells = []
            for change, error in zip(effect.change, effect.standard_error, strict=True):
                k = int(np.abs(change).argmax())
                cells.append(f"{names[k]} {change[k]:+.2f} ± {error[k]:.2f}")
            kept = f"{100 * effect.kept.mean():.0f} %"
            rows.append([method.name, name, *cells, kept])
    head = ["method", "direction", f"at -{_FAR:g} σ", f"at +{_FAR:g} σ", "class kept"]
    note = (
        "The class whose mean probability changes most at both ends, by the classifier of the dataset, and the share of"
        f" samples whose class stays; {counted(min(_BATCH, len(draws)), 'sample')}."
    )
    return [Table("Directions and classes", head, rows, notes=[note])], found


def _truncated(
    subject: Subject, seeds: Sequence[int], plan: Plan, y: np.ndarray | None
) -> list[explore.Strip]:
    """Every sample under truncation, of styles where there are some, else of the latents that the run can bound."""
    styles, z = subject.space_of_styles, subject.space_of_latents
    if styles is not None:
        values = [0.0, 0.25, 0.5, 0.7, 0.85, 1.0]
        w = styles.points(_repeated(subject, plan, None), y)
        many = subject.latents(2000, 700)
        means = {
            label: styles.points(many, None if y is None else np.full(2000, label, np.int32)).mean(
                0
            )
            for label in (set() if y is None else set(y.tolist()))
        } or {None: styles.points(many, None).mean(0)}
        center = np.stack([means[None if y is None else int(y[i])] for i in range(len(w))])
        points, space = [center + psi * (w - center) for psi in values], styles
    elif "truncation" in vars(subject.run.config) and z.bound == np.inf:
        values, space = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0], z
        points = [_repeated(subject, plan, bound) for bound in values]
    else:
        subject.left_out.append(
            "truncation: the run has neither styles nor normal latents that it truncates"
        )
        return []
    b = len(points[0])
    labels = None if y is None else np.tile(y, len(values))
    x, scores = subject.draw_and_score(space, np.concatenate(points), labels)
    tiles = np.moveaxis(x.reshape(len(values), b, *x.shape[1:]), 0, 1)
    of = None if scores is None else scores.reshape(len(values), b).T
    return [explore.Strip("truncation", values, tiles, of)]


def _repeated(subject: Subject, plan: Plan, truncation: float | None) -> np.ndarray:
    """The latents of every seed, once for each label."""
    draw, seed = subject.run.latents, subject.cfg.seed
    if truncation is None:
        z = [subject.latents(1, i) for i in range(plan.seeds)]
    else:
        z = [draw(1, seed=seed + i, truncation=truncation) for i in range(plan.seeds)]
    return np.repeat(np.concatenate(z), plan.labels, 0)


# Paths --------------------------------------------------------------------------------------------------------------


def measured(subject: Subject) -> Found:
    """The part ``path``."""
    cfg, space = subject.cfg, subject.space
    n = min(cfg.samples, 500)
    y = subject.labels(n)
    ends = [space.points(subject.latents(n, seed), y) for seed in (800, 801)]
    straight = space.name == "w" or space.bound < np.inf
    path = geometry.lerp if straight else geometry.slerp
    t = np.random.default_rng(cfg.seed).uniform(size=n).astype(ends[0].dtype)
    g, rows, numbers = subject.bound(space, y), [], {}
    spaces: dict[str, Any] = {"pixels": None}
    if subject.net is not None and subject.net.traced is not None:
        spaces["features of the classifier"] = subject.net.traced[0]
    else:
        subject.left_out.append(f"path length in features: {subject.classifier}")
    for name, features in spaces.items():
        found = geometry.path_length(g, features, *ends, t, path)
        numbers[name] = {"mean": found.mean, "standard_error": found.standard_error, "n": n}
        rows.append([f"path length in {name}", f"{found.mean:.4g}", f"{found.standard_error:.2g}"])
    few = min(16, n)
    dimensions = int(np.prod(ends[0].shape[1:]))
    size = dimensions * int(np.prod(subject.shape)) * few
    k = None if size <= 1 << 26 else min(20, dimensions)
    spectrum = geometry.jacobian_spectrum(g, ends[0][:few], k)
    for what in ("dimension", "count", "condition"):
        each = np.asarray(getattr(spectrum, what), np.float64)
        error = each.std(ddof=1) / np.sqrt(len(each))
        name = {"count": f"singular values above {spectrum.threshold:g} of the largest"}.get(what)
        rows.append([name or f"local {what}", f"{each.mean():.4g}", f"{error:.2g}"])
    numbers["jacobian"] = {key: np.asarray(v).tolist() for key, v in spectrum._asdict().items()}
    numbers |= {"path": path.__name__, "space": space.name}
    note = f"Of {counted(n, 'path')} by {path.__name__} in {space.name}, and of the Jacobian at {few} points."
    table = Table("How samples change", ["what", "mean", "standard error"], rows, notes=[note])
    paths = _interpolated(subject, space, path)
    m, frames = paths.tiles.shape[:2]
    grid = images.image_grid(paths.tiles.reshape(m * frames, *subject.shape), columns=frames)
    shows = {"tables": [table], "paths": paths}
    return Found(numbers, shows, {"interpolations": grid})


def _interpolated(subject: Subject, space: Space, path: Callable[..., Any]) -> explore.Paths:
    """Samples between the first seeds, each path within one class."""
    frames, m, seed = 9, 6, subject.cfg.seed
    y = subject.labels(m)
    z = [np.concatenate([subject.latents(1, i + j) for i in range(m)]) for j in (0, 1)]
    a, b = (space.points(each, y) for each in z)
    points = [np.asarray(path(a, b, t), a.dtype) for t in np.linspace(0, 1, frames)]
    x = subject.draw(space, np.concatenate(points), None if y is None else np.tile(y, frames))
    tiles = np.moveaxis(x.reshape(frames, m, *x.shape[1:]), 0, 1)
    names = [f"seed {seed + i} to {seed + i + 1}" for i in range(m)]
    names = [n if y is None else f"{n}, {subject.names[y[i]]}" for i, n in enumerate(names)]
    return explore.Paths(names, tiles)


# Attribution --------------------------------------------------------------------------------------------------------


def attributed(subject: Subject) -> Found:
    """The part ``attribution``."""
    x, y, captions, references = _examples(subject)
    explained, numbers, tables = [], {}, []
    key = stream(jax.random.key(subject.cfg.seed), "attribution")
    d = subject.run.networks.get("discriminator")
    if d is not None:
        made, found = _maps(d, x, y, references, key)
        explained.append(_record(x, captions, made, "D"))
        found["randomized_weights"] = _randomized(subject, d, x, y)
        numbers["D"] = found
        tables.append(_completeness("What D looks at", made, found["randomized_weights"]))
    else:
        subject.left_out.append(f"attribution of D: a run of {subject.run.experiment} has none")
    if subject.net is not None and subject.net.traced is not None:
        seen = subject.logits(x).argmax(1).astype(np.int32)
        score = attribution.class_logit(subject.net.traced[1])
        made, found = _maps(score, x, seen, references, key)
        names = [
            f"{c}; seen as {subject.names_of_data[k]}" for c, k in zip(captions, seen, strict=True)
        ]
        explained.append(_record(x, names, made, "the classifier of the dataset"))
        numbers["classifier"] = found
        tables.append(_completeness("What the classifier looks at", made, None))
    else:
        subject.left_out.append(f"attribution of a classifier: {subject.classifier}")
    if not explained:
        raise Absent(
            f"a run of {subject.run.experiment} has no discriminator, and {subject.classifier}"
        )
    return Found(
        numbers,
        {"attributed": explained, "tables": tables},
        {"attribution": _overlays(explained[0])},
    )


def _examples(
    subject: Subject,
) -> tuple[np.ndarray, np.ndarray | None, list[str], np.ndarray | None]:
    """Floats of 8 training images, where they may be shown, and of 8 samples; labels, captions, and references."""
    z, y = subject.latents(8, 900), subject.labels(8)
    fakes = subject.draw(subject.space_of_latents, z, y)
    names = subject.names
    captions = [
        f"sample, {names[k]}" if y is not None else "sample" for k in (range(8) if y is None else y)
    ]
    try:
        trained = subject.need_data().trained
    except Absent as absent:
        subject.left_out.append(f"attribution of training images: {absent}")
        return _floats(fakes), y, captions, None
    rng = np.random.default_rng(subject.cfg.seed)
    some = np.sort(rng.choice(trained.length, min(64, trained.length), replace=False))
    reals, of = trained.read(some)
    chosen = rng.choice(len(some), 8, replace=len(some) < 8)
    known = subject.names_of_data
    said = [f"real, {known[k]}" if len(known) > 1 else "real" for k in of[chosen]]
    labels = None if y is None else np.concatenate([of[chosen], y]).astype(np.int32)
    x = np.concatenate([reals[chosen], fakes])
    return _floats(x), labels, [*said, *captions], _floats(reals)


def _floats(x: np.ndarray) -> np.ndarray:
    """Bytes as a network sees them."""
    return (x.astype(np.float32) / 127.5 - 1).astype(np.float32)


def _maps(
    score: Any, x: np.ndarray, labels: Any, references: np.ndarray | None, key: Any
) -> tuple[dict[str, attribution.Attribution], dict[str, Any]]:
    """By method."""
    given = {"labels": labels}
    made = {
        "integrated gradients, black": attribution.integrated_gradients(score, x, -1.0, **given),
        "integrated gradients, blurred": attribution.integrated_gradients(
            score, x, attribution.blurred(x).astype(np.float32), **given
        ),
        "gradient × input": attribution.gradient_times_input(score, x, -1.0, **given),
        "gradient": attribution.gradient(score, x, -1.0, **given),
        "SmoothGrad": attribution.smoothgrad(score, x, -1.0, key, **given),
    }
    if references is not None:
        made["integrated gradients, mean"] = attribution.integrated_gradients(
            score, x, attribution.mean(references).astype(np.float32), **given
        )
        made["expected gradients"] = attribution.expected_gradients(
            score, x, references, key, samples=128, **given
        )
    found = {
        name: {"residual": each.residual.tolist(), "difference": each.difference.tolist()}
        for name, each in made.items()
    }
    return made, found


def _record(
    x: np.ndarray, captions: Sequence[str], made: Mapping[str, attribution.Attribution], of: str
) -> explore.Attributed:
    first = next(iter(made.values()))
    maps = np.stack([each.map.sum(-1) for each in made.values()])
    residuals = np.stack([each.residual for each in made.values()])
    tiles = images.to_bytes(x)
    return explore.Attributed(tiles, captions, first.scores, list(made), maps, residuals, of)


def _randomized(subject: Subject, d: Function, x: np.ndarray, labels: Any) -> dict[str, Any]:
    """The check that maps depend on what D has learned (Adebayo et al. 2018), on four images."""
    algorithm, key = subject.run.algorithm, jax.random.key(subject.cfg.seed + 1)
    fresh = algorithm.networks["discriminator"].variables(algorithm.init(key))
    some, of = x[-4:], None if labels is None else labels[-4:]

    def explain(variables: Any) -> np.ndarray:
        score = Function(d.apply, variables)
        return attribution.integrated_gradients(score, some, -1.0, nodes=16, labels=of).map

    found = attribution.randomized_weights(explain, d.variables, fresh)
    left = float(np.abs(found.correlations[-1]).mean())
    return {"rank_correlations": found.correlations[-1].tolist(), "left": left}


def _completeness(
    title: str, made: Mapping[str, attribution.Attribution], randomized: dict[str, Any] | None
) -> Table:
    rows = [
        [name, f"{np.median(each.residual):.2g}", f"{each.residual.max():.2g}"]
        for name, each in made.items()
    ]
    notes = [
        "What a map leaves unexplained of the score's difference to the baseline, as a share of it."
    ]
    if randomized:
        notes.append(
            f"Of the maps of a D with weights anew, the mean rank correlation is {randomized['left']:.2f} in absolute"
            " value: below 0.3 they depend on what D has learned."
        )
    return Table(title, ["method", "median residual", "greatest"], rows, notes=notes)


def _overlays(record: explore.Attributed) -> np.ndarray:
    """The images above their maps of the first method: red raises the score, blue lowers it."""
    gray = (
        record.images.mean(-1, keepdims=True)
        if record.images.shape[-1] == 1
        else record.images[..., :3]
    )
    plain = np.broadcast_to(gray, (*gray.shape[:3], 3)).astype(np.float64)
    maps = record.maps[0]
    scale = np.percentile(np.abs(maps), 99, axis=(1, 2), keepdims=True)
    a = np.clip(maps / np.where(scale > 0, scale, 1), -1, 1)[..., None]
    color = np.where(a > 0, [230.0, 40.0, 40.0], [50.0, 90.0, 240.0])
    shown = 0.4 * plain * (1 - np.abs(a)) + color * np.abs(a)
    half = max(len(plain) - 8, 0)
    order = [plain[:half], shown[:half], plain[half:], shown[half:]]
    x = np.concatenate([each for each in order if len(each)])
    return images.image_grid(np.rint(x).astype(np.uint8), columns=8)


# Inversion ----------------------------------------------------------------------------------------------------------


def inverted(subject: Subject, own: Sequence[tuple[str, np.ndarray]] = ()) -> Found:
    """The part ``inversion``."""
    space, cfg, count = subject.space, subject.cfg, 4
    z, y = subject.latents(count, 950), subject.labels(count)
    targets = [subject.draw(subject.space_of_latents, z, y)]
    labels = [] if y is None else [y]
    captions = [
        f"sample, {subject.names[k]}" if y is not None else "sample"
        for k in (range(count) if y is None else y)
    ]
    try:
        others = subject.need_data().others
        rng = np.random.default_rng(cfg.seed)
        x, of = others.read(
            np.sort(rng.choice(others.length, min(count, others.length), replace=False))
        )
        known = subject.names_of_data
        targets.append(x)
        labels += [of.astype(np.int32)] * (y is not None)
        captions += [f"held out, {known[k]}" if len(known) > 1 else "held out" for k in of]
    except Absent as absent:
        subject.left_out.append(f"inversion of held-out images: {absent}")
    # A picture of the user's has no label: it is searched for in every class.
    every = subject.run.classes or 1
    for name, image in own:
        targets.append(np.repeat(image[None], every, 0))
        labels += [np.arange(every, dtype=np.int32)] * (y is not None)
        captions += [name if y is None else f"{name}, as {label}" for label in subject.names]
    x = _floats(np.concatenate(targets))
    of = np.concatenate(labels) if labels else None
    restarts = 4
    starts = np.stack([space.points(subject.latents(len(x), 960 + r), of) for r in range(restarts)])
    variance = float(
        np.var(
            _floats(
                subject.draw(
                    subject.space_of_latents, subject.latents(200, 970), subject.labels(200)
                )
            )
        )
    )
    bounds = None if space.bound == np.inf else (-space.bound, space.bound)
    found = inversion.invert(
        space.draw, x, starts, steps=cfg.iterations, labels=of, bounds=bounds, variance=variance
    )
    tiles = images.to_bytes(x)
    record = explore.Inverted(tiles, images.to_bytes(found.images), captions, found.error)
    rows = [
        [c, f"{e:.2g}", "yes" if e <= inversion.FOUND else "no"]
        for c, e in zip(captions, found.error, strict=True)
    ]
    notes = [
        f"Mean squared error over the variance of the pixels of samples. {found.says} The samples are the control: G"
        " can draw them."
    ]
    table = Table("Inversion", ["image", "error", "found"], rows, notes=notes)
    errors = dict(zip(captions, found.error.tolist(), strict=True)) if own else {}
    numbers = {
        "captions": captions, "errors": found.error.tolist(), "restarts": restarts, "steps": cfg.iterations,
        "space": space.name, "of_own": errors,
    }  # fmt: skip
    both = np.concatenate([record.targets, record.found])
    picture = images.image_grid(both, columns=len(captions))
    return Found(numbers, {"inverted": record, "tables": [table]}, {"inversion": picture})


# Neighbors ----------------------------------------------------------------------------------------------------------


def neighboring(subject: Subject) -> Found:
    """The part ``neighbors``."""
    trained = subject.need_data().trained
    size = int(np.prod(subject.shape))
    if trained.length * size > 1 << 28:
        raise Absent(f"{counted(trained.length, 'training image')} are too many to compare at once")
    n, k = 8, 5
    x = subject.draw(subject.space_of_latents, subject.latents(n), subject.labels(n))
    whole, _ = trained.arrays()
    spaces = {"pixels": (x.reshape(n, -1) / 255.0, whole.reshape(len(whole), -1) / np.float32(255))}
    if subject.net is not None:
        features = embed_split(trained, subject.net, logits=True).features
        spaces["features of the classifier"] = (subject.net.function(x), features)
    else:
        subject.left_out.append(f"neighbors in features: {subject.classifier}")
    rng = np.random.default_rng(subject.cfg.seed)
    some = rng.choice(len(whole), min(500, len(whole)), replace=False)
    records, numbers, rows = [], {}, []
    for name, (queries, points) in spaces.items():
        distances, index = nearest(queries, points, min(k, len(whole)))
        records.append(explore.Neighbors(x, whole[index], distances, name))
        numbers[name] = {"distances": distances.tolist(), "indices": index.tolist()}
        few = points[some]
        apart = float(np.median(nearest(few, few, 1, exclude_self=True)[0]))
        rows.append(
            [
                name,
                f"{distances[:, 0].min():.3g}",
                f"{np.median(distances[:, 0]):.3g}",
                f"{apart:.3g}",
            ]
        )
    head = ["in", "nearest", "median", "between training images"]
    note = (
        "Distances of samples to their nearest training image; the last column has the median of those of 500 training"
        " images to each other."
    )
    table = Table("Nearest training images", head, rows, notes=[note])
    first = records[0]
    picture = np.concatenate([first.samples[:, None], first.nearest], 1).reshape(-1, *subject.shape)
    shows = {"neighbors": records, "tables": [table]}
    grid = images.image_grid(picture, columns=1 + first.nearest.shape[1])
    return Found(numbers, shows, {"neighbors": grid})


# Units --------------------------------------------------------------------------------------------------------------


def dissected(subject: Subject) -> Found:
    """The part ``units``."""
    cfg, space = subject.cfg, subject.space_of_latents
    n = min(cfg.samples, 100)
    z, y = subject.latents(n, 990), subject.labels(n)
    g = subject.bound(space, y)
    layers = units.layers(g, z)
    layer = _layer(cfg, layers)
    logits = None if subject.net is None else subject.logits
    if logits is None:
        subject.left_out.append(f"effects of units on classes: {subject.classifier}")
    chosen = np.arange(layer.units)
    if layer.units > 512:
        chosen = np.sort(np.random.default_rng(cfg.seed).choice(layer.units, 512, replace=False))
        subject.left_out.append(f"units: 512 of the {layer.units} of {layer.name} were ablated")
    tell = progress(f"units of {layer.name}", len(chosen), "units")
    found = units.dissect(g, z, layer.name, logits, units=chosen, tell=tell)
    effect = found.pixels if found.histogram is None else found.changed
    assert effect is not None
    top = np.argsort(-effect, kind="stable")[:10]
    head, rows = ["unit", "pixels"], []
    if found.histogram is not None:
        head += ["class histogram", "classes changed", "class that loses most"]
    for i in top:
        row = [str(found.units[i]), f"{found.pixels[i]:.3g}"]
        if found.histogram is not None:
            assert found.changed is not None and found.probabilities is not None
            k = int(found.probabilities[i].argmin())
            row += [f"{found.histogram[i]:.3f}", f"{100 * found.changed[i]:.0f} %"]
            row.append(f"{subject.names_of_data[k]} {found.probabilities[i, k]:+.3f}")
        rows.append(row)
    notes = [
        f"Of {counted(n, 'sample')}: mean change of the pixels, total variation distance between the class histograms,"
        " and the share of samples that become another class, without a unit.",
        f"Controls: nothing ablated changes pixels by {found.none.pixels:.2g}; all units ablated change them by"
        f" {found.all.pixels:.3g}, and {100 * found.all.spread:.3g} % of the spread of the samples is left.",
    ]
    table = Table(f"Units of {layer.name}", head, rows, notes=notes)
    shown = _ablated(subject, g, z[:8], layer, found.units[top[:5]])
    captions = [
        f"{what}" for what in ["as they are", *(f"without unit {u}" for u in found.units[top[:5]])]
    ]
    flat = shown.reshape(-1, *subject.shape)
    pictures = [
        explore.Picture(
            f"Units of {layer.name}", flat, [c for c in captions for _ in range(8)], says=notes[0]
        )
    ]
    numbers = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in found._asdict().items()
        if key not in ("layer", "none", "all")
    }
    numbers |= {"layer": layer.name, "layers": [each.name for each in layers]}
    numbers |= {"none": found.none._asdict(), "all": found.all._asdict()}
    picture = images.image_grid(flat, columns=8)
    return Found(numbers, {"tables": [table], "pictures": pictures}, {"units": picture})


def _layer(cfg: Config, layers: Sequence[units.Layer]) -> units.Layer:
    """The one that is asked for, or one in the middle that has channels if any has."""
    if cfg.layer:
        for layer in layers:
            if layer.name == cfg.layer:
                return layer
        names = ", ".join(layer.name for layer in layers)
        raise UserError(f"must be one of {names}", argument="layer", value=cfg.layer)
    wide = [layer for layer in layers if len(layer.shape) == 3 and layer.units >= 8]
    wide = wide or [layer for layer in layers if "embed" not in layer.name] or list(layers)
    return wide[(len(wide) - 1) // 2]


def _ablated(
    subject: Subject, g: Callable[..., Any], z: np.ndarray, layer: units.Layer, chosen: np.ndarray
) -> np.ndarray:
    """Samples as they are, and without each of some units, ``[1 + u, n, h, w, c]``."""
    off = np.concatenate(
        [np.zeros((1, layer.units), bool), np.arange(layer.units) == chosen[:, None]]
    )
    drawn = jax.jit(jax.vmap(lambda one: units.ablate(g, z, layer.name, one)))(off)
    return images.to_bytes(np.asarray(drawn, np.float32))


# The spectrum -------------------------------------------------------------------------------------------------------


def analyzed(subject: Subject) -> Found:
    """The part ``spectrum``."""
    opened, cfg = subject.run, subject.cfg
    players = getattr(opened.state, "players", {})
    if set(players) != {"g", "d"} or opened.algorithm.objectives is None:
        raise Absent(f"a run of {opened.experiment} is no game of two players")
    trained = subject.need_data().trained
    size = sum(x.size for p in players.values() for x in jax.tree.leaves(p.params))
    iterations = min(30, (1 << 28) // size, size)
    if iterations < 5:
        raise Absent(f"the {size:,} parameters are too many for Arnoldi's iterations in memory")
    config = vars(opened.config)
    rows_of = min(config["batch_size"], 64)
    rng = np.random.default_rng(cfg.seed)
    x, y = trained.read(
        np.sort(rng.choice(trained.length, min(rows_of, trained.length), replace=False))
    )
    dtype = jnp.float64 if config["precision"] == "float64" else jnp.float32
    batch = {"x": jnp.asarray(x, dtype) / 127.5 - 1, "y": jnp.asarray(y)}
    key = stream(jax.random.key(cfg.seed), "spectrum")
    play = dynamics.of_run(opened.algorithm, batch, key, intervals(config))
    found = dynamics.trajectory(
        play, _states(subject), jax.random.fold_in(key, 1), iterations=iterations
    )
    if not found:
        raise Absent("the Jacobian of the game is not finite at any checkpoint")
    rows = [
        [
            f"{step:,}",
            f"{s.max_real:.3g}",
            f"{s.min_real:.3g}",
            f"{s.rotation:.3g}",
            f"{s.step:.3g}",
            "yes" if s.stable else "no",
        ]
        for step, s in found
    ]
    head = ["step", "max Re", "min Re", "max |Im| / |Re|", "step size", "all Re > 0"]
    kind = (
        "all eigenvalues"
        if found[-1][1].exact
        else f"the {len(found[-1][1].eigenvalues)} outermost eigenvalues"
    )
    notes = [
        f"Of {kind} of the game's Jacobian on {counted(len(x), 'training image')} and as many latents. The step size is"
        " min 2 |Re| / |λ|², the largest stable one of simultaneous gradient descent if all Re > 0. Adam takes other"
        " steps."
    ]
    table = Table("The game at its checkpoints", head, rows, notes=notes)
    numbers = {
        "checkpoints": [
            {
                "step": step, "max_real": s.max_real, "min_real": s.min_real, "rotation": s.rotation,
                "largest_stable_step": s.step, "stable": s.stable, "exact": s.exact,
                "eigenvalues": [[float(v.real), float(v.imag)] for v in s.eigenvalues],
            }
            for step, s in found
        ],
        "batch": len(x),
        "iterations": iterations,
    }  # fmt: skip
    svg = plot.svg([_plane(found)], width=700, height=300)
    pictures = [explore.Picture("Eigenvalues of the game", svg=svg, says=notes[0])]
    return Found(numbers, {"tables": [table], "pictures": pictures})


def intervals(config: Mapping[str, Any]) -> list[int]:
    """Of the lazy penalties of a run."""
    penalty = config.get("penalty")
    if not isinstance(penalty, cli.Parsed):
        return []
    terms = getattr(penalty.value, "terms", ())
    return [term.every or config.get("penalty_every", 1) for term in terms]


def _states(subject: Subject) -> list[tuple[int, Any]]:
    """The states of up to eight checkpoints, the newest among them, in order."""
    cfg, opened = subject.cfg, subject.run
    here = [(opened.step, opened.state)]
    folder = pathlib.Path(cfg.run).expanduser() / "checkpoints"
    if remote.is_url(cfg.run) or not folder.is_dir():
        return here
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    steps = [step for step in steps if step != opened.step]
    if len(steps) > 7:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, 7).astype(int)]
    for step in steps:
        try:
            here.append((step, bpgan.load(cfg.run, step, trust=cfg.trust).state))
        except UserError as error:
            subject.left_out.append(f"spectrum at step {step}: {cli.message_of(error)}")
    return sorted(here, key=lambda each: each[0])


def _plane(found: Sequence[tuple[int, dynamics.Spectrum]]) -> plot.Plot:
    """The eigenvalues of the checkpoints in the complex plane."""
    values = np.concatenate([s.eigenvalues for _, s in found])
    x, y = (
        plot.Axis.of([0.0, *values.real], log=False),
        plot.Axis.of([0.0, *values.imag], log=False),
    )
    zero = plot.Shape(x.at([0.0, 0.0]), [0.0, 1.0], 8, "dashed")
    shapes = [zero] + [
        plot.Shape(x.at(s.eigenvalues.real), y.at(s.eigenvalues.imag), i, "dots", 0.75)
        for i, (_, s) in enumerate(found)
    ]
    legend = [(i, f"step {step:,}", "") for i, (step, _) in enumerate(found)]
    return plot.Plot(
        "Im", shapes, x.ticks(), y.ticks(), legend, "imaginary parts", x_name="real parts"
    )


PARTS: dict[str, Callable[..., Found]] = {
    "directions": walked,
    "path": measured,
    "attribution": attributed,
    "inversion": inverted,
    "neighbors": neighboring,
    "units": dissected,
    "spectrum": analyzed,
}
"""By the names of ``--what``."""


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
