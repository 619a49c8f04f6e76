"""Architectures by name, what is true of each, and how a text such as ``biggan:96,attention=16/mlp`` is read.

The last lines of an architecture's file enter it into ``ARCHITECTURES``. What an experiment has to know of a network,
such as whether it mixes the examples of a batch, is an attribute of its entry; there is no other list of names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from flax import linen as nn

from bpgan import lookup
from bpgan.nets import heads
from bpgan.nets.wrappers import labeled, linen_net
from bpgan.types import Net

CONDITIONS = ("concat", *(head for head in get_args(heads.Kind) if head != "modulation"))
"""How any discriminator may see labels: as channels of the image (``labeled``), or in one of the ``heads``."""

ALL_CONDITIONS = (*CONDITIONS, "modulation")
"""And that of those whose layers labels modulate."""


_MOST = 4096
"""Of the number of an option."""


class Option(NamedTuple):
    """What may follow an architecture's name after a comma.

    Attributes:
      unit: what the number of ``name=NUMBER`` is, in capitals; empty: the option is on where its name is written.
      of_labels: whether it says how labels are used, and so does nothing without them.
      meaning: in words, where the name does not say it.
    """

    unit: str = ""
    of_labels: bool = False
    meaning: str = ""


class Network(NamedTuple):
    """One player's network of an architecture.

    Attributes:
      build: ``build(shape, size, **given)``, a Linen module or a ``Net``, for images of ``shape[h, w, c]``. What is
        given: ``dtype``; ``classes`` if there are ``conditions`` beside "concat", and for a discriminator then
        ``head``; ``axis_name`` if examples are mixed; and all the options, 0 or False where they are not written.
      options: by name.
      mixes_examples: whether it has batch norm, so that the examples of a batch do not pass by themselves.
      mixes_unless: the option that takes the place of the batch norm.
      conditions: those of ``ALL_CONDITIONS`` that it can do; "concat" needs nothing of the network. Empty: it takes no
        labels. A generator that takes them does so however D does.
      flat: of a discriminator, whether it flattens its input at once.
      of_noise: of a generator, whether its latents are noise that has as many numbers as a sample.
      times: whether it can take times behind its first input, as ``build(..., times=, time_scale=)`` says: how many
        arrays ``f32[b]``, and what they are multiplied by.
      smooth: of a discriminator, whether its derivatives by what it sees are smooth and of the size of the network's
        own: no ReLU, no maxima, no layer norm.
      smooth_if: the option without which they are not.
    """

    build: Callable[..., nn.Module | Net]
    options: Mapping[str, Option] = MappingProxyType({})
    mixes_examples: bool = False
    mixes_unless: str = ""
    conditions: tuple[str, ...] = CONDITIONS
    flat: bool = False
    of_noise: bool = False
    times: bool = False
    smooth: bool = False
    smooth_if: str = ""


class Architecture(NamedTuple):
    """Networks of one kind for both players.

    Attributes:
      generator, discriminator: None where there is none.
      size: default of the number N in ``name:N``; 0: there is no such number.
      size_of: what the number is.
      size_is_width: whether it is a width, by which step sizes may be scaled.
      kernels: what the arrays called ``kernel`` are, if they are not the matrices of the layers.
      energy: whether D's logits are minus its reconstruction error, as some losses want them (``wrappers.energy``).
      mapping: whether G has methods ``mapping`` and ``synthesis``, its styles in between.
    """

    generator: Network | None = None
    discriminator: Network | None = None
    size: int = 0
    size_of: str = "channels"
    size_is_width: bool = True
    kernels: str = ""
    energy: bool = False
    mapping: bool = False


ARCHITECTURES: dict[str, Architecture] = {}
"""Every architecture by name. The files of this folder enter theirs; a user's code may enter more at any time."""


class Choice(NamedTuple):
    """The network of one player, as a text names it.

    Attributes:
      name: in ``ARCHITECTURES``, or ``module:name`` of the user's own.
      player: ``"g"`` or ``"d"``.
      size: 0 where the architecture has none.
      options: all that the network has, with 0 or False for those that are not written.
    """

    name: str
    player: Literal["g", "d"]
    architecture: Architecture
    size: int
    options: Mapping[str, int | bool]

    @property
    def network(self) -> Network:
        """The player's part of the architecture."""
        network = _network(self.architecture, self.player)
        assert network is not None  # ``parse`` has seen to it
        return network

    @property
    def mixes_examples(self) -> bool:
        """Whether the examples of a batch do not pass by themselves, with these options."""
        network = self.network
        return network.mixes_examples and not self.options.get(network.mixes_unless)

    @property
    def smooth(self) -> bool:
        """Whether derivatives of its derivatives can be trusted, with these options."""
        network = self.network
        return network.smooth and (not network.smooth_if or bool(self.options[network.smooth_if]))

    @property
    def conditions(self) -> tuple[str, ...]:
        """How D may see labels if this is one of the players; empty: there must be none."""
        own = self.network.conditions
        return ALL_CONDITIONS if own and self.player == "g" else own

    @property
    def width(self) -> int:
        """The size N where it is a width, such as of channels; 0 where it is another number, or there is none."""
        return self.size if self.architecture.size_is_width else 0

    @property
    def kernels(self) -> str:
        """What the kernels are, if not matrices."""
        return self.architecture.kernels

    @property
    def mapping(self) -> bool:
        """Whether it is a generator with a mapping."""
        return self.architecture.mapping and self.player == "g"

    def make(
        self,
        shape: tuple[int, int, int],
        *,
        dtype: Any,
        classes: int = 0,
        condition: str = "projection",
        axis_name: str | None = None,
        **times: Any,
    ) -> Net:
        """The network for images of ``shape[h, w, c]``.

        Args:
          dtype: of the computation.
          classes: of the labels; 0: unconditional.
          condition: one of the network's ``conditions``, without meaning for G or if there are no classes.
          axis_name: of the devices, over which batch norm averages.
          times: ``times`` and ``time_scale`` of a network that takes times.
        """
        network = self.network
        if self.player == "d" and classes and condition == "concat":
            plain = self.make(shape, dtype=dtype, axis_name=axis_name)
            return labeled(plain, classes, flat=network.flat)
        given: dict[str, Any] = {"dtype": dtype, **self.options, **times}
        if set(network.conditions) - {"concat"}:
            given["classes"] = classes
            if self.player == "d":
                given["head"] = condition if classes else "projection"
        if network.mixes_examples:
            given["axis_name"] = axis_name
        if ":" not in self.name:
            built = network.build(shape, self.size, **given)
            return built if isinstance(built, Net) else linen_net(built)
        build = lookup.guard(network.build, self.name, _check_built)
        built = build(shape, self.size, **given)
        net = built if isinstance(built, Net) else linen_net(built)
        return _guarded(net, self.name, shape if self.player == "g" else ())


def _check_built(built: Any, *given: Any) -> None:
    del given
    if not isinstance(built, nn.Module | Net):
        raise ValueError(f"built a {type(built).__name__}, must build a Linen module or a Net")


def _guarded(net: Net, name: str, shape: tuple[int, ...]) -> Net:
    """A network of the user's own, whose mistakes are told by its name.

    Args:
      shape: of what it makes of one example; () of a logit.
    """

    def check(returned: Any, variables: Any, x: Any, *labels: Any) -> None:
        del variables, labels
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError("apply must return (output, statistics)")
        out = returned[0] if shape or not isinstance(returned[0], tuple) else returned[0][0]
        wanted = (len(x), *shape)
        if getattr(out, "shape", None) != wanted:
            got = list(out.shape) if hasattr(out, "shape") else f"a {type(out).__name__}"
            what = "images" if shape else "one logit for each example"
            raise ValueError(f"returned {got}, must return {what}, {list(wanted)}")

    run = lookup.guard(net.apply, name, check)
    method = lookup.guard(net.apply, name, lambda *_: None)

    def apply(*args: Any, **options: Any) -> Any:
        return (method if options.get("method") else run)(*args, **options)

    return Net(lookup.guard(net.init, name, lambda *_: None), apply)


class Choices(NamedTuple):
    """The networks of both players."""

    g: Choice
    d: Choice


def _network(architecture: Architecture, player: str) -> Network | None:
    return architecture.generator if player == "g" else architecture.discriminator


def forms() -> list[str]:
    """The architectures as they may be written, such as ``mlp`` and ``dcgan:N``."""
    return [f"{name}:N" if a.size else name for name, a in ARCHITECTURES.items()]


def names(fact: Callable[[Architecture], Any]) -> list[str]:
    """The names of those for which something is true."""
    return [name for name, architecture in ARCHITECTURES.items() if fact(architecture)]


def unmixed(player: Literal["g", "d"]) -> list[str]:
    """The ways to write networks that take each example of a batch by itself."""
    found = []
    for name, architecture in ARCHITECTURES.items():
        network = _network(architecture, player)
        if network and not network.mixes_examples:
            found.append(name)
        elif network and network.mixes_unless:
            found.append(f"{name},{network.mixes_unless}")
    return found


def parse(text: str) -> Choices:
    """Reads ``NAME[:SIZE][,OPTION[=NUMBER]]...``, for both players, or one for G and after a slash one for D.

    An option that is written for both players is for those whose network has it. A name is that of an entry of
    ``ARCHITECTURES``, or ``module:name`` of an ``Architecture`` or a Linen module of the user's own: a module class
    with an attribute ``shape`` is a generator, another one a discriminator, both called as in this package.

    Raises:
      ValueError: for anything else, saying what is allowed.
    """
    g, slash, d = text.partition("/")
    if slash:
        return Choices(_choice(g, "g", "g"), _choice(d, "d", "d"))
    return Choices(_choice(g, "g", "gd"), _choice(g, "d", "gd"))


def _choice(text: str, player: Literal["g", "d"], written_for: str) -> Choice:
    start, *written = text.split(",")
    name, architecture, size = _sized(start)
    network = _network(architecture, player)
    if network is None:
        other = "d" if player == "g" else "g"
        pair = f"OTHER/{name}" if player == "g" else f"{name}/OTHER"
        raise ValueError(f"{name} can be {other.upper()} only, as in {pair}")
    had = [n for n in (_network(architecture, p) for p in written_for) if n]
    options: dict[str, int | bool] = {
        key: 0 if option.unit else False for key, option in network.options.items()
    }
    keys = [option.partition("=")[0] for option in written]
    for option in written:
        key, equals, value = option.partition("=")
        if keys.count(key) > 1:
            raise ValueError(f"{key} occurs twice")
        kinds = [n.options[key] for n in had if key in n.options]
        elsewhere = _network(architecture, "d" if player == "g" else "g")
        if not kinds and elsewhere and key in elsewhere.options:
            raise ValueError(f"{key} has no part in {name} as {player.upper()}; must be without")
        if not kinds or not (value.isdecimal() if kinds[0].unit else not equals):
            raise ValueError(f"{option!r}: the options are {_options()}")
        if equals and not 1 <= int(value) <= _MOST:
            raise ValueError(f"{option!r}: must be a whole number from 1 to {_MOST:,}")
        if key in options:
            options[key] = int(value) if kinds[0].unit else True
    return Choice(name, player, architecture, size, options)


def _sized(text: str) -> tuple[str, Architecture, int]:
    """Name, architecture and size of ``NAME[:SIZE]``, where a name may have a colon itself."""
    name, *rest = text.split(":")
    if name not in ARCHITECTURES and rest:
        name, rest = f"{name}:{rest[0]}", rest[1:]
    elif name not in ARCHITECTURES:
        raise ValueError(
            f"must be one of {', '.join(forms())}, or module:name of your own; for D another one"
            " after a slash"
        )
    architecture = own(lookup.find(ARCHITECTURES, name, "an architecture"), name)
    default = architecture.size
    if rest and not (default and len(rest) == 1 and rest[0].isdecimal() and int(rest[0]) > 0):
        allowed = f"{name}:N, N the {architecture.size_of}" if default else f"{name} alone"
        raise ValueError(f"{text!r}: must be {allowed}")
    return name, architecture, int(rest[0]) if rest else default


def own(found: Any, name: str) -> Architecture:
    """An architecture as it is, or that of a Linen module class of the user's own.

    The class says by its attributes what is true of it. It is a generator if it has ``shape``; it may have ``classes``,
    ``head`` (as of ``heads.score``), ``dtype``, and ``axis_name`` if it has batch norm.

    Raises:
      ValueError: if it is neither.
    """
    if isinstance(found, Architecture):
        return found
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name} must be an Architecture or a class of Linen modules")
    fields = {field.name for field in dataclasses.fields(found)}
    if "shape" in fields:
        conditions = CONDITIONS if "classes" in fields else ()
    elif "classes" in fields:
        conditions = CONDITIONS if "head" in fields else ("concat", "projection")
    else:
        conditions = ("concat",)

    def build(shape: tuple[int, int, int], size: int, **given: Any) -> nn.Module:
        del size  # there is none
        given = {key: value for key, value in given.items() if key in fields}
        return found(**given, **({"shape": shape} if "shape" in fields else {}))

    network = Network(build, mixes_examples="axis_name" in fields, conditions=conditions)
    if "shape" in fields:
        return Architecture(network, mapping=hasattr(found, "mapping"))
    return Architecture(discriminator=network)


def _options() -> str:
    """All options, and the architectures that have each."""
    found: dict[str, tuple[Option, list[str]]] = {}
    for name, architecture in ARCHITECTURES.items():
        for network in (architecture.generator, architecture.discriminator):
            for key, option in network.options.items() if network else ():
                users = found.setdefault(key, (option, []))[1]
                users.extend([] if name in users else [name])
    parts = [
        f"{key}{'=' * bool(option.unit)}{option.unit} ({', '.join(users)}"
        f"{': ' * bool(option.meaning)}{option.meaning})"
        for key, (option, users) in found.items()
    ]
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
