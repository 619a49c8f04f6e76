"""What a score looks at: how much each pixel of an image raises it.

``score`` is any differentiable ``x[b, ...] -> scores[b]``, such as the logit of D. With labels it is ``(x[b, ...],
labels[b]) -> scores[b]``, such as the logit of a conditional D, or of one class of a classifier (``class_logit``).
Labels are given beside the images, one for each, and go with every point at which the score of that image is taken.
Each image is scored alone, as the only row of its batch. So a D that mixes the examples of a batch, such as that of
StyleGAN2 with ``minibatch_stddev``, scores it as it scores a single image.

Every method returns how far its map is from *completeness* (Sundararajan et al. 2017, arXiv:1703.01365):

    sum_i map_i = score(x) - score(baseline)

Integrated and expected gradients reach it up to quadrature and sampling. The gradient, its product with the input and
SmoothGrad do not and are not meant to: their residual says how far a map is from accounting for the score.

A map may be complete and still say little about what the network has learned: ``randomized_weights`` compares it with
the maps of a network that has learned nothing.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var, jaxprs_in_params
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from bpgan.insight import rows
from bpgan.types import PRNG, UserError

Score = Callable[..., Array]
Pixels = Float[np.ndarray, "n ..."]
Labels = Int[np.ndarray, " n"]

_ROWS = 128  # points at a time, so that one program serves every method
_NUMBERS = 2**19  # in them, at most


class Attribution(NamedTuple):
    """A map of each image, and what it accounts for. Computed in float64 from the gradients of the score.

    Attributes:
      map: ``[n, ...]``, of the shape of the images, signed: what raises the score is positive.
      residual: ``|sum of map - difference| / |difference|``; infinite where the difference is 0 and the sum is not.
      scores: of the images.
      difference: ``score(x) - score(baseline)``, with several references to the mean of their scores.
      standard_error: of the residual, from the sampling of expected gradients; 0 for what does not sample.
    """

    map: Float[np.ndarray, "n ..."]
    residual: Float[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    difference: Float[np.ndarray, " n"]
    standard_error: Float[np.ndarray, " n"]


def gradient(score: Score, x: Pixels, baseline: Any, *, labels: Any = None) -> Attribution:
    """``d score / d x_i``: how steeply the score rises at the image (Simonyan et al. 2013, arXiv:1312.6034).

    Args:
      score: ``x[b, ...] -> scores[b]``; with labels ``(x[b, ...], labels[b]) -> scores[b]``. Of a trained run
        ``run.discriminator`` or ``run.networks[...]``, or ``jax.tree_util.Partial(apply, variables)``; programs are
        compiled once for each ``apply`` and shape, whatever the variables.
      x: floats ``[n, ...]``, images in [-1, 1].
      baseline: to which completeness is measured: a number, one image, or one for each. ``black``, ``mean`` and
        ``blurred`` make some.
      labels: ``[n]``, one for each image, if the score takes them.

    Raises:
      UserError: for arrays that do not fit, are not finite or not floats, or a score that is not one number a row.
    """
    case = _Case.of(score, x, labels)
    return case.single(baseline, lambda x, away: np.ones_like(away))


def gradient_times_input(
    score: Score, x: Pixels, baseline: Any = 0.0, *, labels: Any = None
) -> Attribution:
    """``(x_i - x'_i) d score / d x_i``, with the baseline x' (0 in Shrikumar et al. 2016, arXiv:1605.01713).

    It is complete for a linear score only: at the image, the slope of a score that saturates says nothing of the way to
    there. Arguments and errors are those of ``gradient``.
    """
    case = _Case.of(score, x, labels)
    return case.single(baseline, lambda x, away: away)


def smoothgrad(
    score: Score,
    x: Pixels,
    baseline: Any,
    key: PRNG,
    *,
    noise: float = 0.3,
    samples: int = 32,
    labels: Any = None,
) -> Attribution:
    """The mean gradient at ``x + noise * N(0, I)`` (Smilkov et al. 2017, arXiv:1706.03825).

    The authors advise a noise of 10 to 20 % of the range of the pixels, which is 2 here. Without noise it is
    ``gradient``.

    Args:
      score, x, baseline, labels: as of ``gradient``.
      key: of the noise, which does not depend on how the images are cut into blocks.
      noise: standard deviation.
      samples: points of each image.

    Raises:
      UserError: as ``gradient``, and for a negative noise or no samples.
    """
    case, rng = _Case.of(score, x, labels), _generator(key)
    if not 0 <= noise < np.inf:
        raise UserError("must be a number, 0 or more", argument="noise", value=noise)
    samples = rows.count(samples, "samples")

    def at(image: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, Any]:
        del sample
        drawn = rng.standard_normal((len(image), *case.x.shape[1:])) if noise else 0.0
        return case.x[image] + noise * drawn, 1 / samples

    found, _ = case.accumulate(samples, at)
    return case.compared(found, case.values(case.broadcast(baseline)))


def integrated_gradients(
    score: Score, x: Pixels, baseline: Any, *, nodes: int = 64, labels: Any = None
) -> Attribution:
    """``(x_i - x'_i) int_0^1 d score / d x_i (x' + a (x - x')) da`` (Sundararajan et al. 2017, arXiv:1703.01365).

    The integral is taken by Gauss and Legendre's rule, which is exact for polynomials of degree ``2 nodes - 1`` along
    the line and so converges faster than any power of the nodes for a smooth score. The gradient of a network of leaky
    ReLUs jumps where the line crosses a kink. There no rule is better than first order: the error is that of the cells
    with a jump, of either sign, and halves *on average over images* where the nodes double, not for each of them. For
    the D of a ``mnist_gan`` with the default recipe and 32 digits, the mean gap with 64 nodes is 1.4 % of the mean
    difference from a black baseline and 0.2 % from the mean image; with 256 nodes it is 0.35 % and 0.08 %.

    Args:
      score, x, baseline, labels: as of ``gradient``.
      nodes: at which the gradient is taken.

    Raises:
      UserError: as ``gradient``, or for no nodes.
    """
    case = _Case.of(score, x, labels)
    start = case.broadcast(baseline)
    places, weights = np.polynomial.legendre.leggauss(rows.count(nodes, "nodes"))

    def at(image: np.ndarray, node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = case.x[image] - start[image]
        share, weight = (case.column(each[node]) for each in ((places + 1) / 2, weights / 2))
        return start[image] + share * away, weight * away

    found, _ = case.accumulate(len(places), at)
    return case.compared(found, case.values(start))


def expected_gradients(
    score: Score,
    x: Pixels,
    references: Pixels,
    key: PRNG,
    *,
    samples: int = 256,
    labels: Any = None,
) -> Attribution:
    """Integrated gradients averaged over baselines: ``E (x_i - r_i) d score / d x_i (r + a (x - r))``.

    The reference r is drawn from those given, a from [0, 1] (Erion et al. 2021, arXiv:1906.10670). No single baseline
    decides then what counts as the absence of a feature. The sum of the map estimates ``score(x)`` less the mean score
    of all references, and ``standard_error`` says how well.

    Args:
      score, x, labels: as of ``gradient``. References are scored with the label of the image.
      references: floats ``[m, ...]``, such as training images.
      key: of the draws.
      samples: pairs of a reference and a place, drawn for each image.

    Raises:
      UserError: as ``gradient``, or for fewer than two samples.
    """
    case, rng = _Case.of(score, x, labels), _generator(key)
    references = rows.floats(references, "references")
    case.check_shape(references[0], "references")
    n, samples = len(case.x), rows.count(samples, "samples", 2)
    uniform = rng.random((n, samples, 2))  # the first images have the same ones, whatever n
    drawn, places = (uniform[..., 0] * len(references)).astype(int), uniform[..., 1]

    def at(image: np.ndarray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start = references[drawn[image, sample]].astype(np.float64)
        away = case.x[image] - start
        return start + case.column(places[image, sample]) * away, away / samples

    found, each = case.accumulate(samples, at)
    error = np.sqrt(samples) * each.std(axis=1, ddof=1)
    return case.compared(found, case.mean_scores(references), error)


# Baselines ----------------------------------------------------------------------------------------------------------


def black(x: Pixels) -> np.ndarray:
    """``[n, ...]`` of -1: nothing that is dark counts, because a pixel at the baseline has no attribution."""
    return np.full_like(rows.floats(x, "x"), -1.0)


def mean(images: Pixels) -> np.ndarray:
    """``[...]``: the mean of images such as those of a training set."""
    return rows.floats(images, "images").mean(0, dtype=np.float64)


def blurred(x: Pixels, sigma: float = 3.0) -> np.ndarray:
    """``[n, h, w, c]``: each image without its details, by a Gaussian of ``sigma`` pixels (edges are continued)."""
    from scipy.ndimage import gaussian_filter

    x = rows.floats(x, "x")
    if x.ndim != 4:
        raise UserError(f"must be images [n, h, w, c], not {list(x.shape)}", argument="x")
    if not 0 < sigma < np.inf:
        raise UserError("must be a number above 0", argument="sigma", value=sigma)
    return gaussian_filter(x.astype(np.float64), (0, sigma, sigma, 0), mode="nearest")


# Scores -------------------------------------------------------------------------------------------------------------


def class_logit(net: Callable[..., Array]) -> Partial:
    """``(x[b, ...], labels[b]) -> logits[b]``: of a classifier ``x -> logits[b, k]``, the logit of each row's label."""
    return Partial(_class_logit, rows.bound(net))


def _class_logit(net: Callable[..., Array], x: Array, labels: Array) -> Array:
    return jnp.take_along_axis(net(x), labels[:, None], axis=1)[:, 0]


# Randomized weights -------------------------------------------------------------------------------------------------


class Randomized(NamedTuple):
    """How much of a map is left of a network whose layers are initialized anew, from the top on.

    Attributes:
      layers: those that are anew in the i-th row besides those of the rows before it. In the last row all are.
      correlations: Spearman's rank correlation of each image's map with that of the trained network, ``[rows, n]``.
      absolute: the same of the absolute values of the maps. The factor ``x - baseline`` of integrated gradients alone
        keeps these alike where much of an image equals the baseline: they say of digits on black ground, 0.98 for a
        ``mnist_gan``, that the map is that of the digit. The map of the gradient has no such factor, and 0.09.
    """

    layers: tuple[str, ...]
    correlations: Float[np.ndarray, "l n"]
    absolute: Float[np.ndarray, "l n"]

    @property
    def left(self) -> float:
        """The mean over images of the size of the correlation, with all weights anew."""
        return float(np.abs(self.correlations[-1]).mean())

    @property
    def depends(self) -> bool:
        """Whether the maps depend on what was learned: less than 0.3 of the correlation is left."""
        return self.left < 0.3


def randomized_weights(
    explain: Callable[[Any], np.ndarray],
    variables: Mapping[str, Any],
    fresh: Mapping[str, Any],
    layers: Sequence[str] = (),
) -> Randomized:
    """Whether maps depend on what the network has learned (Adebayo et al. 2018, arXiv:1810.03292).

    Layers are initialized anew one after the other, from the output on, each together with those above it, and at last
    all at once. A method whose maps stay as they were, such as an edge detector, explains the image, not the network.

    Args:
      explain: ``variables -> map[n, ...]``, such as ``lambda v: integrated_gradients(Partial(apply, v), x, -1.0).map``.
      variables: of the trained network, ``{"params": {layer: ...}, ...}``.
      fresh: the same of an initialization by another key: of a run
        ``run.algorithm.networks[name].variables(run.algorithm.init(key))``.
      layers: from the input to the output, as ``layers_of`` finds them. Without them all are initialized at once only.

    Raises:
      UserError: for layers that are none of the network's, or fresh variables of another structure.
    """
    _check_fresh(variables, fresh, layers)
    # On the host: arrays of a run are laid out on its devices, and each layout would be compiled for.
    variables, fresh = jax.tree.map(np.asarray, (dict(variables), dict(fresh)))
    upper = tuple(layers)[:0:-1]  # all but the first, from the top
    mixtures = [_mixed(variables, fresh, upper[: i + 1]) for i in range(len(upper))]
    trained = np.asarray(explain(variables))
    maps = [np.asarray(explain(each)) for each in (*mixtures, fresh)]
    correlations = np.array([_rank_correlations(trained, each) for each in maps])
    absolute = np.array([_rank_correlations(np.abs(trained), np.abs(each)) for each in maps])
    return Randomized((*upper, "all"), correlations, absolute)


def _check_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping) or not isinstance(variables.get("params"), Mapping):
        raise UserError('must be {"params": {layer: ...}, ...}', argument="variables")


def _check_fresh(variables: Any, fresh: Any, layers: Sequence[str]) -> None:
    def shapes(tree: Any) -> Any:
        return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]

    _check_variables(variables)
    if shapes(variables) != shapes(fresh):
        reason = "must be variables of the same network: other names or shapes than `variables`"
        raise UserError(reason, argument="fresh")
    unknown = [name for name in layers if name not in variables["params"]]
    if unknown or len(set(layers)) < len(layers):
        reason = f"must be different ones of {', '.join(variables['params'])}"
        raise UserError(reason, argument="layers", value=",".join(layers))


def _mixed(variables: Mapping[str, Any], fresh: Any, names: Sequence[str]) -> dict[str, Any]:
    """Some layers anew, with what other collections, such as running averages, hold of them."""
    return {
        collection: {
            name: fresh[collection][name] if name in names else each for name, each in kept.items()
        }
        if isinstance(kept, Mapping)
        else kept
        for collection, kept in variables.items()
    }


def _rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's of each row. A map whose pixels are all equal has none: 1 to itself, 0 to any other."""
    from scipy.stats import rankdata

    a, b = (each.reshape(len(each), -1) for each in (a, b))
    ranks = [rankdata(each, axis=1) for each in (a, b)]
    x, y = (each - each.mean(1, keepdims=True) for each in ranks)
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    same = (a == b).all(1).astype(np.float64)
    return np.divide((x * y).sum(1), size, out=same, where=size > 0)


def layers_of(
    apply: Callable[..., Any], variables: Mapping[str, Any], x: Pixels, labels: Any = None
) -> tuple[str, ...]:
    """The layers of ``variables["params"]`` in the order in which the network first uses them, input first.

    Args:
      apply: ``(variables, x) -> scores``, or with labels.
      variables: ``{"params": {layer: ...}, ...}``.
      x, labels: rows that it takes; one is enough.

    Raises:
      UserError: for other variables, or rows that it does not take.
    """
    _check_variables(variables)
    x = rows.floats(x, "x")
    labels = rows.labels_of(labels, len(x))
    given = None if labels is None else labels[0]
    rows.output(Partial(apply, variables), "x", x[0], given)
    data = (x[:1], None if labels is None else labels[:1])
    traced = jax.make_jaxpr(lambda v, d: rows.call(functools.partial(apply, v), *d))(
        variables, data
    )
    leaves = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    layers = [{path[1].key} if path[0].key == "params" else set() for path in leaves]
    found: dict[str, None] = {}
    inputs = traced.jaxpr.invars
    of_data = [_DATA] * (len(inputs) - len(layers))
    _uses(traced.jaxpr, dict(zip(inputs, [*layers, *of_data], strict=True)), found)
    return tuple(found)


_DATA = {"\0data"}  # the mark of what depends on the input; no layer is called so


def _uses(jaxpr: Any, marks: dict[Any, set[str]], found: dict[str, None]) -> None:
    """Adds the layers whose parameters meet the data, in order. ``marks``: of which layers a value is made."""
    for equation in jaxpr.eqns:
        given = [marks.get(v, set()) if isinstance(v, Var) else set() for v in equation.invars]
        for inner in jaxprs_in_params(equation.params):
            # The operands of a branch or a loop stand behind an index or constants of the outer equation.
            its = dict(zip(inner.invars[::-1], given[::-1], strict=False))
            _uses(inner, its, found)
        union = set().union(*given)
        if union >= _DATA:
            found.update(dict.fromkeys(sorted(union - _DATA)))
        marks.update(dict.fromkeys(equation.outvars, _DATA if union >= _DATA else union))


# How the gradients are taken ----------------------------------------------------------------------------------------

At = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Any]]
"""``(images[k], nodes[k]) -> (points[k, ...], factors)``: where the gradient is taken, and what it is multiplied by."""


@jax.jit
def _differentiated(score: Partial, x: Array, labels: Array | None) -> tuple[Array, Array]:
    """Scores and gradients of rows, each alone in its batch."""

    def alone(x: Array, label: Array | None) -> Array:
        return rows.call(score, x[None], None if label is None else label[None])[0]

    return jax.vmap(jax.value_and_grad(alone))(x, labels)


class _Case(NamedTuple):
    """A score and the images to explain it for, in float64; ``dtype`` is that of the network's input."""

    score: Partial
    x: np.ndarray
    labels: np.ndarray | None
    dtype: Any

    @classmethod
    def of(cls, score: Score, x: Any, labels: Any) -> "_Case":
        x = rows.floats(x, "x")
        labels = rows.labels_of(labels, len(x))
        made = rows.output(score, "x", x[0], None if labels is None else labels[0])
        if made:
            reason = f"`score` must make one number of a row, not an array of shape {list(made)}"
            raise UserError(reason, argument="x")
        return cls(rows.bound(score), x.astype(np.float64), labels, x.dtype)

    def check_shape(self, image: np.ndarray, name: str) -> None:
        if image.shape != self.x.shape[1:]:
            reason = f"images are {list(image.shape)}, those of `x` {list(self.x.shape[1:])}"
            raise UserError(reason, argument=name)

    def broadcast(self, baseline: Any) -> np.ndarray:
        """One baseline for each image."""
        found = np.asarray(baseline, np.float64)
        if not np.isfinite(found).all():
            raise UserError("must be finite, without NaN", argument="baseline")
        if found.ndim and found.shape not in (self.x.shape, self.x.shape[1:]):
            reason = f"is {list(found.shape)}, must be a number, {list(self.x.shape[1:])} or {list(self.x.shape)}"
            raise UserError(reason, argument="baseline")
        return np.broadcast_to(found, self.x.shape)

    def column(self, each: np.ndarray) -> np.ndarray:
        """Numbers ``[k]`` with an axis for each of an image."""
        return each.reshape(-1, *[1] * (self.x.ndim - 1))

    def differentiated(
        self, points: np.ndarray, labels: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and gradients at as many points as fit a block, which is always of the same size."""
        k, size = len(points), self.block
        padded = np.resize(points.astype(self.dtype), (size, *points.shape[1:]))
        given = None if labels is None else np.resize(labels, (size, *labels.shape[1:]))
        values, gradients = _differentiated(self.score, padded, given)
        values, gradients = (np.asarray(a, np.float64)[:k] for a in (values, gradients))
        if not (np.isfinite(values).all() and np.isfinite(gradients).all()):
            raise UserError("`score` or its gradient is not finite", argument="x")
        return values, gradients

    @property
    def block(self) -> int:
        return max(1, min(_ROWS, _NUMBERS // int(np.prod(self.x.shape[1:]))))

    def blocks(self, total: int) -> Iterator[np.ndarray]:
        return (np.arange(i, min(i + self.block, total)) for i in range(0, total, self.block))

    def values(self, points: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Scores ``[n]``, by the labels of the images if no others are given."""
        labels = self.labels if labels is None else labels
        found = [
            self.differentiated(points[at], None if labels is None else labels[at])[0]
            for at in self.blocks(len(points))
        ]
        return np.concatenate(found)

    def accumulate(self, per: int, at: At) -> tuple[np.ndarray, np.ndarray]:
        """``sum over nodes of factor * gradient(point)`` of each image, and the sum over pixels of each summand."""
        total, each = np.zeros_like(self.x), np.empty((len(self.x), per))
        for flat in self.blocks(len(self.x) * per):
            image, node = np.divmod(flat, per)
            points, factors = at(image, node)
            labels = None if self.labels is None else self.labels[image]
            terms = factors * self.differentiated(points, labels)[1]
            each[image, node] = terms.reshape(len(flat), -1).sum(1)
            for i in np.unique(image):
                total[i] += terms[image == i].sum(0)
        return total, each

    def single(
        self, baseline: Any, factor: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> Attribution:
        """By the gradients at the images alone."""
        start = self.broadcast(baseline)
        away = self.x - start
        found, _ = self.accumulate(1, lambda image, _: (self.x[image], factor(self.x, away)[image]))
        return self.compared(found, self.values(start))

    def mean_scores(self, references: np.ndarray) -> np.ndarray:
        """The mean score of all references, ``[n]``, by the label of each image."""
        if self.labels is None:
            return np.full(len(self.x), self.values(references).mean())
        kinds, which = np.unique(self.labels, axis=0, return_inverse=True)
        means = [
            self.values(references, np.stack([kind] * len(references))).mean() for kind in kinds
        ]
        return np.array(means)[which.reshape(-1)]

    def compared(
        self, found: np.ndarray, start: np.ndarray, error: np.ndarray | float = 0.0
    ) -> Attribution:
        """The maps with what they account for of the differences to the scores ``start`` of the baselines."""
        scores = self.values(self.x)
        difference = scores - start
        gap = np.abs(found.reshape(len(found), -1).sum(1) - difference)
        shares = [
            np.divide(
                a, np.abs(difference), out=np.where(a > 0, np.inf, 0.0), where=difference != 0
            )
            for a in (gap, np.broadcast_to(error, gap.shape))
        ]
        return Attribution(found, shares[0], scores, difference, shares[1])


def _generator(key: PRNG) -> np.random.Generator:
    """Random numbers on the host, by a key of JAX."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
