"""Judges a run of text_gan: whether its images show what their captions say.

Run:     python -m experiments.evaluate_text --run=runs/text_gan/digits
The judges are trained here, on real images and captions alone, rendered with another seed and in all combinations: an
embedding of images and captions, and a classifier of each attribute. Real test images have the same numbers, which are
the ceiling; captions that were shuffled have those of chance. ``text_metrics.json`` has, of the splits ``test`` and
``held_out`` (combinations that training has not shown):

r_precision   the share of images that are nearer to their caption than to 99 others of another meaning; chance is 1 %
class, color, position, size   the share of images that show what their caption says
all           the same, of all four at once

Of your own captions there is a split ``test`` alone, and R-precision alone. ``text.png`` has a column for each of some
captions, the real image on top; the captions are in ``text_metrics.json``.
Papers:  Xu et al. 2018, arXiv:1711.10485 (R-precision).
"""

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import bpgan
from bpgan import cli, data
from bpgan.algorithms import text
from bpgan.data import cache, captions
from bpgan.data.captions import ATTRIBUTES, COLORS, POSITIONS, SIZES, Captioned
from bpgan.files import write_json
from bpgan.metrics import retrieval
from bpgan.metrics.features import kept
from bpgan.nets import dcgan, exact, linen_net
from bpgan.nets.text import Encoder
from bpgan.runtime import images
from bpgan.runtime.records import warn
from bpgan.trained.run import Run
from bpgan.types import Algorithm, Source, UserError
from bpgan.version import __version__

from . import text_gan

_BATCH = 128
_COLUMNS, _ROWS = 10, 6  # of the grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.RUN
    checkpoint: str = cli.CHECKPOINT
    dataset: cli.Parsed[data.Name | None] = cli.MOVED
    captions: str = cli.field("", "where the file of your own captions is now; empty: where it was")
    samples: int = cli.field(1000, "captions of each split, at most", low=200)
    judge_steps: int = cli.field(2000, "steps that the judges are trained for", low=1)
    seed: int = cli.field(
        0, "of the judges, the latents and the choice of captions", low=0, high=2**31
    )
    trust: bool = cli.TRUST


PRESETS = {"smoke": dict(samples=200, judge_steps=2)}


class Judge(NamedTuple):
    """Functions of NumPy arrays.

    Attributes:
      image, text: embeddings ``[n, f]`` of uint8 images and of tokens.
      attributes: what images show, int ``[n, 4]``; None if there are none.
    """

    image: Any
    text: Any
    attributes: Any | None


def run(cfg: Config) -> None:
    """Trains the judges, draws, measures, writes.

    Raises:
      UserError: for a run of another experiment, or data that are gone or others.
    """
    if not cfg.run:
        raise UserError("must name a run directory", argument="run")
    out = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    opened = bpgan.load(cfg.run, cfg.checkpoint, trust=cfg.trust)
    trained = opened.config
    if not isinstance(trained, text_gan.Config):
        reason = f"is a run of {opened.experiment}, must be one of text_gan"
        raise UserError(reason, argument="run", value=cfg.run)
    config = _config(cfg, opened, trained)
    splits = _splits(cfg, config)
    judge = train_judge(config, cfg.judge_steps, cfg.seed)
    found: dict[str, Any] = {}
    grid: list[np.ndarray] = []
    for name, split in splits.items():
        fakes = _draw(opened, split, cfg.seed)
        found[name] = measure(judge, split, fakes, cfg.seed)
        found[name]["captions"] = [split.texts[i] for i in _shown(split)]
        grid.append(_grid(opened, split, cfg.seed))
        _print(name, found[name])
    facts = {"run": cfg.run, "run_id": opened.record.run, "step": opened.step, "seed": cfg.seed}
    facts["judge_steps"] = cfg.judge_steps
    write_json(out / "text_metrics.json", facts | found)
    images.save_png(out / "text.png", images.image_grid(np.concatenate(grid), columns=_COLUMNS))
    print(f"wrote {out / 'text_metrics.json'} and {out / 'text.png'}")


def _config(cfg: Config, opened: Run, trained: text_gan.Config) -> text_gan.Config:
    """The flags of the run, where the data are now; it has trained on these data."""
    moved: dict[str, Any] = {"dataset": cfg.dataset} if cfg.dataset.value else {}
    moved |= {"captions": cfg.captions} if cfg.captions else {}
    given: dict[str, Any] = vars(trained) | moved
    config = type(trained)(**given)
    if text_gan.load(config).images.sha256 != opened.record.data:
        where = config.captions or config.dataset
        reason = f"{where} holds other data than those that {cfg.run} was trained on"
        raise UserError(reason, argument="captions" if config.captions else "dataset")
    return config


def _splits(cfg: Config, config: text_gan.Config) -> dict[str, Captioned]:
    """What is judged: rows that are drawn at random."""
    names = ("test",) if config.captions else ("test", "held_out")
    found = {}
    for name in names:
        split = text_gan.load(config, name)
        rows = np.random.default_rng(cfg.seed).permutation(split.images.length)[: cfg.samples]
        found[name] = split.rows(np.sort(rows))
        others = np.bincount(found[name].meaning)
        if len(rows) - others.max() < retrieval.OTHERS:
            reason = f"its split {name} has {len(rows)} captions, too few for {retrieval.OTHERS} others of each"
            raise UserError(reason, argument="run", value=cfg.run)
    return found


# The judges ---------------------------------------------------------------------------------------------------------


def train_judge(config: text_gan.Config, steps: int, seed: int) -> Judge:
    """Judges of images such as those of a run, trained on real pairs that no run has seen."""
    real = text_gan.load(config, "train", which="all", seed=1)
    counts = (real.images.classes, len(COLORS), len(POSITIONS), len(SIZES))
    nets = text.Judges(
        exact(linen_net(dcgan.Classifier(64))),
        exact(linen_net(Encoder(len(real.images.words)))),
        exact(linen_net(dcgan.Classifier(sum(counts)))) if real.attributes is not None else None,
        counts,
    )
    source = captions.source(real, seed=seed, batch_size=_BATCH)
    like = jax.eval_shape(source.batch_at, source.data, np.int32(0))
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    algorithm = text.judge(nets, tx, like)
    params = _trained_once(algorithm, source, steps, seed)

    def applied(name: str) -> Any:
        network, variables = algorithm.networks[name], {"params": params[name]}

        def chunks(x: np.ndarray) -> np.ndarray:
            x = x / np.float32(127.5) - 1 if x.dtype == np.uint8 else x
            parts = np.array_split(x, max(1, len(x) // 250))
            return np.concatenate([np.asarray(network.apply(variables, part)) for part in parts])

        return chunks

    def shown(x: np.ndarray) -> np.ndarray:
        heads = text.split_heads(applied("attributes")(x), counts)
        return np.stack([np.argmax(head, axis=1) for head in heads], axis=1)

    return Judge(applied("image"), applied("text"), shown if nets.attributes else None)


def _trained_once(algorithm: Algorithm, source: Source, steps: int, seed: int) -> Any:
    """The parameters of the judges by their names, from the data cache where they have been trained before."""
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0)).players[text.JUDGE].params
    wanted = by_path(shapes)
    key = zlib.crc32(
        f"{__version__} {steps} {seed} {[(n, x.shape) for n, x in wanted.items()]}".encode()
    )
    path = cache.directory() / "features" / f"judges-{source.fingerprint[:16]}-{key:08x}.npz"
    found = kept.load(path)
    if found is None or {n: x.shape for n, x in found.items()} != {
        n: x.shape for n, x in wanted.items()
    }:
        print(f"training the judges, {steps:,} steps, once: {path}", flush=True)
        state = cli.train(cli.Experiment(algorithm, source), seed=seed, steps=steps)
        found = {n: np.asarray(x) for n, x in by_path(state.players[text.JUDGE].params).items()}
        if reason := kept.save(path, found):
            warn(f"the judges are not kept ({reason})")
    return jax.tree.unflatten(jax.tree.structure(shapes), [found[name] for name in wanted])


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, in its order."""
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def measure(judge: Judge, split: Captioned, fakes: np.ndarray, seed: int) -> dict[str, Any]:
    """The numbers of images that were drawn for the captions of a split, beside those of real ones and of chance."""
    real, _ = split.images.arrays()
    said, choices = judge.text(split.tokens), retrieval.candidates(split.meaning, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(len(real))
    kinds = {"generated": fakes, "real": real, "shuffled": fakes[shuffled]}
    found: dict[str, Any] = {"images": len(real)}
    for name, x in kinds.items():
        numbers = {"r_precision": retrieval.r_precision(judge.image(x), said, choices)}
        if judge.attributes:
            right = judge.attributes(x) == split.attributes
            numbers |= dict(zip(ATTRIBUTES, right.mean(axis=0).tolist(), strict=True))
            numbers["all"] = float(right.all(axis=1).mean())
        found[name] = numbers
    found["of_ceiling"] = found["generated"]["r_precision"] / max(
        found["real"]["r_precision"], 1e-9
    )
    return found


def _draw(opened: Run, split: Captioned, seed: int) -> np.ndarray:
    """An image for each caption."""
    with opened.settings():
        return cli.draw(
            opened.algorithm, opened.state, seed=seed, n=len(split.texts), labels=split.tokens
        )


# What people see ----------------------------------------------------------------------------------------------------


def _shown(split: Captioned) -> np.ndarray:
    """Rows of some captions, spread over the split."""
    return np.linspace(0, len(split.texts) - 1, _COLUMNS).round().astype(int)


def _grid(opened: Run, split: Captioned, seed: int) -> np.ndarray:
    """The real images of some captions, and below them images that are drawn for them."""
    rows = _shown(split)
    some = split.rows(np.tile(rows, _ROWS))
    drawn = _draw(opened, some, seed + 1)
    return np.concatenate([split.images.read(rows)[0], drawn[_COLUMNS:]])


def _print(name: str, found: dict[str, Any]) -> None:
    kinds = ("generated", "real", "shuffled")
    print(
        f"{name}: {found['images']:,} images".ljust(24) + "".join(kind.rjust(12) for kind in kinds)
    )
    for number in found["real"]:
        values = "".join(f"{found[kind][number]:12.3f}" for kind in kinds)
        print(f"  {number}".ljust(24) + values)


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
