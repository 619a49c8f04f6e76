"""Networks of ``bpgan.nets``, described layer by layer."""

from collections.abc import Sequence

from bpgan.backprop.layers import Layer, conv, dense, gelu, leaky_relu, reshape, sequential, tanh


def _repeat(n: int, name: str, layer: Layer, activation: Layer) -> list[tuple[str, Layer]]:
    """``n`` times the layer and the activation, the layers named ``{name}0``, ``{name}1``, ..."""
    return [
        pair for i in range(n) for pair in ((f"{name}{i}", layer), (f"{name}{i}_y", activation))
    ]


def _mlp(hidden: int, *output: tuple[str, Layer]) -> Layer:
    """Flatten, ``hidden`` times (dense, leaky ReLU), dense, then the layers ``output``."""
    inner = _repeat(hidden, "dense", dense(), leaky_relu())
    return sequential(("flatten", reshape(-1)), *inner, (f"dense{hidden}", dense()), *output)


def mlp_generator(shape: Sequence[int], hidden: int = 1) -> Layer:
    """``nets.mlp.Generator`` with so many hidden layers: ``z[b, z] -> x[b, *shape]``."""
    return _mlp(hidden, ("tanh", tanh()), ("image", reshape(*shape)))


def mlp_discriminator(hidden: int = 2) -> Layer:
    """``nets.mlp.Discriminator`` with so many hidden layers: ``x[b, ...] -> logits[b]``."""
    return _mlp(hidden, ("logits", reshape()))


def mlp_classifier(hidden: int = 1) -> Layer:
    """``nets.mlp.Classifier`` with so many hidden layers: ``x[b, ...] -> logits[b, k]``."""
    return _mlp(hidden)


def cnn_classifier(convolutions: int = 2) -> Layer:
    """``nets.dcgan.Classifier`` with so many ``widths``: ``x[b, h, w, c] -> logits[b, k]``."""
    inner = _repeat(convolutions, "conv", conv(2, 1), gelu())
    hidden = _repeat(1, "dense", dense(), gelu())
    return sequential(*inner, ("flatten", reshape(-1)), *hidden, ("dense1", dense()))
