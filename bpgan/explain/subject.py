"""A run that is being explained, and what all explanations of it share."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan import cli, data
from bpgan.evaluation.features import load_classifier
from bpgan.evaluation.images import progress
from bpgan.insight import units
from bpgan.metrics.features import Extractor
from bpgan.runtime import images
from bpgan.trained.dataset import Data, data_of
from bpgan.trained.run import Function, Run
from bpgan.types import UserError

BATCH = 200
"""Samples at a time."""


class Wanted(NamedTuple):
    """What is asked of a run.

    Attributes:
      run: its directory.
      dataset: where its data are now; None: where they were.
      directions: of each method.
      samples: that numbers are means over.
      megapixels: million numbers of pixels behind the sliders of the page.
      layer: whose units are ablated; empty: one in the middle.
      iterations: of the inversion.
      seed: of latents and of every choice at random.
      trust: whether code that the run names is imported.
      own: pictures to invert, uint8 ``[h, w, c]``, with their names.
    """

    run: str
    dataset: data.Name | None = None
    directions: int = 5
    samples: int = 2000
    megapixels: float = 9.0
    layer: str = ""
    iterations: int = 1000
    seed: int = 0
    trust: bool = False
    own: Sequence[tuple[str, np.ndarray]] = ()


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
      wanted, run: the flags and the run.
      generator: ``(z, labels) -> samples``, without truncation.
      left_out: sentences on what cannot be had.
      shape: of a sample.
    """

    def __init__(self, wanted: Wanted, run: Run):
        self.wanted, self.run = wanted, run
        whole = vars(run.config).get("truncation")
        self.generator: Function = run.generator_with(0.0) if whole else run.generator
        self.left_out: list[str] = []
        self._programs: dict[Any, Any] = {}
        self.shape = shape_of(run)

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
        return self.run.latents(n, seed=self.wanted.seed + seed, truncation=truncation)

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
        y = self.labels(BATCH) if y is None else y
        if y is None:
            return space.draw
        return lambda points: space.draw(points, jnp.resize(jnp.asarray(y), (len(points),)))

    def layers(self) -> tuple[units.Layer, ...]:
        """Of G, whose units can be ablated."""
        return units.layers(self.bound(self.space_of_latents), self.latents(2))

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
        for start in range(0, len(points), BATCH):
            part = np.resize(points[start : start + BATCH], (BATCH, *points.shape[1:]))
            labels = () if y is None else (np.resize(y[start : start + BATCH], BATCH),)
            x, score = self._programs[space.name](part, *labels)
            tiles.append(images.to_bytes(np.asarray(x, np.float32)))
            scores.append(np.asarray(score, np.float64))
            tell(min(start + BATCH, len(points)))
        n, has_d = len(points), "discriminator" in self.run.networks
        return np.concatenate(tiles)[:n], np.concatenate(scores)[:n] if has_d else None

    def draw(self, space: Space, points: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        """Samples as bytes."""
        return self.draw_and_score(space, points, y)[0]

    @functools.cached_property
    def data(self) -> Data | str:
        """The data of the run, or why they cannot be had."""
        try:
            return data_of(self.run, self.wanted.dataset)
        except UserError as error:
            if self.wanted.dataset:
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


def shape_of(run: Run) -> tuple[int, ...]:
    """Of a sample of a run with a generator, without drawing one."""
    y = (np.zeros(1, np.int32),) if run.classes else ()
    return tuple(jax.eval_shape(run.generator, run.latents(1), *y).shape[1:])


def floats(x: np.ndarray) -> np.ndarray:
    """Bytes as a network sees them."""
    return (x.astype(np.float32) / 127.5 - 1).astype(np.float32)


def choose_layer(name: str, layers: Sequence[units.Layer]) -> units.Layer:
    """The layer of a name; without one a layer in the middle, one with channels if any has."""
    if name:
        for layer in layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in layers)
        raise UserError(f"must be one of {names}", argument="layer", value=name)
    wide = [layer for layer in layers if len(layer.shape) == 3 and layer.units >= 8]
    wide = wide or [layer for layer in layers if "embed" not in layer.name] or list(layers)
    return wide[(len(wide) - 1) // 2]
