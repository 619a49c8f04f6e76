"""Images of one domain made into images of another: from pairs (pix2pix) or without (CycleGAN, CUT).

Run:     python -m experiments.translate
             colors for gray digits, learned from pairs
         python -m experiments.translate --task=edges --dataset=idx:/usr/share/datasets/fashion-mnist
             clothes from their edges
         python -m experiments.translate --preset=cyclegan28 --task=invert
             digits and their negatives, of which no two belong together
         python -m experiments.translate --preset=cyclegan28 --dataset_a=mnist10k --dataset_b=digits,size=28
             digits of two origins
         python -m experiments.translate --preset=pix2pix-256 --dataset=pairs:facades,direction=b_to_a
             images side by side in one file, as in the release of pix2pix
Presets: pix2pix28   a U-Net and patches of 16 pixels, for a CPU. Measured on edges of Fashion-MNIST, three seeds: L1
                     0.0629 +- 0.0003, where linear regression has 0.0710; at most 5 minutes.
         cyclegan28  two small U-Nets, for a CPU. Measured on digits and their negatives, three seeds: a classifier sees
                     96.9 +- 0.4 % of the labels, of real negatives 97.1 %; 5 minutes.
         cut28       a small residual translator and the contrast of patches, for a CPU. Measured: it does not find the
                     negatives of digits, 25 % of the labels.
         pix2pix-256  facades, maps and the like: the paper's networks and settings, batches of one. For a GPU; not
                     measured.
         cyclegan-256  horse2zebra and the like: the paper's, 200 epochs, step size constant for half of them. For a
                     GPU; not measured.
         cut-256     the same data: the paper's, 400 epochs. For a GPU; not measured.
Papers:  Isola et al. 2017, arXiv:1611.07004; Zhu et al. 2017, arXiv:1703.10593; Park et al. 2020, arXiv:2007.15651.

At the end the translation is measured on test images, beside answers that need no training
(``bpgan.evaluation.translation``). The page shows inputs, outputs and targets.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpgan import cli, data, losses, optim, penalties
from bpgan.algorithms import translate
from bpgan.data import domains, pairs, tasks
from bpgan.evaluation import translation
from bpgan.losses import LOSSES
from bpgan.metrics.translation import Translate, of_network
from bpgan.nets import linen_net, storage_dtype
from bpgan.nets.patchgan import PatchGAN
from bpgan.nets.translator import PatchHeads, ResNetTranslator
from bpgan.nets.unet import UNet
from bpgan.runtime.images import image_grid
from bpgan.types import AdversarialLoss, Algorithm, Net, Source, UserError, stream

NO_LOSS = "none"


class System(NamedTuple):
    """A row of the table of systems.

    Attributes:
      paired: whether it learns from pairs.
      loss: that of the paper.
      content: the paper's weight of what binds an output to its input: its target, the way back, patches.
      adversarial: that of the adversarial loss. Least squares are halved here, and not in the code of CycleGAN and CUT.
      flags: those that this system makes use of, and not all of the others.
    """

    paired: bool
    loss: str
    content: float
    adversarial: float
    flags: tuple[str, ...]


SYSTEMS = {
    "pix2pix": System(True, "nonsaturating", 100.0, 1.0, ("distance",)),
    "cyclegan": System(False, "least_squares", 10.0, 2.0, ("identity", "history")),
    "cut": System(False, "least_squares", 1.0, 2.0, ("identity",)),
}
"""By the names of ``--system``."""

_OPTIONS = {
    "unet": {"levels": 2, "dropout": 0.5, "norm": "instance"},
    "resnet": {"blocks": 4, "patches": 64, "norm": "instance"},
    "patch": {"strided": 1, "norm": "instance"},
}
"""Of the networks, each with its value where it is not given."""
_NORMS = ("instance", "batch", "none")


class Choice(NamedTuple):
    """A network: its kind, the channels at full resolution, and all its options."""

    kind: str
    size: int
    options: dict[str, Any]


class Networks(NamedTuple):
    """The translators and the discriminators."""

    g: Choice
    d: Choice


def _network(text: str, kinds: tuple[str, ...]) -> Choice:
    """Reads ``KIND:SIZE,option=value``. Raises ValueError."""
    head, *rest = text.split(",")
    kind, _, size = head.partition(":")
    if kind not in kinds or not size.isdecimal() or int(size) < 1:
        raise ValueError(f"{head}: must be {' or '.join(f'{name}:SIZE' for name in kinds)}")
    found = dict(_OPTIONS[kind])
    for option in rest:
        name, _, value = option.partition("=")
        if name not in found:
            raise ValueError(f"{option}: must be one of {', '.join(f'{key}=' for key in found)}")
        found[name] = _option(name, value)
    return Choice(kind, int(size), found)


def _option(name: str, value: str) -> Any:
    """The value of an option. Raises ValueError."""
    if name == "norm":
        if value not in _NORMS:
            raise ValueError(f"norm={value}: must be one of {', '.join(_NORMS)}")
        return value
    if name != "dropout":
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{name}={value}: must be a whole number from 1 on")
        return int(value)
    try:
        rate = float(value)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={value}: must be in [0, 1)")
    return rate


def parse_networks(text: str) -> Networks:
    """Reads ``G/D``. Raises ValueError, saying what is allowed."""
    g, slash, d = text.partition("/")
    if not slash:
        raise ValueError("must be G/D, such as unet:32,levels=2/patch:32")
    return Networks(_network(g, ("unet", "resnet")), _network(d, ("patch",)))


def _loss(text: str) -> AdversarialLoss | None:
    """A loss by its name; None of ``none`` and of the empty text."""
    return losses.parse(text) if text not in ("", NO_LOSS) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    system: str = cli.field("pix2pix", "what is trained", choices=SYSTEMS)
    dataset: cli.Parsed[pairs.PairName] = cli.field(
        "mnist10k", pairs.forms, parse=pairs.parse, locates_data=True
    )
    task: cli.Parsed[tasks.Named | None] = cli.field(
        "gray",
        lambda: f"what is made of the dataset: {tasks.forms()}; empty: the pairs that it has",
        parse=tasks.parse_or_none,
    )
    dataset_a: cli.Parsed[data.Name | None] = cli.field(
        "",
        lambda: f"domain a without pairs, in the place of a dataset and a task: {data.forms()}",
        parse=data.parse_or_none,
        locates_data=True,
    )
    dataset_b: cli.Parsed[data.Name | None] = cli.field(
        "", "domain b, beside domain a", parse=data.parse_or_none, locates_data=True
    )
    net: cli.Parsed[Networks] = cli.field(
        "unet:32/patch:32",
        "G/D by channels at full resolution; of unet: levels=, dropout=; of resnet: blocks=, patches=; of D: strided=,"
        " whose patches are 16, 34, 70, ... pixels; norm=instance, batch or none of each",
        parse=parse_networks,
    )
    loss: cli.Parsed[AdversarialLoss | None] = cli.field(
        "",
        f"adversarial loss; empty: that of the paper; {NO_LOSS}: no D, which only pix2pix allows",
        choices=lambda: [*LOSSES, NO_LOSS],
        parse=_loss,
    )
    penalty: cli.Parsed[penalties.Terms] = cli.field(
        "none", "of D: none, or a sum of NAME=WEIGHT/EVERY", choices=penalties.forms, parse=penalties.parse
    )  # fmt: skip
    distance: str = cli.field(
        "l1",
        "of an output from its target; classifier: L1 of features of a classifier of targets",
        choices=(*translate.DISTANCES, "classifier"),
    )
    weight: float = cli.field(
        1.0,
        "weight of what binds an output to its input, as a multiple of the paper's, which is 100 for pairs, 10 for the"
        " way there and back, and 1 for patches",
        low=0,
        sweepable=True,
    )
    identity: float = cli.field(
        0.5,
        "share of this weight for another loss: images of the target domain should stay as they are",
        low=0,
    )
    history: int = cli.field(50, "fakes of each domain that are kept for D", low=0)
    lr: cli.Parsed[optim.Pair] = cli.field(
        "hold:0.5:linear:5e-4:0",
        "Adam's step size, or G's/D's: a number or a schedule",
        parse=functools.partial(optim.parse_pair, low=0.0),
    )
    lr_scale: float = cli.field(1.0, "factor of both step sizes", low=0, sweepable=True)
    ema: float = cli.field(0.0, "decay of the average of G that translates; 0: none", low=0, high=0.99999)  # fmt: skip
    measure: str = cli.field(
        "all",
        "at the end: all, errors without what classifiers say, or nothing",
        choices=("all", "errors", "nothing"),
        restart_safe=True,
    )
    precision: str = cli.NETWORK_PRECISION
    epochs: float = cli.field(20.0)
    batch_size: int = cli.field(16, "examples per step, over all devices")
    log_every: str = cli.field("1ep")
    sample_every: str = cli.field("2ep")
    checkpoint_every: str = cli.field("5ep")

    def idle(self) -> dict[str, str]:
        special = {flag for system in SYSTEMS.values() for flag in system.flags}
        of_d = ("penalty", "history") if str(self.loss) == NO_LOSS else ()
        found = dict.fromkeys(of_d, "loss")
        return found | dict.fromkeys(sorted(special - set(SYSTEMS[self.system].flags)), "system")


_SMALL = dict(log_every="250", sample_every="1000", checkpoint_every="1000")
_LARGE = dict(
    lr="hold:0.5:linear:2e-4:0", epochs=200.0, batch_size=1, task="",
    log_every="1ep", sample_every="5ep", checkpoint_every="10ep",
)  # fmt: skip

PRESETS = {
    "pix2pix28": dict(_SMALL, steps=3000),
    "cyclegan28": dict(
        _SMALL, system="cyclegan", task="invert", net="unet:16,dropout=0/patch:32", weight=0.5, identity=0.2,
        lr="hold:0.5:linear:1e-3:0", steps=3000,
    ),
    "cut28": dict(
        _SMALL, system="cut", task="invert", net="resnet:16,blocks=2/patch:32", identity=1.0,
        lr="hold:0.5:linear:1e-3:0", steps=2000,
    ),
    "pix2pix-256": dict(_LARGE, net="unet:64,levels=8,norm=batch/patch:64,strided=3,norm=batch"),
    "cyclegan-256": dict(_LARGE, system="cyclegan", net="resnet:64,blocks=9/patch:64,strided=3"),
    "cut-256": dict(
        _LARGE, system="cut", net="resnet:64,blocks=9,patches=256/patch:64,strided=3", identity=1.0, epochs=400.0
    ),
    "smoke": dict(
        net="unet:4/patch:4", batch_size=8, steps=4, log_every="2", sample_every="4", checkpoint_every="4",
        measure="errors",
    ),
}  # fmt: skip

_READ = 256 << 20
"""Bytes of a split that evaluation reads at most."""
_INPUTS = 32 << 20
"""Bytes of the test images that samples are made of."""
_SHOWN = 10


class Task(NamedTuple):
    """What there is to be translated.

    Attributes:
      source: batches of both domains.
      a, b: both domains, for the evaluation.
      shapes: of an image of each.
      classes: of the inputs.
      class_names: of these, if they are known.
      answer: ``a -> b`` of uint8 images, where it is known and there are no pairs.
      title: lines for people.
      absent: whether there are no images, because a run is loaded without them.
    """

    source: Source
    a: translation.Sides
    b: translation.Sides
    shapes: tuple[tuple[int, int, int], tuple[int, int, int]]
    classes: int
    class_names: tuple[str, ...]
    answer: Callable[[np.ndarray], np.ndarray] | None
    title: str
    absent: bool


def _paired(cfg: Config) -> Task:
    """The pairs that ``cfg`` asks for."""
    train, test = (
        pairs.load_pairs(cfg.dataset.value, split, cfg.task.value) for split in ("train", "test")
    )
    source = pairs.pair_source(
        train, seed=cfg.seed, batch_size=cfg.batch_size, dtype=storage_dtype(cfg.precision), feed=cfg.feed.value
    )  # fmt: skip

    @functools.cache
    def arrays(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y = _some({"train": train, "test": test}[split].rows)
        return (*train.split(x), y)

    def side(index: int, name: str) -> translation.Sides:
        def domain(split: str) -> Callable[[], translation.Domain]:
            return lambda: translation.Domain(arrays(split)[index], arrays(split)[2])

        return translation.Sides(f"{name} of {cfg.dataset}", domain("train"), domain("test"))

    rows = train.rows
    return Task(
        source, side(0, "inputs"), side(1, "targets"), (train.a, train.b), rows.classes, rows.class_names, None,
        f"{train.summary()}\n{test.summary()}", rows.is_absent,
    )  # fmt: skip


def _unpaired(cfg: Config) -> Task:
    """The two domains that ``cfg`` asks for."""

    def load(split: str) -> domains.Domains:
        if cfg.dataset_a.value and cfg.dataset_b.value:
            return domains.load_domains(cfg.dataset_a.value, cfg.dataset_b.value, split)
        task = cfg.task.value
        assert task is not None  # see ``check``
        return domains.domains_of_task(cfg.dataset.value.name, task, split)

    train, test = load("train"), load("test")
    source = domains.domain_source(
        train, seed=cfg.seed, batch_size=cfg.batch_size, dtype=storage_dtype(cfg.precision), feed=cfg.feed.value
    )  # fmt: skip

    def side(of: data.Dataset, tested: data.Dataset) -> translation.Sides:
        return translation.Sides(
            of.name,
            lambda: translation.Domain(*_some(of)),
            lambda: translation.Domain(*_some(tested)),
        )

    return Task(
        source, side(train.a, test.a), side(train.b, test.b), (train.a.shape, train.b.shape), train.a.classes,
        train.a.class_names, train.answer, train.summary(), train.a.is_absent,
    )  # fmt: skip


def _some(split: data.Dataset, most: int = _READ) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split with their labels, or, of large ones, as many as fit, evenly spread."""
    n = min(split.length, max(1, most // int(np.prod(split.shape))))
    return split.read(np.linspace(0, split.length - 1, n).round().astype(np.int64))


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def check(cfg: Config) -> None:
    """Raises UserError for flags that do not go with each other."""
    system = SYSTEMS[cfg.system]

    def refuse(name: str, reason: str, *beside: str) -> None:
        raise UserError(reason, argument=name, value=getattr(cfg, name), beside=beside)

    if not cfg.task and not cfg.dataset_a and not system.paired:
        refuse(
            "task",
            "must be a task, unless `dataset_a` and `dataset_b` are the two domains",
            "dataset_a",
        )
    if bool(cfg.dataset_a) != bool(cfg.dataset_b):
        missing, there = ("dataset_b", "dataset_a") if cfg.dataset_a else ("dataset_a", "dataset_b")
        refuse(missing, f"is needed beside `{there}`", there)
    if cfg.dataset_a and system.paired:
        refuse("dataset_a", f"`system={cfg.system}` learns from pairs; must be empty", "system")
    if cfg.loss == NO_LOSS and not system.paired:
        refuse("loss", f"`system={cfg.system}` learns by it; must be another", "system")
    if cfg.loss.value and cfg.loss.value.energy:
        refuse("loss", "needs a D that is an autoencoder, and this one judges patches")
    if cfg.loss.value and cfg.loss.value.normalization:
        refuse("loss", "must not be normalized: G's other terms are weighed against it as it is")
    cfg.penalty.value.check_precision(cfg.precision)
    if cfg.system == "cut" and cfg.net.value.g.kind != "resnet":
        refuse(
            "net", "cut looks into a translator of residual blocks; G must be a resnet", "system"
        )
    for term in cfg.penalty.value.terms:
        if term.player == "g" or term.penalty.matrices:
            refuse("penalty", f"{term}: must be of D, and of its images")
        if term.penalty.each_example and cfg.net.value.d.options["norm"] == "batch":
            reason = f"{term} needs a D that takes each example by itself, and that of `net={cfg.net}` has batch norm"
            refuse("penalty", reason, "net")


def _translator(
    cfg: Config, shape: tuple[int, int, int], axis_name: str | None, **more: Any
) -> Net:
    """G from either domain to images of a shape."""
    kind, size, options = cfg.net.value.g
    common: dict[str, Any] = dict(axis_name=axis_name, dtype=jnp.dtype(cfg.precision))
    if kind == "unet":
        return linen_net(UNet(shape, size, **options, **common))
    own = {name: value for name, value in options.items() if name != "patches"}
    return linen_net(ResNetTranslator(shape, size, **own, **common, **more))


def networks(cfg: Config, task: Task, axis_name: str | None) -> Any:
    """Those of the system, of which it is known that they take such images.

    Raises:
      UserError: if they do not take them.
    """
    a, b = task.shapes
    chosen, dtype = cfg.net.value, jnp.dtype(cfg.precision)
    d = linen_net(PatchGAN(chosen.d.size, axis_name=axis_name, dtype=dtype, **chosen.d.options))
    if cfg.system == "cut":
        blocks, patches = chosen.g.options["blocks"], chosen.g.options["patches"]
        taps = ("input", "down0", "down1", *sorted({"block0", f"block{blocks // 2}"}))
        g = _translator(cfg, b, axis_name, taps=taps)
        nets: Any = translate.Contrast(g, d, linen_net(PatchHeads(dtype=dtype)), patches)
        made = [(g, a, b)]
    elif cfg.system == "cyclegan":
        ab, ba = _translator(cfg, b, axis_name), _translator(cfg, a, axis_name)
        nets, made = translate.Cycle(ab, ba, d, d), [(ab, a, b), (ba, b, a)]
    else:
        g = _translator(cfg, b, axis_name)
        nets, made = translate.Pair(g, d), [(g, a, b)]
    for net, given, wanted in made:
        _try(cfg, net, jnp.zeros((1, *given)), jnp.zeros((1, 2), jnp.uint32))
        _try(cfg, d, jnp.zeros((1, *wanted)))
    return nets


def _try(cfg: Config, net: Net, *inputs: Any) -> None:
    try:
        jax.eval_shape(net.init, jax.random.key(0), *inputs)
    except ValueError as error:
        reason = f"{error} (images are {_size(inputs[0].shape[1:])})"
        raise UserError(reason, argument="net", value=cfg.net) from None


def _inputs(task: Task) -> Callable[..., jax.Array]:
    """``(key, n, labels or None) -> a[n, h, w, c]`` in [-1, 1]: test images, chosen by the key, of these classes."""
    if task.absent:

        def absent(*_: Any) -> jax.Array:
            reason = "samples are made of test images, and the run is loaded without its data"
            raise UserError(f"{reason}; call its network translator on images of your own")

        return absent
    x, y = task.a.test
    most = max(1, _INPUTS // int(np.prod(x.shape[1:])))
    x, y = x[:most], y[:most]
    order = np.argsort(y, kind="stable")
    counts = np.bincount(y, minlength=max(task.classes, 1))
    if not counts.all():
        reason = f"class {int(np.argmin(counts))} has no test image; every class needs one"
        raise UserError(reason, argument="dataset")
    starts = np.cumsum(counts) - counts
    images = x[order]

    def draw(key: jax.Array, n: int, labels: jax.Array | None) -> jax.Array:
        if labels is None:
            rows = jax.random.randint(key, (n,), 0, len(images))
        else:
            place = jax.random.uniform(key, (n,)) * jnp.asarray(counts)[labels]
            rows = jnp.asarray(starts)[labels] + place.astype(jnp.int32)
        return jnp.asarray(images)[rows].astype(jnp.float32) / 127.5 - 1

    return draw


def _distance(cfg: Config, task: Task) -> translate.Distance:
    if cfg.distance in translate.DISTANCES:
        return translate.DISTANCES[cfg.distance]
    judge = task.b.judge
    if judge is None or judge.traced is None:
        reason = "needs labels of the targets; must be " + " or ".join(translate.DISTANCES)
        raise UserError(reason, argument="distance", value=cfg.distance, beside=["dataset"])
    return translate.of_features(judge.traced[0])


def _scaled(factor: float, lr: optim.OverRun, steps: int) -> optim.Schedule:
    """A step size over a run of so many steps, times a factor."""
    scalar = lr(steps)
    return lambda step: factor * optim.at(scalar, step)


def algorithm_of(cfg: Config, task: Task, steps: int, axis_name: str | None) -> Algorithm:
    """The system that ``cfg`` describes, over a run of so many steps."""
    nets = networks(cfg, task, axis_name)
    adam = optim.parse_betas("0.5,0.999").adam
    g_tx, d_tx = (adam(functools.partial(_scaled, cfg.lr_scale, lr), steps) for lr in cfg.lr.value)
    txs = translate.Optimizers(g_tx, cfg.penalty.value.bounded(d_tx))
    system = SYSTEMS[cfg.system]
    loss: Any = cfg.loss.value if cfg.loss else losses.parse(system.loss)
    common: dict[str, Any] = dict(
        domains=translate.Domains(
            *task.shapes,
            _inputs(task),
            task.classes if task.classes > 1 else 0,
            storage_dtype(cfg.precision),
        ),
        penalties=cfg.penalty.value.over(steps),
        ema_decay=cfg.ema or None,
        axis_name=axis_name,
    )
    weights = translate.Weights(
        cfg.weight * system.content,
        0.0 if system.paired else cfg.identity,
        system.adversarial,
        d=system.adversarial / 2,
    )
    if cfg.system == "pix2pix":
        common["distance"] = _distance(cfg, task)
        return translate.pix2pix(nets, loss, txs, weights=weights, **common)
    if cfg.system == "cut":
        return translate.cut(nets, loss, txs, weights=weights, **common)
    return translate.cyclegan(nets, loss, txs, weights=weights, history=cfg.history, **common)


def _try_step(cfg: Config, algorithm: Algorithm, source: Source) -> None:
    """Raises a UserError for a penalty that looks at what there is not, such as latents."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.eval_shape(source.batch_at, source.data, 0)
    try:
        jax.eval_shape(algorithm.step, jax.eval_shape(algorithm.init, key), batch, key)
    except ValueError as error:
        raise UserError(str(error), argument="penalty", value=cfg.penalty) from None


def _translate(algorithm: Algorithm, state: Any, name: str) -> Translate | None:
    """A translator of a state as a function of bytes; None where there is none of this name."""
    if name not in algorithm.networks:
        return None
    network, key = algorithm.networks[name], stream(jax.random.key(0), name)

    def apply(variables: Any, x: Any, first: Any) -> Any:
        z = translate.noise(jax.random.fold_in(key, first), len(x))
        return network.apply(variables, x, z)

    return of_network(apply, network.variables(state))


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The system that ``cfg`` describes, its data, and what is measured at its end."""
    check(cfg)
    paired = SYSTEMS[cfg.system].paired
    task = (_paired if paired else _unpaired)(cfg)
    steps = cli.steps_of(cfg, task.source.steps_per_epoch)
    algorithm = algorithm_of(cfg, task, steps, axis_name)
    if cfg.penalty.value.terms and not axis_name:
        _try_step(cfg, algorithm, task.source)

    judged = cfg.measure == "all"

    def evaluate(state: Any) -> dict[str, float]:
        forward, back = (_translate(algorithm, state, name) for name in ("translator", "back"))
        assert forward is not None
        if paired:
            found = translation.paired(forward, task.a, task.b, judged=judged)
        else:
            found = translation.unpaired(forward, back, task.a, task.b, task.answer, judged=judged)
        return {f"test/{name}": value for name, value in found.items()}

    def pictures(state: Any) -> dict[str, np.ndarray]:
        forward, back = (_translate(algorithm, state, name) for name in ("translator", "back"))
        assert forward is not None
        rows = {"inputs": task.a.test.some(_SHOWN).x}
        rows["outputs"] = forward(rows["inputs"])
        if paired:
            rows["targets"] = task.b.test.some(_SHOWN).x
        elif task.answer:
            rows["answers"] = task.answer(rows["inputs"])
        shown = {f"test images: {', '.join(rows)}": _strips(rows)}
        if back is not None:
            shown["test images of a, made into b, and back"] = _strips(
                {"a": rows["inputs"], "b": rows["outputs"], "again": back(rows["outputs"])}
            )
            x = task.b.test.some(_SHOWN).x
            there = back(x)
            again = {"b": x, "a": there, "again": forward(there)}
            shown["test images of b, made into a, and back"] = _strips(again)
        return shown

    frame = cli.columns_of(algorithm.classes, task.class_names)
    return cli.Experiment(
        algorithm,
        task.source,
        evaluate if cfg.measure != "nothing" else None,
        task.title,
        frame=frame,
        pictures=pictures,
    )


def _strips(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Rows of images under each other, in the size and channels of the largest."""
    largest = [max(sizes) for sizes in zip(*(x.shape[1:] for x in rows.values()), strict=True)]

    def fitted(x: np.ndarray) -> np.ndarray:
        """Of the pixel that is nearest to each; gray in all channels."""
        for axis, n in enumerate(largest[:2], 1):
            x = x.take(np.arange(n) * x.shape[axis] // n, axis)
        return x[..., np.minimum(np.arange(largest[2]), x.shape[-1] - 1)]

    same = [fitted(x) for x in rows.values()]
    return image_grid(np.concatenate(same), columns=len(same[0]))


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
