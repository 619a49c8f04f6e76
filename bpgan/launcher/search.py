"""Which combinations of flags a sweep runs: grids, random draws, successive halving, Optuna's TPE.

An axis is written ``NAME=...``; of the axes of a grid every combination is run:

=========================  ===================================================================
``NAME=V1,V2,...``         these values
``NAME=LOW:HIGH``          whole numbers from LOW to below HIGH
=========================  ===================================================================

Others are drawn ``--samples`` times, together, and each draw is combined with the grid:

=========================  ===================================================================
``NAME=log:LOW:HIGH``      log-uniform; of a flag for whole numbers, LOW to HIGH with both ends
``NAME=uniform:LOW:HIGH``  uniform; of a flag for whole numbers, LOW to HIGH with both ends
``NAME=choice:V1,V2,...``  one of these
=========================  ===================================================================

A value that contains commas is written in quotes, as in a CSV file: ``NAME='a,b','c,d',e``. See ``split_values``.
"""

import itertools
import json
import math
import pathlib
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan import cli
from bpgan.measures import Goal, mean_and_deviation
from bpgan.types import UserError, counted

DIGITS = 4
"""Significant digits of a number that is drawn: enough to tell settings apart, few enough to be read in a file name."""

MOST_RUNS = 10_000
"""Of one sweep, which is looked at before any is made. Checking the flags of so many takes ten seconds."""

GENERATION = 8
"""Settings that TPE is asked for at a time. Fixed, so that a search does not depend on the number of cores."""

_CREATE_TRIAL = 4  # in a journal of Optuna
_FORMS = "must be NAME=V1,V2,..., NAME=LOW:HIGH or NAME=log:LOW:HIGH (uniform:, choice:)"
# In single quotes, in double quotes, or plain: a quote means something only at the beginning of a value.
_VALUE = re.compile(r"""'((?:[^']|'')*)'|"((?:[^"]|"")*)"|((?:[^,'"][^,]*)?)""")


class Axis(NamedTuple):
    """One flag of a sweep.

    Attributes:
      name: of the flag.
      kind: ``grid``, ``log``, ``uniform`` or ``choice``.
      values: texts, of ``grid`` and ``choice``.
      low, high: of ``log`` and ``uniform``.
      whole: of ``log`` and ``uniform``: whole numbers only.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def is_drawn(self) -> bool:
        return self.kind != "grid"

    def draw(self, seed: int, index: int) -> str:
        """Value number ``index``: a function of these and the axis's name, so that more draws or axes move none."""
        generator = np.random.default_rng([seed, zlib.crc32(self.name.encode()), index])
        if self.kind == "choice":
            return self.values[generator.integers(len(self.values))]
        return self.at(generator.random())

    def at(self, share: float) -> str:
        """The value at a share in [0, 1) of the range."""
        high = self.high + self.whole  # a whole number stands for all from it to the next
        if self.kind == "log":
            value = math.exp(math.log(self.low) + share * math.log(high / self.low))
        else:
            value = self.low + share * (high - self.low)
        return self.text(math.floor(value) if self.whole else value)

    def text(self, value: Any) -> str:
        """A value as a flag has it: a number rounded, but never out of the range."""
        if self.kind == "choice":
            return str(value)
        text = str(value) if self.whole else f"{value:.{DIGITS}g}"
        if self.low <= float(text) <= self.high:
            return text
        nearest = min(max(float(text), self.low), self.high)
        return str(int(nearest) if self.whole else nearest)


def parse_axis(text: str, specs: Mapping[str, cli.Flag]) -> Axis:
    """The axis that ``--sweep=text`` asks for, of an experiment with these flags.

    Raises:
      UserError: for another form, an unknown flag, or a range that is empty.
    """
    name, equals, values = text.partition("=")
    try:
        if not equals or not values:
            raise ValueError(_FORMS)
        if name == "workdir":
            raise ValueError("the launcher names the run directories; use `root`")
        if name not in specs and name != "preset":
            hint = cli.did_you_mean(name, [*specs, "preset"])
            raise ValueError(f"the experiment has no flag `{name}`{hint}")
        return _axis(name, values, of_whole_numbers=name in specs and specs[name].type is int)
    except ValueError as error:
        raise UserError(str(error), argument="sweep", value=text) from None


def _axis(name: str, values: str, of_whole_numbers: bool) -> Axis:
    """The axis of a flag whose values are written like this; raises ValueError."""
    word, _, rest = values.partition(":")
    if of_whole_numbers and re.fullmatch(r"-?\d+:-?\d+", values):
        return Axis(name, "grid", _whole_numbers(values))
    if word in ("log", "uniform"):
        low, high = _range(word, rest)
        if of_whole_numbers and not (low.is_integer() and high.is_integer()):
            raise ValueError(f"LOW and HIGH must be whole numbers, as `{name}` is")
        return Axis(name, word, (), low, high, whole=of_whole_numbers)
    if word == "choice" and rest:
        return Axis(name, "choice", split_values(rest))
    return Axis(name, "grid", split_values(values))


def _whole_numbers(text: str) -> tuple[str, ...]:
    """Those of ``LOW:HIGH``, of which HIGH is none; raises ValueError."""
    # As floats first: int() refuses numbers of thousands of digits.
    first, last = map(float, text.split(":"))
    if not last - first <= MOST_RUNS:  # inf - inf is NaN
        raise ValueError(f"is more than {MOST_RUNS:,} values")
    low, high = map(int, text.split(":"))
    if low >= high:
        raise ValueError("is an empty range; LOW:HIGH excludes HIGH")
    return tuple(str(i) for i in range(low, high))


def _range(word: str, text: str) -> tuple[float, float]:
    """The ends of ``LOW:HIGH``; raises ValueError."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low = high = math.nan
    positive = low > 0 or word != "log"
    if not (math.isfinite(low) and math.isfinite(high) and low < high and positive):
        least = "0 < " if word == "log" else ""
        raise ValueError(f"must be {word}:LOW:HIGH with {least}LOW < HIGH")
    return low, high


def split_values(text: str) -> tuple[str, ...]:
    """The values of ``V1,V2,...``.

    One that contains commas, or begins with a quote, stands in single or double quotes; a quote of the same kind in it
    is written twice.

    >>> split_values("1e-4,2e-4")
    ('1e-4', '2e-4')
    >>> split_values("'0.5,0.99','0,0.9',1")
    ('0.5,0.99', '0,0.9', '1')

    Raises:
      ValueError: for quotes that do not end, or not with the value.
    """
    values, start = [], 0
    while True:
        match = _VALUE.match(text, start)
        assert match is not None  # it also matches nothing
        single, double, plain = match.groups()
        if single is not None:
            values.append(single.replace("''", "'"))
        elif double is not None:
            values.append(double.replace('""', '"'))
        else:
            values.append(plain)
        if match.end() == len(text):
            return tuple(values)
        if text[match.end()] != ",":
            raise ValueError("must have quotes around whole values: 'a,b','c,d'")
        start = match.end() + 1


def combine(axes: Sequence[Axis], samples: int, seed: int) -> list[dict[str, str]]:
    """Texts by flag, in the order of the axes: each draw, once if it occurs twice, with every combination of the grid.

    Raises:
      UserError: for draws without a number of samples, a number without anything to draw, or too many runs.
    """
    drawn = [axis for axis in axes if axis.is_drawn]
    if drawn and not samples:
        reason, given = "`samples=N` must say how many to draw", f"{drawn[0].name}=..."
        raise UserError(reason, argument="sweep", value=given)
    if samples and not drawn:
        raise UserError("no `sweep` draws; must be 0", argument="samples", value=samples)
    _check_size(axes, samples)
    return cross(axes, draw_settings(axes, samples, seed) or [{}])


def _check_size(axes: Sequence[Axis], samples: int) -> None:
    """Raises UserError for a sweep of more than ``MOST_RUNS`` runs, of which none is made yet."""
    sizes = [len(axis.values) for axis in axes if not axis.is_drawn]
    sizes += [samples] if samples else []
    if math.prod(sizes) > MOST_RUNS:
        factors = " x ".join(f"{n:,}" for n in sizes)
        reason = f"asks for {factors} = {math.prod(sizes):,} runs; must be at most {MOST_RUNS:,}"
        raise UserError(reason, argument="sweep")


def draw_settings(axes: Sequence[Axis], samples: int, seed: int) -> list[dict[str, str]]:
    """What is drawn, without what was drawn before."""
    found = [
        tuple((axis.name, axis.draw(seed, i)) for axis in axes if axis.is_drawn)
        for i in range(samples)
    ]
    return [dict(draw) for draw in dict.fromkeys(found)]


def cross(axes: Sequence[Axis], draws: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Each draw with every combination of the grid."""
    grid = [axis for axis in axes if not axis.is_drawn]
    result = []
    for draw in draws:
        for texts in itertools.product(*(axis.values for axis in grid)):
            values = {**draw, **dict(zip((axis.name for axis in grid), texts, strict=True))}
            result.append({axis.name: values[axis.name] for axis in axes})
    return result


def score(goal: Goal, results: Sequence[Mapping[str, Any]]) -> float:
    """Of the seeds of one setting: the mean, the less the better; infinite if one is not finite or came to nothing.

    Raises:
      UserError: if a run that ended well does not log the metric.
    """
    values = []
    for result in results:
        metrics = result.get("metrics", {})
        if result.get("status") not in ("done", "paused"):
            return math.inf
        if goal.metric not in metrics:
            known = ", ".join(k for k in metrics if not k.startswith("time/")) or "nothing"
            hint = cli.did_you_mean(goal.metric, metrics)
            by = f" by step {result.get('step')}" if result["status"] == "paused" else ""
            reason = f"{goal.metric} is not logged by these runs{by}; known: {known}{hint}"
            raise UserError(reason, argument="aim")
        values.append(goal.sign * float(metrics[goal.metric]))
    mean, _ = mean_and_deviation(values)
    return mean if math.isfinite(mean) else math.inf


def group_by_setting(values: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the runs of each setting: those that differ only in the seed."""
    groups: dict[tuple, list[int]] = {}
    for index, each in enumerate(values):
        key = tuple((k, v) for k, v in each.items() if k != "seed")
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def rungs(count: int, factor: int) -> list[tuple[float, int]]:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): ``(share of the run, settings that get it)``.

    Each rung keeps one in ``factor`` settings and lets them train ``factor`` times as long; the last keeps at least
    one, which trains to the end. Every rung costs about the same.
    """
    number = max(1, math.floor(math.log(count, factor) + 1e-9) + 1)
    return [(float(factor) ** (i - number + 1), max(1, count // factor**i)) for i in range(number)]


def _mend_journal(path: pathlib.Path) -> None:
    """Cuts what is torn off the end of a journal, as by a full disk or a loss of power; a copy of the whole is kept.

    Raises:
      UserError: if it is damaged before its end.
      OSError: if it cannot be read, or not be mended.
    """
    # Of a process that was killed in the middle of a line. Ours is the only one at work on it; Optuna would wait.
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True)
    entries = [_read_entry(line) for line in lines]
    sound = entries.index(None) if None in entries else len(lines)
    if any(entries[sound:]):
        raise _damaged(path, f"line {sound + 1} is no entry")
    trials = 0
    for i, entry in enumerate(filter(None, entries)):
        trials += entry["op_code"] == _CREATE_TRIAL
        if entry.get("trial_id", -1) >= trials:
            raise _damaged(path, f"line {i + 1} is of a trial that has not begun")
    if sound < len(lines):
        end = sum(map(len, lines[:sound]))
        copy = path.with_name(f"{path.name}.torn-{time.strftime('%Y%m%d-%H%M%S')}")
        copy.write_bytes(raw)
        with path.open("rb+") as file:
            file.truncate(end)
        torn = counted(len(raw) - end, "byte is torn and was", "bytes are torn and were")
        print(f"{path}: the last {torn} cut off; {copy} has all")


def _read_entry(line: bytes) -> dict[str, Any] | None:
    """What a line of a journal says; None if it is not whole."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("op_code"), int) else None


def _damaged(path: pathlib.Path, reason: str) -> UserError:
    after = "without it, the same command begins the search anew and keeps the runs there are"
    return UserError(f"{path}: the journal of the search is damaged ({reason}); {after}")


class Study:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) over the axes that are drawn.

    What it asks for depends only on the seed and on what it was told, in generations of ``GENERATION``; all of that is
    in a journal beside the runs, so a search that was interrupted goes on as if it had not been.

    Raises:
      UserError: if Optuna is not installed.
    """

    def __init__(self, path: pathlib.Path, axes: Sequence[Axis], seed: int):
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise UserError(
                "needs Optuna: pip install optuna", argument="search", value="tpe"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._seed = optuna, seed
        self._axes = [axis for axis in axes if axis.is_drawn]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _mend_journal(path)
            self._study = optuna.create_study(
                study_name="bpgan",
                storage=JournalStorage(JournalFileBackend(str(path))),
                load_if_exists=True,
            )
            self._study.get_trials()
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            # Every line is JSON, but Optuna cannot make sense of them: one is lost, say.
            raise _damaged(path, f"{type(error).__name__}: {error}") from None

    def _distribution(self, axis: Axis) -> Any:
        d = self._optuna.distributions
        if axis.kind == "choice":
            return d.CategoricalDistribution(axis.values)
        log = axis.kind == "log"
        if axis.whole:
            return d.IntDistribution(int(axis.low), int(axis.high), log=log)
        return d.FloatDistribution(axis.low, axis.high, log=log)

    def _trials(self) -> list[tuple[Any, dict[str, str]]]:
        """All trials with their texts, but for those that a kill left without."""
        return [
            (trial, {axis.name: axis.text(trial.params[axis.name]) for axis in self._axes})
            for trial in self._study.get_trials()
            if all(axis.name in trial.params for axis in self._axes)
        ]

    def ask(self, size: int) -> list[tuple[int, dict[str, str]]]:
        """Numbers and texts of trials that wait for their values: those asked for before, or ``size`` new ones."""
        found = [
            (trial.number, texts)
            for trial, texts in self._trials()
            if not trial.state.is_finished()
        ]
        for _ in range(0 if found else size):
            number = len(self._study.trials)
            # Anew for each trial: the state of a sampler's generator is not in the journal.
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=(self._seed * 1_000_003 + number) % 2**32, constant_liar=True
            )
            self._study.ask({a.name: self._distribution(a) for a in self._axes})
            trial, texts = self._trials()[-1]
            found.append((trial.number, texts))
        return found

    def scored(self) -> list[tuple[dict[str, str], float]]:
        """Texts and values of the trials that have them; infinite of those that failed."""
        return [
            (texts, math.inf if trial.value is None else trial.value)
            for trial, texts in self._trials()
            if trial.state.is_finished()
        ]

    def tell(self, number: int, score: float) -> None:
        """The value of a trial, the less the better; of one that failed, infinity.

        That it failed is no missing value: TPE would not learn from it, and draw its neighbors again.
        """
        self._study.tell(number, score)
