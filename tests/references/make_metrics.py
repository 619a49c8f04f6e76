"""Writes metrics.json: what other people's code gives for Fréchet and kernel distance, IS, MS-SSIM and Vendi.

Runs torch-fidelity 0.4.0 (FD, KID, IS), pytorch-fid 0.3.0 (FD), pytorch-msssim 1.0.0 (MS-SSIM, per scale five or
fewer), scikit-image (SSIM) and vendi-score 0.0.3 (Vendi) on the float64 inputs of ``cases``, which the tests
regenerate without those packages. None of them is a requirement of bpgan. In an environment of its own:

    pip install "numpy>=2.1,<2.5" "scipy>=1.11,<1.18" torch torch-fidelity==0.4.0 pytorch-msssim==1.0.0 \
        scikit-image scikit-learn vendi-score==0.0.3 tqdm pillow
    pip install --no-deps pytorch-fid==0.3.0
    python -O tests/references/make_metrics.py

``-O`` switches off the assertion with which pytorch-msssim insists on five scales. SciPy 1.18 removes the argument
``sqrtm(disp=False)`` that pytorch-fid 0.3.0 uses. torchvision is not needed: the packages import it only to load
datasets and networks, so an empty module takes its place here.
"""

import datetime
import importlib
import importlib.metadata
import json
import pathlib
import sys
import types
import warnings

import numpy as np

PATH = pathlib.Path(__file__).with_name("metrics.json")
KID_SUBSETS, KID_SIZE = 20, 100


def feature_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of feature sets (real, fake): full rank and not, more and fewer rows than features."""
    rng = np.random.RandomState(0)

    def pair(n: int, m: int, f: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
        mix = rng.randn(f, f) / np.sqrt(f) * np.logspace(0, -spread, f)
        return rng.randn(n, f) @ mix, 0.3 * rng.randn(f) + 1.3 * rng.randn(m, f) @ mix.T

    pairs = {
        "full_rank": pair(600, 600, 32, 0.5),
        "unequal": pair(900, 400, 32, 0.5),
        "ill_conditioned": pair(500, 700, 48, 3),
        "fewer_rows": pair(40, 25, 64, 0.5),
        "one_with_fewer_rows": pair(300, 40, 64, 0.5),
    }
    # Dead features, as after a ReLU, and features that repeat others.
    x, y = pair(400, 300, 32, 0.5)
    for features in (x, y):
        features[:, :6] = 0
        features[:, 6:12] = features[:, 12:18]
    return pairs | {"dead_features": (x, y)}


def logits() -> np.ndarray:
    """Class scores of which some are decided; 503 rows do not divide into 10 splits evenly."""
    return 3 * np.random.RandomState(1).randn(503, 12)


def image_pairs() -> dict[str, tuple[np.ndarray, np.ndarray, int, int]]:
    """uint8 image pairs ``[n, h, w, c]`` with the number of scales and the window to use on them."""
    rng = np.random.RandomState(2)

    def smooth(n: int, h: int, w: int, c: int) -> np.ndarray:
        image = rng.randn(n, h, w, c)
        for axis in (1, 2):
            for _ in range(8):
                image = image + np.roll(image, 1, axis)
        low, high = image.min(), image.max()
        return (image - low) / (high - low) * 255

    def pair(n: int, h: int, w: int, c: int) -> tuple[np.ndarray, np.ndarray]:
        x = smooth(n, h, w, c)
        noise = rng.randn(n, h, w, c) * np.linspace(3, 60, n)[:, None, None, None]
        return x.astype(np.uint8), np.clip(x + noise, 0, 255).astype(np.uint8)

    x, y = smooth(4, 28, 28, 1).astype(np.uint8), smooth(4, 28, 28, 1).astype(np.uint8)
    return {
        "small": (*pair(5, 28, 28, 1), 2, 11),
        "small_window": (*pair(5, 28, 28, 1), 3, 7),
        "color": (*pair(3, 176, 192, 3), 5, 11),
        "one_scale": (*pair(4, 20, 31, 1), 1, 11),
        "unrelated": (x, y, 2, 11),
        "negative": (x, 255 - x, 2, 11),
    }


def diverse_features() -> dict[str, np.ndarray]:
    """Features for the Vendi score: more and fewer rows than features."""
    rng = np.random.RandomState(3)
    return {"wide": rng.randn(30, 50) + 0.5, "tall": rng.randn(200, 12) + 0.5}


def _without_torchvision() -> None:
    """Puts a stand-in for torchvision where imports look, every attribute of which is an empty class."""

    def empty_class(attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    submodules = ("datasets", "models", "models.inception", "transforms", "transforms.functional")
    for name in ("", *("." + s for s in submodules)):
        stand_in = types.ModuleType("torchvision" + name)
        stand_in.__getattr__ = empty_class
        stand_in.__version__ = "0.0"
        sys.modules[stand_in.__name__] = stand_in
        parent, _, child = stand_in.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, stand_in)


def main() -> None:
    _without_torchvision()
    warnings.simplefilter("ignore", DeprecationWarning)

    import torch
    from pytorch_fid.fid_score import calculate_frechet_distance
    from pytorch_msssim import ms_ssim
    from skimage.metrics import structural_similarity
    from vendi_score import vendi

    torch.set_num_threads(1)
    fid, kid, isc = (
        importlib.import_module(f"torch_fidelity.metric_{m}") for m in ("fid", "kid", "isc")
    )
    kid_options = dict(
        kid_subsets=KID_SUBSETS,
        kid_subset_size=KID_SIZE,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=2020,
        verbose=False,
    )

    frechet, kernel_subsets, kernel_all = {}, {}, {}
    for name, (x, y) in feature_pairs().items():
        tx, ty = torch.from_numpy(x), torch.from_numpy(y)
        a, b = fid.fid_features_to_statistics(tx), fid.fid_features_to_statistics(ty)
        frechet[name] = {
            "torch-fidelity": fid.fid_statistics_to_metric(a, b, False)[
                "frechet_inception_distance"
            ],
            "pytorch-fid": float(
                calculate_frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"])
            ),
        }
        if min(len(x), len(y)) >= KID_SIZE:
            values = kid.kid_features_to_metric(tx, ty, **kid_options)
            kernel_subsets[name] = list(values.values())
        if len(x) == len(y):
            kernel_all[name] = float(kid.kernel_mmd(x, y, **kid_options))

    structural = {}
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    for name, (x, y, scales, window) in image_pairs().items():
        a, b = (torch.from_numpy(np.moveaxis(i, 3, 1).astype(np.float64)) for i in (x, y))
        w = weights[:scales] / weights[:scales].sum()
        values = ms_ssim(a, b, size_average=False, win_size=window, weights=w.tolist())
        structural[name] = values.tolist()
    x, y, _, window = image_pairs()["one_scale"]
    options = dict(
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
    )
    one_scale = [float(structural_similarity(*pair, **options)) for pair in zip(x, y, strict=True)]

    packages = ["torch-fidelity", "pytorch-fid", "pytorch-msssim", "scikit-image", "vendi-score"]
    packages += ["numpy", "scipy", "torch", "scikit-learn"]
    results = {
        "provenance": {
            "script": "tests/references/make_metrics.py",
            "date": datetime.date.today().isoformat(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
        },
        "frechet": frechet,
        "kernel_subsets": kernel_subsets,
        "kernel_all": kernel_all,
        "inception": list(isc.isc_features_to_metric(torch.from_numpy(logits())).values()),
        "ms_ssim": structural,
        "ssim": {"scikit-image": one_scale},
        "vendi": {
            name: [float(vendi.score_X(x)), float(vendi.score_dual(x))]
            for name, x in diverse_features().items()
        },
    }
    PATH.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
