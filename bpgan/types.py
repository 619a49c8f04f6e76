"""The vocabulary every module shares: array names, the two records, random streams, user errors.

Axis legend, used in all shape annotations:

====  =======================================
``b``  examples in a batch
``h w c``  image height, width, channels
``z``  latent dimension
``n``  samples or examples outside a batch
``f``  features
``k``  classes
====  =======================================

Images are NHWC floats in [-1, 1] inside a step and uint8 at rest. Logits are raw scores, never probabilities;
a high logit means "real".
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, Key, PyTree

PRNG = Key[Array, ""]
Images = Float[Array, "b h w c"]
Latents = Float[Array, "b z"]
Logits = Float[Array, " b"]
Labels = Int[Array, " b"]
Params = PyTree
Batch = Mapping[str, Any]
Metrics = dict[str, Any]


class Net(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: ``init(key, *inputs) -> variables``, a dict ``{"params": ..., **mutable collections}``.
      apply: ``apply(variables, *inputs, train) -> (output, mutable)``; ``mutable`` is the dict of the
        collections other than ``"params"`` as they are after the call (unchanged unless ``train``).
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class Network(NamedTuple):
    """One network of a trained system, to be used by itself.

    Attributes:
      variables: ``state -> variables``; their averages, where these are kept.
      apply: ``apply(variables, *inputs) -> output``, a pure function, as it is after training.
    """

    variables: Callable[[Any], Any]
    apply: Callable[..., Any]


class Algorithm(NamedTuple):
    """A trainable system as pure functions; the training loop sees nothing else.

    Attributes:
      init: ``init(key) -> state``, a NamedTuple of arrays with an int32 scalar field ``step``.
      step: ``step(state, batch, key) -> (state, metrics)``. ``key`` is the same root key at every step;
        the step folds ``state.step`` into it. ``metrics`` is a flat dict of scalars with fixed keys.
      sample: ``sample(state, key, n) -> images``, or None where there is nothing to draw. Where there are ``latents``,
        it takes ``z=latents[n, ...]``, too, in the place of those that it would draw with the key.
      classes: if not 0, ``sample`` takes int32 ``labels[n]`` below it as a fourth argument; without them it draws the
        classes in turn.
      objectives: ``objectives(state, batch, key) -> losses``, where ``losses({player: params})`` returns what each
        player minimizes in that step as a function of the parameters of all, and what comes beside it, dicts by player;
        None where nobody asks for them.
      latents: ``latents(key, n) -> z[n, ...]``, those that ``sample`` draws with this key.
      networks: by name; ``generator`` is ``(variables, z, labels) -> samples``, ``discriminator`` is
        ``(variables, x, labels) -> logits``, both without labels if there are no ``classes``; a generator with styles
        has its parts there: ``mapping``, ``(variables, z, labels) -> w``, and ``synthesis``,
        ``(variables, w) -> samples``.
      picture: ``picture(state, key, n) -> images``, what a run shows in the place of n samples that are not images.
      faults: what it means if a number of the state is no longer finite, by its path (``memory/NAME``), in the place of
        the advice to train more gently.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    sample: Callable[..., Any] | None = None
    classes: int = 0
    objectives: Callable[..., Any] | None = None
    latents: Callable[[PRNG, int], Any] | None = None
    networks: Mapping[str, Network] = {}
    picture: Callable[..., Any] | None = None
    faults: Mapping[str, str] = {}

    @property
    def shown(self) -> Callable[..., Any] | None:
        """What draws the grids of a run."""
        return self.picture or self.sample


class Normalization(NamedTuple):
    """How the gradient of G's adversarial term is divided by its size (``losses.normalized``).

    Attributes:
      decay: of the average of its squares.
      debias: whether the average, which starts from 0, is corrected for its start.
    """

    decay: float = 0.9
    debias: bool = False


class AdversarialLoss(NamedTuple):
    """What the two players minimize, as functions of logits: ``(real[b], fake[b]) -> loss[b]``, unreduced.

    Attributes:
      memory: None, or what D's loss remembers at the start, a pytree of float arrays (they are averaged): then
        ``d(real, fake, memory) -> (loss[b], memory)``.
      energy: whether the logits must be energies, minus the reconstruction error of an autoencoder (``nets.energy``).
      balances_at_zero: whether a D that cannot tell reals from fakes is best off with logits around 0. Only then does
        the sign of a logit say what D thinks, as an adaptive augmentation takes it to (``augment.adapt``).
      log_ratio: whether the best D is the log of the ratio of densities, up to a constant.
      normalization: of the gradient of what G minimizes at its samples; None: there is none.
    """

    d: Callable[..., Any]
    g: Callable[[Logits, Logits], Logits]
    memory: Any = None
    energy: bool = False
    balances_at_zero: bool = False
    log_ratio: bool = False
    normalization: Normalization | None = None


class Auxiliary(NamedTuple):
    """What conditional players minimize beside the adversarial loss.

    Attributes:
      loss: ``loss(head[b, ...], labels[b]) -> loss[b]``, of what D returns beside its logits.
      on_fakes: whether D minimizes it on fakes as well as on reals.
      mixes_examples: whether it compares the examples of a batch.
      for_g: whether G minimizes it, on fakes.
    """

    loss: Callable[[Any, Labels], Logits]
    on_fakes: bool
    mixes_examples: bool = False
    for_g: bool = True


class Source(NamedTuple):
    """Batches as a pure function of the step.

    Attributes:
      data: arrays that live on the device, passed into the compiled program as an argument; of a source that is read
        in windows, the shapes and types of one window, whose arrays are ``[steps, b, ...]``.
      batch_at: ``batch_at(data, step) -> {"x": ..., "y": ...}``, traceable; axis 0 is the global batch.
      length: examples per epoch.
      batch_size: rows of one batch.
      fingerprint: of the content of the data, never empty; a run is not resumed on data with another one.
      window: steps per window; 0 if ``data`` serves every step. Window ``i`` serves the steps from ``i * window`` on.
      windows: ``windows(i, rows)`` iterates over the windows from the i-th on, as NumPy arrays that hold only the rows
        ``rows``, a slice, of each batch.
      examples: a few examples spread over the data, on the host, as they are stored.
      facts: of a dataset of images, what a run remembers of it (``data.Dataset.facts``).
      average: examples in a batch on average, where not every row has one (``data.poisson``); 0: as many as rows.
    """

    data: PyTree
    batch_at: Callable[[Any, Any], Batch]
    length: int
    batch_size: int
    fingerprint: str
    window: int = 0
    windows: Callable[[int, slice], Iterator[PyTree]] | None = None
    examples: Any = ()
    facts: Mapping[str, Any] = {}
    average: float = 0.0

    @property
    def examples_per_step(self) -> float:
        """Examples in a batch, on average."""
        return self.average or self.batch_size

    @property
    def steps_per_epoch(self) -> float:
        """Steps after which every example has been seen once, on average a whole epoch."""
        return self.length / self.examples_per_step


@runtime_checkable
class Critic(Protocol):
    """Scores a batch of samples: ``x[b, ...] -> logits[b]``."""

    def __call__(self, x: Array, /) -> Array: ...


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things in words; ``plural`` where it takes more than an s.

    >>> counted(1, "run"), counted(2000, "run"), counted(0, "class is", "classes are")
    ('1 run', '2,000 runs', '0 classes are')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class UserError(Exception):
    """A mistake that the user can mend, in one line.

    Args:
      reason: what is wrong and what is allowed. Another argument stands in it in backquotes, with or without a value:
        "must divide `batch_size=64`", for a command line writes it another way.
      argument: the name of the argument that is at fault, which on a command line is a flag; empty if none is.
      value: its value; None if it is the argument itself that is wrong, whatever its value.
      beside: the names of arguments that it does not go together with: another value of one of them mends it, too.
    """

    def __init__(
        self, reason: str, *, argument: str = "", value: Any = None, beside: Sequence[str] = ()
    ):
        given = argument if value is None else f"{argument}={value}"
        super().__init__(f"{given}: {reason}" if argument else reason)
        self.reason, self.argument, self.value, self.beside = reason, argument, value, tuple(beside)


def stream(key: PRNG, name: str) -> PRNG:
    """The substream of ``key`` called ``name``.

    ``fold_in(key, crc32(name))``: independent of every other name, so adding a stream never moves another,
    and the same on every machine (unlike Python's ``hash``).
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
