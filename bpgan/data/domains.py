"""Two domains of images without pairs, such as photographs and paintings: two datasets, each in an order of its own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan.data import datasets, names, pairs, sources, tasks
from bpgan.data.datasets import Dataset
from bpgan.types import Source, UserError, stream


class Domains(NamedTuple):
    """A split of two domains.

    Attributes:
      a, b: the images of each.
      answer: the exact map of uint8 images ``[k, h, w, c]`` from a to b, where it is known; else None.
    """

    a: Dataset
    b: Dataset
    answer: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def sha256(self) -> str:
        """Of both, in this order."""
        return sources.fingerprint_of(self.a.sha256, self.b.sha256)

    @property
    def facts(self) -> dict[str, Any]:
        """As ``Dataset.facts``: those of b with the fingerprint of both, and those of each as parts."""
        parts = [self.a.facts, self.b.facts]
        return {**parts[1], "sha256": self.sha256, "parts": parts}

    def summary(self) -> str:
        """Those of both datasets."""
        return f"a: {self.a.summary()}\nb: {self.b.summary()}"


def load_domains(
    dataset_a: str | names.Name, dataset_b: str | names.Name, split: str = "train"
) -> Domains:
    """A split of two datasets. Arguments and errors are those of ``data.load``."""
    if (facts := datasets.facts_given()) is not None:
        return _absent(facts)
    found: list[Dataset] = []
    for argument, name in (("dataset_a", dataset_a), ("dataset_b", dataset_b)):
        try:
            found.append(datasets.load(name, split))
        except UserError as error:
            if error.argument != "dataset":
                raise
            raise UserError(error.reason, argument=argument, value=error.value) from None
    return Domains(found[0], found[1])


def domains_of_task(
    dataset: str | names.Name, task: str | tasks.Named, split: str = "train"
) -> Domains:
    """The inputs and the targets of a task as two domains.

    Of the training split a has the inputs of one half, chosen at random and the same for every seed, and b the targets
    of the other half: no image has its partner in training. Of the test split both have all, in the same order.

    Args:
      dataset: as for ``data.load``.
      task: one of ``tasks.forms()``, or what ``tasks.parse`` made of it.
      split: ``train`` or ``test``.

    Raises:
      UserError: as ``data.load``; if it is no task, cannot take images of this shape, or there are fewer than two.
    """
    named = tasks.named(task)
    if (facts := datasets.facts_given()) is not None:
        return _absent(facts)._replace(answer=named.task.answer)
    whole = datasets.load(dataset, split)
    first = second = whole
    if split == "train":
        if whole.length < 2:
            raise UserError("needs at least two images", argument="dataset", value=whole.name)
        chosen = np.zeros(whole.length, bool)
        chosen[np.random.RandomState(1).permutation(whole.length)[: whole.length // 2]] = True
        first, second = datasets.divide(whole, chosen, ("train, one half", "train, other half"))
    return Domains(_side(first, named, 0), _side(second, named, 1), named.task.answer)


def _side(dataset: Dataset, task: tasks.Named, part: int) -> Dataset:
    """The inputs or the targets that a task makes of a dataset."""
    read = functools.partial(_read_side, dataset.read, task, part)
    shape = task.pair(*pairs.blank(dataset))[part].shape[1:]
    return datasets.derived(dataset, shape, read, dataset.sha256, task.text, str(part))


def _read_side(
    read: pairs.Read, task: tasks.Named, part: int, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``Dataset.read`` of one side of a task."""
    x, y = read(indices)
    return task.pair(x, y)[part], y


def _absent(facts: Any) -> Domains:
    """Domains whose images are absent, of ``Domains.facts``."""
    if len(facts.get("parts", ())) != 2:
        raise UserError("the run was not trained on two domains of images")
    a, b = map(datasets.of_facts, facts["parts"])
    return Domains(a, b)


def domain_source(
    domains: Domains,
    *,
    seed: int,
    batch_size: int,
    dtype: Any = jnp.float32,
    feed: "str | sources.Feed" = "auto",
    flip: bool = False,
) -> Source:
    """The batches of both domains: ``{"a", "b", "y_a", "y_b"}``, images in [-1, 1].

    The orders are independent of each other. An epoch is one of the longer domain.

    Args:
      domains: one split.
      seed: of both orders.
      batch_size: rows of the global batch, of each domain.
      dtype, feed: as for ``data.source``. Both are in memory or both are read from disk; with ``stream:N``, by N
        processes each.
      flip: mirror each image left to right with probability 1/2.

    Raises:
      UserError: as ``data.source``.
    """
    kind, workers = sources.parse_feed(feed) if isinstance(feed, str) else feed
    present = [side for side in (domains.a, domains.b) if not side.is_absent]
    streams = "stream" in {sources.resolve_feed(side, kind) for side in present}
    window = 0
    if streams:
        size = int(np.prod(domains.a.shape) + np.prod(domains.b.shape))
        window = sources.window_steps(batch_size, size)
    both = {
        name: sources.source(
            side,
            seed=own,
            batch_size=batch_size,
            dtype=dtype,
            feed=sources.Feed("stream" if streams else "memory", workers),
            flip=flip,
            window=window,
        )
        for name, side, own in (("a", domains.a, seed), ("b", domains.b, _second(seed)))
    }
    return _together(both["a"], both["b"])._replace(fingerprint=domains.sha256, facts=domains.facts)


def _second(seed: int) -> Any:
    """The seed of the second order."""
    return jax.random.bits(stream(jax.random.key(seed), "second domain"), (), jnp.uint32)


def _together(a: Source, b: Source) -> Source:
    """Two sources with the same batch size and the same windows as one."""

    def batch_at(data: Any, step: Any) -> dict[str, Any]:
        batch_a, batch_b = a.batch_at(data["a"], step), b.batch_at(data["b"], step)
        return {"a": batch_a["x"], "b": batch_b["x"], "y_a": batch_a["y"], "y_b": batch_b["y"]}

    def windows(first: int, rows: slice) -> Any:
        assert a.windows is not None and b.windows is not None
        for window_a, window_b in zip(a.windows(first, rows), b.windows(first, rows), strict=True):
            yield {"a": window_a, "b": window_b}

    return Source(
        {"a": a.data, "b": b.data},
        batch_at,
        max(a.length, b.length),
        a.batch_size,
        sources.fingerprint_of(a.fingerprint, b.fingerprint),
        a.window,
        windows if a.windows is not None else None,
        b.examples,
    )
