"""A trained run as an object: what it has learned, what it was, what was measured of it.

Nothing in a run directory is unpickled: its records are JSON, its checkpoints arrays. What could run code are names: a
run may name its experiment, a network or a loss by a module, and such a module is imported only for who trusts it.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bpgan import cli
from bpgan.cli import saved
from bpgan.data import attributes as attributes_of_data
from bpgan.runtime import distributed, records, remote
from bpgan.types import Algorithm, UserError

Labels = int | str | Sequence[int | str] | np.ndarray

_BATCH = 500
"""Samples at a time, and latents of one key; evaluations have the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A network as a pure function and the variables it was trained to: ``apply(variables, *inputs) -> output``.

    It may be called with the inputs alone, and ``jax.jit``, ``jax.grad`` and ``jax.vmap`` take it as any function of
    these. Its parts are had by ``apply, variables = run.generator``. Images are floats in [-1, 1], logits raw scores.
    """

    apply: Callable[..., Any]
    variables: Any

    def __call__(self, *inputs: Any) -> Any:
        return self.apply(self.variables, *inputs)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.apply, self.variables))


class Run:
    """A trained run, as ``load`` finds it.

    Attributes:
      path: of its directory.
      experiment: the name of its experiment.
      config: its flags, a frozen dataclass; ``config.dataset`` and so on.
      step: of the checkpoint.
      state: everything in the checkpoint that was trained.
      record: ``config.json``: versions, devices, the hash of the data.
      log: the lines of ``metrics.jsonl``, each a dict with ``step``.
      evaluations: the numbers of ``metrics.json``, each a dict with ``metric``, ``value`` and what it depends on.
      result: how it ended, ``result.json``; None if it has not.
      private: whether it learned from records that must not show: G and its samples may be released.
      average: how the average that draws was had, if ``load`` was asked for another one than the run's own.
    """

    def __init__(self, path: str, opened: saved.Restored, files: dict[str, Any]):
        self.path, self.experiment, self.config = path, opened.name, opened.config
        self.step, self.state, self.record = opened.step, opened.state, opened.record
        self.log: list[dict[str, Any]] = files["log"]
        self.evaluations: list[dict[str, Any]] = files["evaluations"]
        self.result: records.ResultRecord | None = files["result"]
        self.private, self.average = opened.private, opened.average
        self._opened = opened
        self._built: dict[Any, Algorithm] = {}

    def __repr__(self) -> str:
        networks = ", ".join(self.networks) or "no networks"
        return f"<bpgan run {self.path}: {self.experiment}, step {self.step}, {networks}>"

    @property
    def algorithm(self) -> Algorithm:
        """The pure functions that it was trained by."""
        return self._opened.experiment.algorithm

    @property
    def classes(self) -> int:
        """Of the labels that it draws by; 0 if it takes none."""
        return self.algorithm.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; empty if they have no names."""
        facts = self.record.dataset
        named = facts is not None and len(facts.class_names) == self.classes
        return tuple(facts.class_names) if facts is not None and named else ()

    @property
    def words(self) -> list[str]:
        """The vocabulary of the captions that it draws; empty if it draws none."""
        return self.record.dataset.words if self.record.dataset else []

    @property
    def told(self) -> str:
        """What says what it draws, if that is more than a label: ``captions`` or ``attributes``; else empty."""
        if self.words:
            return "captions"
        return "attributes" if self.attributes else ""

    @functools.cached_property
    def attributes(self) -> attributes_of_data.Attributes | None:
        """What it is conditioned on beside classes: names and ranges; None if it is on none."""
        facts = self.record.dataset
        kept = None if facts is None or facts.attributes is None else facts.attributes
        return None if kept is None else attributes_of_data.of_facts(records.fields(kept))

    def conditions(
        self,
        n: int,
        given: Mapping[str, Any] | None = None,
        labels: Labels | None = None,
    ) -> np.ndarray:
        """The vectors float32 ``[n, d]`` that the networks of a run with attributes take.

        Args:
          n: how many.
          given: attributes by name: one number for all, or one for each. The others are those of training images in
            turn.
          labels: as of ``sample``; without them the classes are those of the same training images.

        Raises:
          UserError: if the run has no attributes, or none of that name, or numbers beyond those it was trained on.
        """
        has = self.attributes
        if has is None:
            reason = f"{self.experiment} was trained without attributes"
            raise UserError(reason, argument="attributes")
        counts = self.record.dataset.counts if self.record.dataset else [0]
        y, values = attributes_of_data.in_turn(has, n)
        values = values.copy()
        for name, numbers in (given or {}).items():
            values[:, has.names.index(name)] = has.column(name, numbers, n)
        if labels is not None:
            y = self._numbers(labels, n, len(counts), self.names_of_data)
        return has.vectors(y, values, len(counts))

    def labels_of_data(self, text: str) -> list[int]:
        """The classes of its dataset that a text names: ``all``, or numbers and names. Raises UserError."""
        facts = self.record.dataset
        count = len(facts.counts) if facts else 1
        if count < 2:
            reason = f"{self.experiment} was trained without labels; must be empty"
            raise UserError(reason, argument="labels", value=text)
        if text == "all":
            return list(range(count))
        found = [_class_of(part, count, self.names_of_data) for part in text.split(",")]
        if len(set(found)) < len(found):
            raise UserError("must name each class once", argument="labels", value=text)
        return found

    @property
    def names_of_data(self) -> tuple[str, ...]:
        """Names of the classes of its dataset, also where it draws by vectors; empty if they have none."""
        facts = self.record.dataset
        named = facts is not None and len(facts.class_names) == len(facts.counts)
        return tuple(facts.class_names) if facts is not None and named else ()

    @functools.cached_property
    def networks(self) -> dict[str, Function]:
        """By name: ``generator`` and ``discriminator`` of a GAN, ``generator`` and ``encoder`` of a VAE.

        A generator with styles has its parts ``mapping``, ``(z, labels) -> w``, and ``synthesis``, ``w -> samples``.
        """
        found = self.algorithm.networks.items()
        return {n: Function(each.apply, each.variables(self.state)) for n, each in found}

    @property
    def generator(self) -> Function:
        """``(z[n, ...], labels[n]) -> samples``, with averaged variables where the run has averages.

        Raises:
          UserError: if it has none.
        """
        return self._network("generator")

    @property
    def discriminator(self) -> Function:
        """``(x[n, ...], labels[n]) -> logits[n]``; high means real.

        Raises:
          UserError: if it has none.
        """
        return self._network("discriminator")

    def generator_with(self, truncation: float | None) -> Function:
        """``generator``, perhaps with another truncation of its styles; see ``sample``."""
        of = self._with(truncation).networks.get("generator")
        plain = self.generator
        return Function(of.apply, plain.variables) if of else plain

    def _network(self, name: str) -> Function:
        if name not in self.networks:
            has = f"it has {', '.join(self.networks)}" if self.networks else "it names no networks"
            raise UserError(f"{self.path}: a run of {self.experiment} has no {name}; {has}")
        return self.networks[name]

    def latents(self, n: int, *, seed: int = 0, truncation: float | None = None) -> np.ndarray:
        """``z[n, ...]``: those that ``sample(n, seed=seed)`` draws from; the first ones are the same whatever n.

        Raises:
          UserError: if the run draws no samples from latents, for a bad n, and as ``sample`` for a truncation.
        """
        algorithm = self._with(truncation)
        if algorithm.latents is None:
            raise UserError(f"{self.path}: a run of {self.experiment} draws from no latents")
        key, parts = saved.key_of_samples(_seed(seed)), range(-(-_count(n) // _BATCH))
        with self.settings():
            drawn = [algorithm.latents(jax.random.fold_in(key, i), _BATCH) for i in parts]
            return np.concatenate([np.asarray(z) for z in drawn])[:n]

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        labels: Labels | None = None,
        truncation: float | None = None,
        z: Any = None,
        floats: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Samples: images as uint8 ``[n, h, w, c]``, points as floats ``[n, d]``.

        Args:
          n: how many; with ``z`` it may be left out.
          seed: of the latents. The first samples of a seed are the same whatever n, up to rounding, and those that
            ``evaluate --seed`` draws.
          labels: one for all, or one for each: numbers, or names of ``class_names``. Without them the classes take
            turns.
          truncation: in the place of the run's own flag: psi of a mapping to styles, else the bound on each number of
            normal latents. 0: none.
          z: latents ``[n, ...]`` in the place of those of the seed.
          floats: images as floats in [-1, 1], not as bytes.
          attributes: of a run that is conditioned on such, as of ``conditions``.

        Raises:
          UserError: if the run draws no samples, or for arguments that do not fit it.
        """
        algorithm = self._with(truncation)
        if algorithm.sample is None:
            raise UserError(f"{self.path}: a run of {self.experiment} draws no samples")
        if z is not None:
            z = self._checked(algorithm, z)
        if n is None:
            if z is None:
                raise UserError("is needed without `z`", argument="n")
            n = len(z)
        n = _count(n)
        if z is not None and n != len(z):
            raise UserError(f"must be {len(z)}, as many as rows of `z`", argument="n", value=n)
        if attributes or (labels is not None and self.attributes):
            y = self.conditions(n, attributes, labels)
        else:
            y = self._labels(labels, n)
        # What is compiled serves several n; whole batches are those of evaluations.
        batch = _BATCH if n >= _BATCH else 1 << (n - 1).bit_length()
        if z is None and algorithm.latents is not None:
            z = self.latents(n, seed=seed, truncation=truncation)
        draw = functools.partial(cli.draw, algorithm, self.state, seed=_seed(seed), n=n)
        with self.settings():
            drawn = draw(labels=y, z=z, batch=batch, floats=True)
        return drawn if floats or drawn.ndim != 4 else _bytes(drawn)

    def _with(self, truncation: float | None) -> Algorithm:
        """The algorithm, perhaps with another truncation of its samples."""
        if truncation is None:
            return self.algorithm
        specs = cli.flags_of(type(self.config))
        if "truncation" not in specs:
            reason = f"{self.experiment} has no such flag; must be None"
            raise UserError(reason, argument="truncation", value=truncation)
        value = specs["truncation"].validate(truncation)
        if value == vars(self.config)["truncation"]:
            return self.algorithm
        if value not in self._built:
            config = type(self.config)(**vars(self.config) | {"truncation": value})
            options = self._opened.script, config, self.record, self.path
            with self.settings():
                self._built[value] = saved.build(*options, images=False).algorithm
        return self._built[value]

    def _checked(self, algorithm: Algorithm, z: Any) -> np.ndarray:
        draw = algorithm.latents
        if draw is None:
            raise UserError(f"{self.path}: a run of {self.experiment} draws from no latents")
        with self.settings():
            like = jax.eval_shape(lambda: draw(jax.random.key(0), 1))
        try:
            found = np.asarray(z, like.dtype)
        except (TypeError, ValueError) as error:
            raise UserError(f"must be an array of numbers ({error})", argument="z") from None
        if found.shape[1:] != like.shape[1:] or found.ndim != len(like.shape) or not len(found):
            shape = ", ".join(["n", *map(str, like.shape[1:])])
            raise UserError(f"is {list(found.shape)}, must be [{shape}]", argument="z")
        return found

    def _labels(self, labels: Labels | None, n: int) -> np.ndarray | None:
        """int32 ``[n]``, in turn if none are given; None if the run takes none."""
        if not self.classes:
            if labels is not None:
                raise UserError(f"{self.experiment} was trained without labels", argument="labels")
            return None
        if labels is None:
            return np.arange(n, dtype=np.int32) % self.classes
        return self._numbers(labels, n, self.classes, self.class_names)

    def _numbers(self, labels: Labels, n: int, classes: int, names: Sequence[str]) -> np.ndarray:
        """int32 ``[n]`` of numbers or names of so many classes, of one for all or of one for each."""
        one = isinstance(labels, str) or np.ndim(labels) == 0
        given = [labels] * n if one else list(labels)  # type: ignore[arg-type]
        if len(given) != n:
            reason = f"are {len(given)}, must be one or {n}, as many as samples"
            raise UserError(reason, argument="labels")
        return np.array([_class_of(each, classes, names) for each in given], np.int32)

    def label(self, given: Any) -> int:
        """The number of a class, of its number or name. Raises a UserError if there is none."""
        return _class_of(given, self.classes, self.class_names)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """JAX as the run had it, whatever was loaded since."""
        wide, products = self.config.precision == "float64", self.config.matmul_precision
        with jax.enable_x64(wide), jax.default_matmul_precision(products):
            yield


def _class_of(given: Any, classes: int, names: Sequence[str]) -> int:
    """The number of a class, of its number or name. Raises a UserError if there is none."""
    if isinstance(given, str) and given in names:
        return names.index(given)
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(number, int | np.integer) and 0 <= number < classes:
        return int(number)
    allowed = f"must be in 0 to {classes - 1}"
    if names:
        shown = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
        allowed += f" or one of {shown}"
    raise UserError(allowed, argument="labels", value=given)


def parse_truncation(text: str) -> float | None:
    """Reads a number; None of an empty text, for what the run has. Raises ValueError for anything else."""
    try:
        found = float(text) if text else None
    except ValueError:
        found = -1.0
    if found is not None and not 0 <= found < float("inf"):
        raise ValueError("must be a number >= 0, or empty for what the run has")
    return found


def load(
    run: str | os.PathLike,
    checkpoint: str | int = "newest",
    *,
    flags: Sequence[str] = (),
    trust: bool = False,
    ema: float | None = None,
) -> Run:
    """A trained run, of this machine or on an object store; nothing in it is changed, and it may be training.

    Neither its data nor flags are needed. A run of a version that did not yet remember its data's shape looks for them.

    Args:
      run: its directory.
      checkpoint: ``newest`` (of those that are sound), ``best`` by the metric of the run's ``--keep``, or a step.
      flags: ``NAME=VALUE``, flags that are other than the run's, of those that may differ when it is resumed, such as
        ``sampler=euler:4`` of a flow.
      trust: whether modules and files outside bpgan that the run names are imported, which runs their code.
      ema: relative width of the average of G that draws, such as 0.1: a sum of the power averages of the run's
        checkpoints up to this one. None: the run's own average.

    Raises:
      UserError: if there is no such run or checkpoint, it names what is not trusted, flags do not fit it, or its
        checkpoints do not give the average that is asked for.
    """
    which = str(checkpoint)
    try:
        cli.parse_checkpoint(which)
    except ValueError as error:
        raise UserError(str(error), argument="checkpoint", value=checkpoint) from None
    checkpoints = which if which.isdecimal() and ema is None else True
    wanted, small = remote.in_run(checkpoints=checkpoints), remote.in_run()
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.kept_settings())
        path = run
        if remote.is_url(run):
            path = stack.enter_context(
                remote.visited(run, lambda name: wanted(name) or small(name))
            )
        opened = saved.restore(path, which, flags, images=False, trust=trust, ema=ema)
        return Run(str(run), opened, _files(str(path)))


def _files(path: str) -> dict[str, Any]:
    """What was logged and measured; what is damaged is left out, with a warning."""
    import pathlib

    folder = pathlib.Path(path).expanduser()
    rows = records.sound(records.read_evaluations, folder / "metrics.json")
    return {
        "log": records.sound(records.read_log, folder / "metrics.jsonl") or [],
        "evaluations": [records.fields(row) for row in rows or []],
        "result": records.sound(records.read_result, folder / "result.json"),
    }


def _bytes(drawn: np.ndarray) -> np.ndarray:
    from bpgan.runtime import images

    return images.to_bytes(drawn)


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise UserError("must be a whole number, at least 1", argument="n", value=n)
    return int(n)


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 32:
        raise UserError("must be a whole number from 0 to 2^32 - 1", argument="seed", value=seed)
    return int(seed)
