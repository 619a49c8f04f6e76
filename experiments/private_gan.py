"""A GAN that learns from records without giving any of them away: D has differential privacy.

Run:     python -m experiments.private_gan --preset=smoke
             eight steps, to see that it works
         python -m experiments.private_gan --preset=mnist
             the embedded 10,000 digits at epsilon = 10
         python -m experiments.private_gan --preset=fashion --dataset=idx:/usr/share/datasets/fashion-mnist
         python -m experiments.private_gan --preset=bie-eps10 --dataset=mnist
         python -m experiments.private_gan --noise_multiplier=1 --epsilon=0
             so much noise, and an epsilon that is stated, not asked for
A step is one update of D, on a batch that every record joins with probability batch_size / records. --epsilon decides
the noise at the first start, and a run that goes on never spends more. The state counts the updates, the log says what
they cost. What is computed on records and is not accounted for, such as the loss of D, is not logged.
Presets: those of Bie et al. are not measured.
         mnist      epsilon = 10 on the embedded digits, two minutes on one core. Measured: FD 278 in features of a
                    classifier, and a classifier trained on samples is right on 72.2 % of the test digits; one seed.
                    9,000 records are few for so much noise.
         fashion    FASHION, six minutes on one core. Measured, three seeds: FD 141 +- 7 and 57.3 +- 1.8 % at epsilon =
                    10, 483 +- 61 and 27.4 +- 5.7 % at epsilon = 1; without noise and clipping 70.4 +- 1.7 and 64.4 +-
                    2.4 %. DP-MERF is better at both (docs/privacy.md). Tuned on digits, with the noise that 60,000
                    records allow.
         bie-eps10, bie-eps1  Bie et al. on the 60,000 digits of MNIST, C = 1, delta = 1e-5: 450,000 steps with
                    sigma = 1 and 50 updates of D per update of G (100 for FASHION), or 325,000 with sigma = 5 and 200.
                    Their FID and accuracy of a classifier at epsilon = 10 are 19.4 and 93.0 %.
         bie-eps10-adaptive, bie-eps1-adaptive  the same with a number that adapts: batches of 512, 174,000 steps with
                    sigma = 2, or 165,000 with sigma = 14. Theirs at epsilon = 10 are 13.3 and 94.4 %.
         Two things differ from Bie et al. in all of these: the networks are bpgan's DCGAN without batch norm, of the
         same width, and a record and its fake are one pair with one gradient, where they clip each by itself.
Papers:  Xie et al. 2018, arXiv:1802.06739; Abadi et al. 2016, arXiv:1607.00133; Bie, Kamath & Zhang 2023,
         arXiv:2302.02936; De et al. 2022, arXiv:2204.13650 (several views of a record).
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan import cli, data, losses, optim
from bpgan.algorithms import gan
from bpgan.data import poisson
from bpgan.losses import LOSSES
from bpgan.nets import architecture, storage_dtype
from bpgan.penalties import Weighted
from bpgan.privacy import accounting, clipping, dpgan, mechanism
from bpgan.runtime import distributed, records, secret
from bpgan.types import Algorithm, Source, UserError

from . import image_gan


def _noise(text: str) -> float | None:
    """The noise multiplier; None for ``auto``."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError("must be auto, or a number that is 0 or more")
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(image_gan.Config):
    epsilon: float = cli.field(10.0, "what the whole run may spend at most; 0: no limit", low=0)
    delta: float = cli.DELTA
    noise_multiplier: cli.Parsed[float | None] = cli.field(
        "auto",
        "standard deviation of the noise over clip; auto: the least that epsilon allows; 0: none, and no guarantee",
        parse=_noise,
    )
    clip: float = cli.field(
        1.0, "greatest norm of the gradient of one record", low=0, exclusive_low=True
    )
    private_gradients: cli.Parsed[Any] = cli.field(
        "auto",
        "how the gradients of single records are computed: auto, vmap, ghost (from norms alone) or microbatch=N",
        parse=clipping.parse_form,
    )
    views: int = cli.field(
        1, "copies of a record, each augmented and paired by itself, averaged before clipping", low=1
    )  # fmt: skip
    d_steps: int = cli.field(1, "updates of D per update of G; if adaptive, at the start", low=1)
    adaptive: float = cli.field(
        0.0,
        "take more updates of D where its average accuracy on fakes is at most this, such as 0.6; 0: never",
        low=0,
        high=1,
    )
    secret_seed: int = cli.SECRET_SEED
    seed: int = cli.field(0, sweepable=False)  # each run has a key of its own
    net: cli.Parsed[architecture.Choices] = cli.field("mlp")
    condition: cli.Parsed[image_gan.Condition] = cli.field("concat")
    loss: cli.Parsed[Any] = cli.field("nonsaturating")
    penalty: cli.Parsed[Any] = cli.field("none")
    lr: cli.Parsed[optim.StepSizes] = cli.field("1e-3/2e-3")
    betas: cli.Parsed[optim.Betas] = cli.field("0.5,0.999")
    latents: cli.Parsed[Any] = cli.field("normal:64")
    batch_size: int = cli.field(2048, "records in a batch on average, and fakes in an update of G")
    epochs: float = cli.field(250.0)
    sample_every: str = cli.field("5ep")
    checkpoint_every: str = cli.field("5ep")


_BIE = dict(
    net="dcgan:128,plain",
    latents="normal:128",
    lr="2e-4",
    batch_size=128,
    ema="0",
    epsilon=0.0,
    log_every="1000",
    sample_every="10000",
    checkpoint_every="10000",
)

PRESETS = {
    "mnist": dict(),
    "fashion": dict(epochs=240.0, sample_every="20ep", checkpoint_every="20ep"),
    "bie-eps10": dict(_BIE, noise_multiplier="1", steps=450_000, d_steps=50),
    "bie-eps1": dict(_BIE, noise_multiplier="5", steps=325_000, d_steps=200),
    "bie-eps10-adaptive": dict(
        _BIE, noise_multiplier="2", steps=174_000, batch_size=512, d_steps=1, adaptive=0.6
    ),
    "bie-eps1-adaptive": dict(
        _BIE, noise_multiplier="14", steps=165_000, batch_size=512, d_steps=1, adaptive=0.7
    ),
    "smoke": dict(
        net="dcgan:4,plain",
        latents="normal:8",
        batch_size=16,
        steps=8,
        d_steps=2,
        log_every="2",
        sample_every="4",
        checkpoint_every="4",
    ),
}


def _allowed_losses() -> str:
    fit = [n for n, x in LOSSES.items() if not losses.mixes_examples(x) and not losses.sees_reals(x)]  # fmt: skip
    return ", ".join(fit)


def _check(cfg: Config, axis_name: str | None) -> None:
    """Raises a UserError for what would break the guarantee, or does not go together."""

    def refuse(name: str, reason: str, *beside: str, value: Any = None) -> None:
        value = getattr(cfg, name) if value is None else value
        raise UserError(reason, argument=name, value=value, beside=beside)

    choices, condition, loss = cfg.net.value, cfg.condition.value, cfg.loss.value
    if losses.mixes_examples(loss):
        reason = "D's loss of one record depends on other records, so clipping would not bound what each does"
        refuse("loss", f"{reason}; must be one of {_allowed_losses()}")
    if losses.sees_reals(loss):
        reason = "G's loss looks at D's logits of reals, so G would see records that are not accounted for"
        refuse("loss", f"{reason}; must be one of {_allowed_losses()}")
    if choices.d.mixes_examples:
        reason = (
            "batch norm in D mixes the records of a batch, so that none has a gradient of its own;"
        )
        reason += f" D must be {' or '.join(architecture.unmixed('d'))}"
        refuse("net", reason)
    if condition.how and choices.g.mixes_examples:
        reason = (
            "batch norm in G would bring the label of one record into the fakes of all others; with"
        )
        reason += f" `condition={cfg.condition}` G must be {' or '.join(architecture.unmixed('g'))}"
        refuse("net", reason, "condition")
    auxiliary = losses.AUXILIARY.get(condition.how)
    if auxiliary and auxiliary.mixes_examples:
        refuse("condition", "compares the records of a batch, so that none has a gradient of its own")  # fmt: skip
    if cfg.augment.value and cfg.augment.value.target is not None:
        reason = "ada follows D's logits of reals, which are not accounted for;"
        refuse("augment", f"{reason} must be a number or a schedule")
    if cfg.adaptive and not loss.balances_at_zero:
        allowed = ", ".join(name for name, loss in LOSSES.items() if loss.balances_at_zero)
        reason = f"needs a loss with logits about 0, not `loss={cfg.loss}`; one of {allowed}"
        refuse("adaptive", reason, "loss")
    _check_penalties(cfg)
    _check_run(cfg, axis_name)


def _check_penalties(cfg: Config) -> None:
    cfg.penalty.value.check_precision(cfg.precision)
    for term in cfg.penalty.value.terms:
        reason = ""
        if term.player == "d" and (term.penalty.mixes_examples or term.penalty.memory is not None):
            reason = "depends on several records at once, so clipping would not bound what each does"  # fmt: skip
        elif (term.every or 1) > 1:
            reason = "must enter every update: an update is clipped once and gets noise once"
        if reason:
            raise UserError(reason, argument="penalty", value=str(term))


def _check_run(cfg: Config, axis_name: str | None) -> None:
    """Of the flags that every experiment has."""
    unaccounted = "which is computed on records and not accounted for"
    reasons = {
        "rule": (cfg.rule.value, "moves both players by each other's gradients; must be none"),
        "accumulate": (cfg.accumulate > 1, "must be 1; `private_gradients` saves memory"),
        "parallel": (axis_name, "must be jit, which shares the one noise"),
        "eval_every": (
            cfg.eval_every.value,
            f"the log would tell, and checkpoints would be chosen by, {unaccounted}; must be 0",
        ),
        "init_from": (
            cfg.init_from,
            "what the other run has learned from records is not accounted for; must be empty",
        ),
    }
    for name, (given, reason) in reasons.items():
        if given:
            raise UserError(reason, argument=name, value=getattr(cfg, name))
    if cfg.epsilon == 0 and cfg.noise_multiplier.value is None:
        reason = "auto takes the noise that `epsilon` allows, which is 0; must be a number"
        raise UserError(reason, argument="noise_multiplier", value="auto", beside=["epsilon"])


class _Parts(NamedTuple):
    """A private run before its first start: all but the noise and the key."""

    cfg: Config
    images: data.Dataset
    setting: gan.Setting
    steps: int
    q: float

    def algorithm(self, noise_multiplier: float) -> Algorithm:
        """The GAN with so much noise."""
        cfg = self.cfg
        gradient = mechanism.gaussian(
            cfg.clip,
            noise_multiplier,
            cfg.batch_size,
            form=cfg.private_gradients.value,
            views=cfg.views,
        )
        gradient, memory = cfg.canaries.value.join(
            gradient, clip=cfg.clip, rate=self.q, batch=cfg.batch_size
        )
        per_g = 1 if cfg.adaptive else cfg.d_steps
        lr = image_gan.step_sizes(cfg)
        g = cfg.betas.value.adam(lr.g, max(1, self.steps // per_g))
        d = cfg.penalty.value.bounded(cfg.betas.value.adam(lr.d, self.steps))
        return dpgan.make(
            self.setting,
            gan.Optimizers(g, d),
            gradient,
            batch_size=cfg.batch_size,
            d_steps=dpgan.DSteps(cfg.d_steps, cfg.adaptive or None),
            views=cfg.views,
            ema_decay=cfg.ema.value.over(self.steps, cfg.batch_size, 1 / self.q),
            memory=memory,
        )

    def source(self, rows: int, key: Any = poisson.SECRET) -> Source:
        """The batches of a key."""
        cfg, sampling = self.cfg, poisson.Sampling(self.q, rows)
        dtype = storage_dtype(cfg.precision)
        found = poisson.source(self.images, sampling, secret=key, dtype=dtype, feed=cfg.feed.value)
        return data.mirrored(found, seed=cfg.seed) if cfg.flip else found

    def rows(self) -> int:
        """Of a batch: a multiple of the devices that share it, and of 8, so that up to 8 have the same rows."""
        least = poisson.capacity(self.images.length, self.q, self.steps)
        shares = math.lcm(8, jax.device_count())
        return -(-least // shares) * shares


class _Privacy:
    """The guarantee of a run: fixed at its first start, and what has been spent of it."""

    def __init__(self, parts: _Parts):
        self._parts = parts
        self._mechanism: accounting.Mechanism | None = None
        self._terms: records.Terms | None = None

    def settle(self, path: pathlib.Path) -> tuple[Algorithm, Source]:
        """What is trained in a run directory, by the terms and the key that are kept there.

        Raises:
          UserError: for terms that the run was not begun with, or more steps than they allow.
        """
        accounting.need()
        parts, cfg = self._parts, self._parts.cfg
        terms = self._fix(path)
        self._terms, self._mechanism = terms, self._mechanism_of(terms)
        accounting.check(self._mechanism, terms.length)
        self._check_length()
        key = secret.words_of(path, cfg.secret_seed)
        if distributed.is_lead():
            print(self._said(), flush=True)
        return parts.algorithm(terms.noise_multiplier), parts.source(terms.rows, key)

    def _fix(self, path: pathlib.Path) -> records.Terms:
        parts, cfg = self._parts, self._parts.cfg
        given = cfg.noise_multiplier.value
        known = records.read_terms(path / secret.TERMS)
        noise = given if given is not None else known.noise_multiplier if known else self._least()
        guarantee = noise > 0 and cfg.secret_seed < 0
        terms = records.Terms(
            sampling="poisson",
            q=parts.q,
            rows=parts.rows(),
            noise_multiplier=noise,
            clip=cfg.clip,
            delta=cfg.delta,
            epsilon=cfg.epsilon or None,
            length=parts.images.length,
            data=parts.images.sha256,
            guarantee=guarantee,
        )
        free = ("rows",)  # more steps may want more rows; the run keeps those it has
        wanted = {k: v for k, v in records.fields(terms).items() if k not in free}
        return secret.fix_terms(path, terms, wanted)

    def _least(self) -> float:
        """The least noise that the flags allow; every process finds the same."""
        parts, cfg = self._parts, self._parts.cfg
        noise = accounting.calibrate(cfg.epsilon, cfg.delta, parts.q, parts.steps)
        return float(distributed.agree(np.array([noise]))[0, 0])

    def _mechanism_of(self, terms: records.Terms) -> accounting.Mechanism:
        failure = poisson.buffer_failure(terms.length, terms.q, terms.rows, self._parts.steps)
        return accounting.Mechanism(
            terms.sampling, terms.q, terms.noise_multiplier, terms.clip, terms.delta, failure
        )

    def _check_length(self) -> None:
        """Refuses more steps than epsilon allows."""
        assert self._terms and self._mechanism
        steps, limit = self._parts.steps, self._terms.epsilon
        if limit is None or not self._terms.noise_multiplier:
            return
        if accounting.epsilon_rdp(self._mechanism, steps) <= limit:
            return
        if accounting.epsilon(self._mechanism, steps).epsilon <= limit:
            return
        most = accounting.most_updates(self._mechanism, limit)
        reason = f"with the noise multiplier {self._terms.noise_multiplier:g} of this run `epsilon={limit:g}` is spent"
        reason += f" after {most:,} steps; must be at most {most}"
        raise UserError(reason, argument="steps", value=steps)

    def _said(self) -> str:
        assert self._terms and self._mechanism
        terms = self._terms
        text = f"Poisson sampling q={terms.q:.6g}  rows={terms.rows}"
        text += f"  noise_multiplier={terms.noise_multiplier:g}  clip={terms.clip:g}"
        if not terms.guarantee:
            why = "no noise" if not terms.noise_multiplier else "its key is known"
            return f"{text}\nwarning: this run guarantees no privacy: {why}"
        spent = accounting.epsilon(self._mechanism, self._parts.steps)
        return (
            f"{text}\nafter {self._parts.steps:,} steps epsilon is {spent.epsilon:.4g} at delta={spent.delta_total:.6g}"
            f" (RDP {spent.rdp:.4g}, PLD {spent.pld:.4g}; {accounting.ADJACENCY})"
        )

    def account(self, state: Any) -> dict[str, float]:
        """What was spent, for a line of the log; nothing where there is no noise."""
        assert self._mechanism
        if not self._mechanism.noise_multiplier:
            return {}
        updates = mechanism.updates_of(state)
        return {"epsilon_rdp": accounting.epsilon_rdp(self._mechanism, updates)}

    def spent(self, state: Any) -> Mapping[str, Any]:
        """What was spent, for ``result.json``."""
        assert self._terms and self._mechanism
        return accounting.record(
            self._mechanism,
            mechanism.updates_of(state),
            expected_batch=self._parts.cfg.batch_size,
            rows=self._terms.rows,
            guarantee=self._terms.guarantee,
        )


def _penalties(cfg: Config, steps: int) -> dict[str, Weighted]:
    return gan.named(cfg.penalty.value.over(steps))


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The private GAN that ``cfg`` describes, and its data; noise and key are those of the run directory."""
    _check(cfg, axis_name)
    image_gan.check(cfg, axis_name)
    dtype = storage_dtype(cfg.precision)
    # On labels alone: the attributes that G would be sampled at are those of records.
    images = cfg.canaries.value.plant(data.load(cfg.dataset.value))._replace(attributes=None)
    q = poisson.check_rate(cfg.batch_size, images.length)
    g_net, d_net, classes = image_gan.make_networks(cfg, images, axis_name)
    _check_statistics(cfg, d_net, images, classes)
    steps = cli.steps_of(cfg, 1 / q)
    latents, planned = cfg.latents.value.draw(dtype), cfg.augment.value
    sampling = image_gan.choose_sampling(cfg, g_net, classes, dtype)
    styles = cfg.net.value.g.mapping
    networks = gan.Networks(g_net, d_net, latents, images.shape, dtype, *sampling, styles=styles)
    setting = gan.Setting(
        networks,
        cfg.loss.value,
        cfg.condition.value.over(steps, classes, images),
        planned.over(steps) if planned else None,
        _penalties(cfg, steps),
        cfg.one_pass,
    )
    parts = _Parts(cfg, images, setting, steps, q)
    privacy = _Privacy(parts)
    return cli.Experiment(
        parts.algorithm(1.0),
        parts.source(parts.rows()),
        title=images.outline(),
        frame=cli.columns_of(classes, images.class_names),
        settle=privacy.settle,
        account=privacy.account,
        spent=privacy.spent,
    )


def _check_statistics(cfg: Config, d: Any, images: data.Dataset, classes: int) -> None:
    """Refuses a D that keeps more than its parameters."""
    y = (np.zeros(1, np.int32),) if classes else ()
    found = jax.eval_shape(d.init, jax.random.key(0), np.zeros((1, *images.shape), np.float32), *y)
    if more := sorted(set(found) - {"params"}):
        reason = f"D keeps {', '.join(more)} beside its parameters, as a spectral norm does,"
        reason += " which a private update does not move"
        raise UserError(reason, argument="net", value=cfg.net)


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
