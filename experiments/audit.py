"""Attacks a trained run: who was in its training set, and how large its epsilon must be.

Run:     python -m experiments.audit --run=runs/mnist_gan/default
             membership inference by D's logit (LOGAN) and by the nearest sample of G (GAN-Leaks)
         python -m experiments.audit --run=runs/a --reference_run=runs/b
             GAN-Leaks calibrated by a run that was trained on other records of the same distribution
         python -m experiments.image_gan --canaries=400 --name=audited
         python -m experiments.audit --run=runs/image_gan/audited
             and a lower bound of epsilon, from the canaries that --canaries planted
Papers:  Hayes et al. 2019, arXiv:1705.07663 (LOGAN); Chen et al. 2020, arXiv:1909.03935 (GAN-Leaks); Steinke, Nasr &
         Jagielski 2023, arXiv:2305.08846 (one run); Carlini et al. 2022, arXiv:2112.03570 (low false positive rates).

Any run that was trained on a dataset of images can be audited, private or not. Members are training images of the run,
which must still be those that its record names. The others were held out of its training: the tenth that --eval_every
holds out, else the test split. If these are of another distribution, as where other people wrote the test digits, the
attacks find that difference, and no leak. ``audit.json`` has all numbers, ``audit.html`` shows them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import bpgan
from bpgan import cli, data
from bpgan.files import write_json
from bpgan.privacy import audit, canaries
from bpgan.report import audit as report
from bpgan.runtime import remote
from bpgan.runtime.records import UNACCOUNTED, warn
from bpgan.trained.dataset import data_of
from bpgan.trained.run import Run
from bpgan.types import UserError, counted

_BATCH = 500  # images that D sees at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.RUN
    checkpoint: str = cli.CHECKPOINT
    reference_run: str = cli.field(
        "",
        "a run that was trained on other records of the same distribution, by which GAN-Leaks is calibrated",
        check=remote.check_place,
    )
    dataset: cli.Parsed[data.Name | None] = cli.MOVED
    n: int = cli.field(1000, "members, and as many records that were held out", low=20)
    samples: int = cli.field(10_000, "of G, of which the nearest counts", low=20)
    delta: float = cli.field(
        0.0,
        "at which epsilon is bounded; 0: the run's own, 1e-5 where it has none",
        low=0,
        high=0.5,
    )
    confidence: float = cli.field(
        0.95, "of intervals and bounds", low=0.5, high=0.999999, exclusive_low=True
    )
    seed: int = cli.field(0, "of latents and of the choice of records", low=0, high=2**32 - 1)
    trust: bool = cli.TRUST


PRESETS = {"smoke": dict(n=100, samples=200)}


class Records(NamedTuple):
    """Images uint8 ``[n, h, w, c]`` with their labels: members of the training set, and others; whose they are."""

    members: tuple[np.ndarray, np.ndarray]
    others: tuple[np.ndarray, np.ndarray]
    trained_on: str
    held_out: str


def run(cfg: Config) -> None:
    """Attacks, prints a table, and writes ``audit.json`` and ``audit.html``.

    Raises:
      UserError: for a run that cannot be attacked, and for data that are gone, changed or too few.
    """
    if not cfg.run:
        raise UserError("must name a run directory", argument="run")
    out = cli.make_folder(cfg.workdir, "workdir", cfg.workdir)
    opened = bpgan.load(cfg.run, cfg.checkpoint, trust=cfg.trust)
    if not opened.networks.keys() & {"generator", "discriminator"}:
        reason = f"a run of {opened.experiment} has neither a generator nor a discriminator"
        raise UserError(reason, argument="run", value=cfg.run)
    if opened.told:
        reason = f"a run of {opened.experiment} draws what {opened.told} say, which is not attacked"
        raise UserError(reason, argument="run", value=cfg.run)
    records = choose_records(cfg, opened)
    reference = _reference(cfg, opened)
    claimed = claim(opened)
    attacks, left_out = infer_membership(cfg, opened, records, reference)
    delta = cfg.delta or (claimed["delta"] if claimed else 1e-5)
    bounds, more = bound_epsilon(opened, delta, cfg.confidence)
    found: dict[str, Any] = {
        "run": cfg.run,
        "run_id": opened.record.run,
        "experiment": opened.experiment,
        "step": opened.step,
        "dataset": records.trained_on,
        "held_out": records.held_out,
        "reference_run": cfg.reference_run,
        "samples": cfg.samples,
        "seed": cfg.seed,
        "confidence": cfg.confidence,
        "private": opened.private,
        "claimed": claimed,
        "attacks": attacks,
        "bounds": bounds,
        "left_out": left_out + more,
    }
    try:
        write_json(out / "audit.json", found)
        page = report.write_page(out / "audit.html", found)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    if opened.private:
        warn(f"{cfg.run}: is private; the numbers {UNACCOUNTED}")
    print("\n".join([*report.lines(found), f"wrote {out / 'audit.json'} and {page}"]))


def choose_records(cfg: Config, opened: Run) -> Records:
    """Members and others of a run, at random.

    Raises:
      UserError: if the run was trained on no dataset of images, its data are gone or others, or there are too few.
    """
    found = data_of(opened, cfg.dataset.value)
    trained, held = found.trained, found.held_out
    others = held if held is not None and held.length >= cfg.n else found.test
    for split, what in ((trained, "training"), (others, "held-out")):
        if split.length < cfg.n:
            reason = (
                f"there are {counted(split.length, f'{what} image')} of {trained.name}, too few"
            )
            raise UserError(reason, argument="n", value=cfg.n)
    rng = np.random.default_rng(cfg.seed)
    chosen = [np.sort(rng.permutation(s.length)[: cfg.n]) for s in (trained, others)]
    read = trained.read(chosen[0]), others.read(chosen[1])
    whole = found.whole
    said = f"{counted(whole.length, 'image')} of {whole.name} {whole.split}"
    return Records(*read, said, f"{others.name} {others.split}")


def _canaries(opened: Run) -> canaries.Canaries:
    """Those that the run was trained with."""
    planted = vars(opened.config).get("canaries")
    return planted.value if isinstance(planted, cli.Parsed) else canaries.Canaries(0)


def _reference(cfg: Config, opened: Run) -> Run | None:
    """The run that calibrates; a UserError if it cannot."""
    if not cfg.reference_run:
        return None
    reference = bpgan.load(cfg.reference_run, trust=cfg.trust)

    def refuse(reason: str) -> None:
        raise UserError(reason, argument="reference_run", value=cfg.reference_run)

    if reference.record.data == opened.record.data:
        refuse(f"was trained on the same records as {cfg.run}; must be trained on others")
    shapes = [r.record.dataset.shape if r.record.dataset else None for r in (reference, opened)]
    if "generator" not in reference.networks or shapes[0] != shapes[1]:
        refuse("must be a run with a generator of images of the same shape")
    return reference


def claim(opened: Run) -> dict[str, Any] | None:
    """The epsilon that a private run spent, its delta, and if it guarantees them; None of one that claims none."""
    said = getattr(opened.result, "privacy", None)
    if not isinstance(said, dict) or not all(
        isinstance(said.get(name), int | float) for name in ("epsilon", "delta")
    ):
        return None
    delta = said.get("delta_total", said["delta"])  # with the failure of its buffers
    guarantee = bool(said.get("guarantee", True))  # else its key is known
    return {"epsilon": float(said["epsilon"]), "delta": float(delta), "guarantee": guarantee}


# Attacks ------------------------------------------------------------------------------------------------------------


def score_by_d(opened: Run, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """LOGAN's scores: D's logits of images uint8 ``[n, h, w, c]`` with labels ``[n]``, float64 ``[n]``."""
    wide = opened.config.precision == "float64"
    with opened.settings():
        found = []
        for i in range(0, len(x), _BATCH):
            part = jnp.asarray(x[i : i + _BATCH], jnp.float64 if wide else jnp.float32)
            labels = (jnp.asarray(y[i : i + _BATCH]),) if opened.classes else ()
            found.append(np.asarray(opened.discriminator(part / 127.5 - 1, *labels), np.float64))
    return np.concatenate(found)


def infer_membership(
    cfg: Config, opened: Run, records: Records, reference: Run | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every attack that the run allows, as ``audit.json`` has it; and of the others why not."""
    scores: dict[str, Sequence[np.ndarray]] = {}
    left_out, sides = [], (records.members, records.others)
    if "discriminator" in opened.networks:
        scores["LOGAN"] = [score_by_d(opened, *side) for side in sides]
    else:
        left_out.append(f"LOGAN: a run of {opened.experiment} has no discriminator")
    if "generator" in opened.networks:
        near = _nearness(cfg, opened, sides)
        scores["GAN-Leaks"] = near
        if reference is not None:
            others = _nearness(cfg, reference, sides)
            scores["GAN-Leaks, calibrated"] = [a - b for a, b in zip(near, others, strict=True)]
        else:
            left_out.append("GAN-Leaks, calibrated: no reference_run was given")
    else:
        left_out.append(f"GAN-Leaks: a run of {opened.experiment} has no generator")
    rows = []
    each = 1 - (1 - cfg.confidence) / max(len(scores), 1)  # so that all hold together
    for name, (members, others) in scores.items():
        if not (np.isfinite(members).all() and np.isfinite(others).all()):
            left_out.append(f"{name}: scores are not finite")
            continue
        fpr, tpr = audit.roc(members, others, points=100)
        found = audit.attack(members, others, confidence=each)
        known = {**found._asdict(), "leaks": found.says_something}
        rows.append({"attack": name, **known, "roc": [fpr.tolist(), tpr.tolist()]})
    return rows, left_out


def _nearness(cfg: Config, opened: Run, sides: Sequence[Any]) -> list[np.ndarray]:
    samples = opened.sample(cfg.samples, seed=cfg.seed)
    return [audit.nearness(x, samples) for x, _ in sides]


def bound_epsilon(
    opened: Run, delta: float, confidence: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lower bounds that the canaries of a run give, as ``audit.json`` has them; and why there are no others."""
    planted = _canaries(opened)
    if not planted.count:
        return [], ["Lower bound of epsilon: the run was trained without canaries (--canaries)"]
    scores, left_out = {}, []
    if "discriminator" in opened.networks and opened.record.dataset is not None:
        shape, classes = opened.record.dataset.shape, len(opened.record.dataset.counts)
        boards = canaries.images(planted.seed, planted.count, shape, classes)
        scores["image canaries"] = score_by_d(opened, *boards)
    else:
        left_out.append(f"Image canaries: a run of {opened.experiment} has no discriminator")
    seen = getattr(opened.state, "memory", {}).get(canaries.MEMORY)
    if seen is not None:
        scores["gradient canaries"] = np.asarray(seen, np.float64)
    else:
        left_out.append("Gradient canaries: only a private turn of D has them")
    rows = []
    for name, each in scores.items():
        if not np.isfinite(each).all():
            left_out.append(f"{name}: scores are not finite")
            continue
        bound = audit.lower_bound(each, planted.included, delta, confidence)
        rows.append({"canaries_are": name, **bound._asdict()})
    return rows, left_out


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
