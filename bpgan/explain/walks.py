"""Samples along directions: what moves them, and whether their class stays."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan import cli
from bpgan.explain.subject import BATCH, Absent, Found, Space, Subject, choose_layer
from bpgan.insight import directions, units
from bpgan.report import explore
from bpgan.report.tables import Table
from bpgan.runtime import images
from bpgan.types import UserError, counted, stream

_COMPONENTS = 1024  # numbers of a layer whose principal components are computed
_FAR = 3.0  # standard deviations to which directions are followed


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


class Start(NamedTuple):
    """Where directions are followed from.

    Attributes:
      space: of the points.
      points: one for each seed and label; labels: of each, None without labels.
      draws: points as they are drawn, whose standard deviation along a direction is the unit of its steps.
    """

    space: Space
    points: np.ndarray
    labels: np.ndarray | None
    draws: np.ndarray

    def spread(self, vector: np.ndarray) -> float:
        """The standard deviation of the draws along a direction."""
        return float(np.tensordot(self.draws, vector, vector.ndim).std())

    def moved(self, vector: np.ndarray, steps: Sequence[float]) -> list[np.ndarray]:
        """The points so many standard deviations along a direction, within the bound of the latents."""
        spread, kind, bound = self.spread(vector), self.points.dtype, self.space.bound
        moved = (self.points + np.asarray(step * spread * vector, kind) for step in steps)
        return [np.clip(points, -bound, bound) for points in moved]


def walked(subject: Subject) -> Found:
    """The part ``directions``."""
    wanted, space = subject.wanted, subject.space
    methods = _methods(subject, space)
    if not methods:
        raise Absent("no method finds directions in this generator")
    size = int(np.prod(subject.shape))
    plan = Plan.of(
        1e6 * wanted.megapixels, size, subject.run.classes, len(methods), wanted.directions
    )
    seeds = [wanted.seed + i for i in range(plan.seeds)]
    chosen = np.linspace(0, max(subject.run.classes - 1, 0), plan.labels).astype(np.int32)
    y = np.tile(chosen, plan.seeds) if subject.run.classes else None
    points = space.points(_repeated(subject, plan, None), y)
    start = Start(space, points, y, _draws(subject, space, 1000))
    walks = [
        _walk(subject, start, method, plan if i == 0 else plan._replace(pairs=[]))
        for i, method in enumerate(methods)
    ]
    tables, effects = _effects(subject, start, methods)
    pictures = {
        f"traversals_{method.name.lower().replace(' ', '_')}": _traversal(subject, start, method)
        for method in methods
    }
    numbers = {m.name: m.numbers | {"effects": effects.get(m.name)} for m in methods}
    numbers |= {"space": space.name, "steps": list(walks[0].steps), "seeds": seeds}
    shows = {
        "bases": explore.Bases(seeds, [subject.names[i] for i in chosen]),
        "walks": walks,
        "strips": _truncated(subject, seeds, plan, y),
        "tables": tables,
    }
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
    found = directions.sefa(list(kernels.values()), subject.wanted.directions)
    found = found._replace(vectors=found.vectors.reshape(-1, *_draws(subject, space, 1).shape[1:]))
    says = f"What the first affine map of G stretches most, of {counted(len(kernels), 'layer')}."
    return _named("SeFa", found, "of the squares", says)


def _ganspace(subject: Subject, space: Space) -> Method:
    g, n, block = subject.bound(space), 5 * subject.wanted.samples, 500
    activation, of = (_itself, "the styles") if space.name == "w" else _layer(subject, g)

    def drawn(i: int) -> np.ndarray:
        return space.points(subject.latents(block, 600 + i), subject.labels(block))

    found = directions.ganspace(
        activation, drawn, n, subject.wanted.directions, in_latents=space.name == "z"
    )
    says = f"Principal components of {of}, of {counted(n, 'sample')}."
    return _named("GANSpace", found, "of the variance", says)


def _itself(points: Any) -> Any:
    return points


def _layer(subject: Subject, g: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], str]:
    """What a layer in the middle of G makes of latents, averaged over pixels if it is large; and its name."""
    layer = choose_layer("", subject.layers())
    whole = int(np.prod(layer.shape)) <= _COMPONENTS

    def activation(points: Any) -> Any:
        a = units.capture(g, points, layer.name)[1]
        return a if whole else a.mean(tuple(range(1, a.ndim - 1)))

    return activation, f"the layer {layer.name}" + ", whose pixels are averaged" * (not whole)


def _jacobian(subject: Subject, space: Space) -> Method:
    points, key = _draws(subject, space, 8), stream(jax.random.key(subject.wanted.seed), "jacobian")
    found = directions.jacobian_directions(
        subject.bound(space), points, subject.wanted.directions, key
    )
    says = "What moves samples most, in pixels: the top singular vectors of dG/dz at 8 points."
    return _named("Jacobian", found, "of the squares", says)


def _attributes(subject: Subject, space: Space) -> Method:
    """What tells bright samples from dark ones, and one class from the others where G knows no labels."""
    n, k = subject.wanted.samples, subject.wanted.directions
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
            found[name] = directions.supervised(points, answer, seed=subject.wanted.seed)
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


def _walk(subject: Subject, start: Start, method: Method, plan: Plan) -> explore.Walk:
    """The strips and grids of a method."""
    steps, few = (np.linspace(-_FAR, _FAR, n).round(2).tolist() for n in (plan.steps, plan.grid))
    space, b, y, vectors = start.space, len(start.points), start.labels, method.vectors

    def tiles(points: list[np.ndarray], *shape: int) -> tuple[np.ndarray, np.ndarray | None]:
        labels = None if y is None else np.tile(y, len(points))
        x, scores = subject.draw_and_score(space, np.concatenate(points), labels)
        x = x.reshape(*shape, b, *x.shape[1:])
        return x, None if scores is None else scores.reshape(*shape, b)

    along = [points for vector in vectors for points in start.moved(vector, steps)]
    x, scores = tiles(along, len(vectors), len(steps))
    strips = np.moveaxis(x, 2, 0)
    of = None if scores is None else np.moveaxis(scores, 2, 0)
    walk = explore.Walk(method.name, space.name, method.names, steps, strips, of, says=method.says)
    pairs = [(i, j) for i, j in plan.pairs if max(i, j) < len(vectors)]
    if not pairs:
        return walk
    both = [
        points
        for i, j in pairs
        for down in start.moved(vectors[i], few)
        for points in start._replace(points=down).moved(vectors[j], few)
    ]
    x, scores = tiles(both, len(pairs), len(few), len(few))
    of = None if scores is None else np.moveaxis(scores, 3, 1)
    grids = np.moveaxis(x, 3, 1)
    return walk._replace(pairs=pairs, pair_steps=few, grids=grids, grid_scores=of)


def _traversal(subject: Subject, start: Start, method: Method) -> np.ndarray:
    """A picture of the first sample along each direction, nine steps."""
    y, first = start.labels, start._replace(points=start.points[:1])
    steps = np.linspace(-_FAR, _FAR, 9).tolist()
    points = [each for vector in method.vectors for each in first.moved(vector, steps)]
    labels = None if y is None else np.repeat(y[:1], len(points))
    x = subject.draw(start.space, np.concatenate(points), labels)
    return images.image_grid(x, columns=9)


def _effects(
    subject: Subject, start: Start, methods: Sequence[Method]
) -> tuple[list[Table], dict[str, Any]]:
    """What each direction does to the classes that a classifier sees, at both ends."""
    if subject.net is None or subject.net.traced is None:
        subject.left_out.append(f"effects on classes: {subject.classifier}")
        return [], {}
    g, logits, names = subject.bound(start.space), subject.net.traced[1], subject.names_of_data
    some = start.draws[:BATCH]
    found: dict[str, Any] = {}
    rows = []
    for method in methods:
        found[method.name] = []
        for vector, name in zip(method.vectors, method.names, strict=True):
            far = _FAR * start.spread(vector)
            effect = directions.effects(g, logits, some, vector, [-far, far])
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
        f" samples whose class stays; {counted(len(some), 'sample')}."
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
    draw, seed = subject.run.latents, subject.wanted.seed
    if truncation is None:
        z = [subject.latents(1, i) for i in range(plan.seeds)]
    else:
        z = [draw(1, seed=seed + i, truncation=truncation) for i in range(plan.seeds)]
    return np.repeat(np.concatenate(z), plan.labels, 0)
