"""Reference values of the adversarial losses and of R1 and R2, from PyTorch and its autograd.

    python tests/references/make_losses.py

writes ``losses.json`` beside this file. It needs torch. The logits and the critic's inputs are not stored: the
functions below make them from seeds, here and in the tests. Each loss is what its users write in PyTorch, float64.
"""

import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def logits(seed: int = 0):
    """Of 64 reals and 64 fakes."""
    rng = np.random.RandomState(seed)
    return 2 * rng.randn(64) + 0.5, 3 * rng.randn(64) - 0.5


def critic_inputs(seed: int = 1):
    """Reals and fakes ``[16, 3]`` and the weights ``[3, 5]`` of the critic ``sum(tanh(x w))``."""
    rng = np.random.RandomState(seed)
    return rng.randn(16, 3), rng.randn(16, 3), rng.randn(3, 5)


def main() -> None:
    import torch
    from torch.nn import functional as F

    def bce(x, label):
        return F.binary_cross_entropy_with_logits(x, torch.full_like(x, label))

    def mse(x, label):
        return F.mse_loss(x, torch.full_like(x, label))

    def average(pull):
        return (
            lambda r, f: pull(r - f.mean(), 1.0) + pull(f - r.mean(), 0.0),
            lambda r, f: pull(f - r.mean(), 1.0) + pull(r - f.mean(), 0.0),
        )

    def hinge(x, label):
        return F.relu(1 - (2 * label - 1) * x).mean()

    pairs = {
        "minimax": (lambda r, f: bce(r, 1.0) + bce(f, 0.0), lambda r, f: -bce(f, 0.0)),
        "nonsaturating": (lambda r, f: bce(r, 1.0) + bce(f, 0.0), lambda r, f: bce(f, 1.0)),
        "least_squares": (
            lambda r, f: 0.5 * mse(r, 1.0) + 0.5 * mse(f, 0.0),
            lambda r, f: 0.5 * mse(f, 1.0),
        ),
        "least_squares_pearson": (
            lambda r, f: 0.5 * mse(r, 1.0) + 0.5 * mse(f, -1.0),
            lambda r, f: 0.5 * mse(f, 0.0),
        ),
        "hinge": (lambda r, f: hinge(r, 1.0) + hinge(f, 0.0), lambda r, f: -f.mean()),
        "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
        "relativistic": (lambda r, f: bce(r - f, 1.0), lambda r, f: bce(f - r, 1.0)),
        "relativistic_average": average(bce),
        "relativistic_average_hinge": average(hinge),
        "relativistic_average_least_squares": average(lambda x, label: mse(x, 2 * label - 1)),
    }
    found: dict = {"torch": torch.__version__, "losses": {}, "penalties": {}}
    for name, pair in pairs.items():
        for player, loss in zip("dg", pair, strict=True):
            r, f = (torch.tensor(x, requires_grad=True) for x in logits())
            value = loss(r, f)
            slopes = torch.autograd.grad(value, (r, f), allow_unused=True)
            found["losses"][f"{name}/{player}"] = [
                value.item(),
                *(None if slope is None else slope.tolist() for slope in slopes),
            ]
    for name, at in (("r1", 0), ("r2", 1)):
        *points, weights = critic_inputs()
        x = torch.tensor(points[at], requires_grad=True)
        w = torch.tensor(weights, requires_grad=True)
        (slope,) = torch.autograd.grad(torch.tanh(x @ w).sum(), x, create_graph=True)
        value = 0.5 * slope.square().sum(1).mean()
        (change,) = torch.autograd.grad(value, w)
        found["penalties"][name] = [value.item(), change.tolist()]
    (HERE / "losses.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
