"""Backpropagation written out by hand.

A layer is a pair of pure functions. ``forward`` computes ``y = f(x; w)`` and keeps what its
gradient needs; ``backward`` multiplies a cotangent by the transposed Jacobians,

    dx = (df/dx)^T dy,    dw = (df/dw)^T dy,

and a network applies the backward functions of its layers in reverse order (Rumelhart, Hinton &
Williams 1986, doi:10.1038/323533a0). Nothing from ``Layer`` to ``value_and_grad`` calls automatic
differentiation. Read the files in this order:

==============  =====================================================================================
``layers``      dense, convolutions, batch norm, activations, each with its ``backward``
``networks``    the networks of ``bpgan.nets``, described layer by layer
``losses``      losses and their gradients
``chain``       ``value_and_grad``: forward, loss, backward; and how JAX trains on it
``check``       ``check_gradients``: any gradient against central differences
==============  =====================================================================================

Three ways to use it:

* ``value_and_grad(network, loss)`` is the whole chain by hand: forward, loss, backward.
* ``by_hand(network)`` and ``losses_by_hand(name)`` have the types of ``Net.apply`` and
  ``AdversarialLoss``, so every algorithm trains on these gradients unchanged; JAX only chains them.
* ``check_gradients`` compares any gradient with central differences: use it on your own losses.

Parameters are nested dicts of the same tree as those of the Linen networks in ``bpgan.nets``, so
either side can take the other's. Axes: ``i o`` channels or features in and out, ``u v`` kernel rows
and columns; the others as in ``bpgan.types``.
"""

from bpgan.backprop.chain import Gradient, autodiff, by_hand, losses_by_hand, value_and_grad
from bpgan.backprop.check import GradientCheck, check_gradients
from bpgan.backprop.layers import (
    Layer,
    batch_norm,
    conv,
    conv_transpose,
    dense,
    gelu,
    leaky_relu,
    relu,
    reshape,
    sequential,
    sigmoid,
    tanh,
)
from bpgan.backprop.losses import ADVERSARIAL_GRADIENTS, Loss, cross_entropy, squared_error
from bpgan.backprop.networks import cnn_classifier, mlp_classifier, mlp_discriminator, mlp_generator

__all__ = [
    "ADVERSARIAL_GRADIENTS",
    "Gradient",
    "GradientCheck",
    "Layer",
    "Loss",
    "autodiff",
    "batch_norm",
    "by_hand",
    "check_gradients",
    "cnn_classifier",
    "conv",
    "conv_transpose",
    "cross_entropy",
    "dense",
    "gelu",
    "leaky_relu",
    "losses_by_hand",
    "mlp_classifier",
    "mlp_discriminator",
    "mlp_generator",
    "relu",
    "reshape",
    "sequential",
    "sigmoid",
    "squared_error",
    "tanh",
    "value_and_grad",
]
