"""Reference values of the neighbor metrics and memorization tests, from code that is not bpgan's.

    python tests/references/make_neighbors.py --dgm-eval=FOLDER --dgm-eval-source="what is in FOLDER"

writes ``neighbors.json`` beside this file. It needs prdc 0.2, scikit-learn, torch, torch-fidelity 0.4 (whose own
imports, torchvision among them, are not needed: its module of this metric is loaded by itself), and the files
``dgm_eval/metrics/ct.py`` and ``authpct.py`` of github.com/layer6ai-labs/dgm-eval; the stored provenance says which
copy of them was run, with the hash of each file. The inputs are not stored: the functions below make them from seeds,
here and in the tests.
"""

import argparse
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np

HERE = pathlib.Path(__file__).parent


def gaussians(n: int, m: int, f: int, seed: int):
    """Real and fake of slightly different Gaussians, float64."""
    rng = np.random.RandomState(seed)
    return rng.randn(n, f), 0.9 * rng.randn(m, f) + 0.1


def lattice(n: int, m: int, f: int, seed: int):
    """Small integers, on which every implementation is exact: full of duplicates and ties, within and across sets."""
    rng = np.random.RandomState(seed)
    return (rng.randint(0, 3, (size, f)).astype(np.float64) for size in (n, m))


def blobs(kind: str, f: int, seed: int):
    """Fake, train and test of three clusters so far apart that k-means has one answer, of unequal weight.

    kind: fresh; copies (of train, with little noise); half (copies, half fresh); noise (twice the spread); missing (no
    fakes in a cluster but 20: too few to count).
    """
    rng = np.random.RandomState(seed)
    # A decaying spectrum: the first 64 principal components are well determined.
    spread = 0.97 ** np.arange(f)

    def sample(n):
        center = rng.choice(3, n, p=[0.5, 0.3, 0.2])
        return center, rng.randn(n, f) * spread + 12 * np.eye(3, f)[center]

    _, train = sample(700)
    _, test = sample(500)
    label, fresh = sample(600)
    copies = train[:600] + 0.3 * rng.randn(600, f) * spread
    fake = {
        "fresh": fresh,
        "copies": copies,
        "half": np.concatenate([copies[:300], fresh[300:]]),
        "noise": fresh + np.sqrt(3) * rng.randn(600, f) * spread,
        "missing": np.concatenate([fresh[label != 1], fresh[label == 1][:20]]),
    }[kind]
    return fake, train, test


PRDC_CASES = [
    {"make": make, "n": n, "m": m, "f": f, "seed": seed, "k": k}
    for make, n, m, f, seed in [
        ("gaussians", 1000, 1000, 64, 0),
        ("gaussians", 500, 700, 3, 1),
        ("lattice", 400, 300, 4, 2),
        ("lattice", 300, 300, 7, 3),
    ]
    for k in (1, 3, 5)
]
COPYING_CASES = [
    {"kind": kind, "f": f, "seed": seed}
    for seed, (kind, f) in enumerate(
        (kind, f) for f in (5, 90) for kind in ("fresh", "copies", "half", "noise", "missing")
    )
]


def load(name: str, path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_fidelity_prc():
    """torch_fidelity.metric_prc, with stand-ins for what it imports to extract features of images."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = []
    utils = types.ModuleType("torch_fidelity.utils")
    for name in ("create_feature_extractor", "extract_featuresdict_from_input_id_cached"):
        setattr(utils, name, None)
    for name in ("resolve_feature_extractor", "resolve_feature_layer_for_metric"):
        setattr(utils, name, None)
    folder = pathlib.Path(importlib.util.find_spec("torch_fidelity").origin).parent
    sys.modules |= {"torch_fidelity": package, "torch_fidelity.utils": utils}
    helpers = types.ModuleType("torch_fidelity.helpers")
    helpers.get_kwarg, helpers.vprint = None, None
    sys.modules["torch_fidelity.helpers"] = helpers
    return load("torch_fidelity.metric_prc", folder / "metric_prc.py")


def main() -> None:
    import prdc
    import torch
    from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

    parser = argparse.ArgumentParser()
    parser.add_argument("--dgm-eval", type=pathlib.Path, required=True)
    parser.add_argument("--dgm-eval-source", required=True)
    flags = parser.parse_args()
    dgm_eval = flags.dgm_eval / "dgm_eval" / "metrics"
    ct, authpct = load("ct", dgm_eval / "ct.py"), load("authpct", dgm_eval / "authpct.py")
    fidelity = torch_fidelity_prc()
    # It returns an array of one number where its caller wants a number, which NumPy 2.4 refuses.
    z_score = ct.Zu
    ct.Zu = lambda *samples: z_score(*samples).item()
    # By default scikit-learn approximates the components with unseeded random numbers: the score then changes from run
    # to run in the third digit.
    ct.PCA = functools.partial(ct.PCA, svd_solver="full")

    prdc_values, nearest_values = [], []
    for case in PRDC_CASES:
        real, fake = globals()[case["make"]](case["n"], case["m"], case["f"], case["seed"])
        ours = prdc.compute_prdc(real, fake, nearest_k=case["k"])
        # Its order is generated, real.
        precision, recall = fidelity.calculate_precision_recall_full(
            torch.tensor(fake), torch.tensor(real), neighborhood=case["k"]
        )
        values = {name: float(value) for name, value in ours.items()}
        prdc_values.append(
            case | {"prdc": values, "torch_fidelity": {"precision": precision, "recall": recall}}
        )
        if case["k"] == 5:
            d, _ = NearestNeighbors(n_neighbors=5, algorithm="kd_tree").fit(real).kneighbors(fake)
            keys = ("make", "n", "m", "f", "seed", "k")
            nearest_values.append({k: case[k] for k in keys} | {"sum": d.sum(axis=0).tolist()})

    copying = []
    for case in COPYING_CASES:
        fake, train, test = blobs(**case)
        both = np.concatenate([train, fake])
        label = np.repeat([0, 1], [len(train), len(fake)])
        # Without arguments kneighbors leaves out the point itself.
        neighbor = KNeighborsClassifier(1, algorithm="brute").fit(both, label)
        right = label[neighbor.kneighbors(n_neighbors=1)[1][:, 0]] == label
        copying.append(
            case
            | {
                "ct": float(ct.compute_CTscore(train, test, fake)),
                "authpct": float(authpct.compute_authpct(train, fake)),
                "authpct_test": float(authpct.compute_authpct(train, test)),
                "two_sample": [
                    float(right[s].mean()) for s in (label >= 0, label == 0, label == 1)
                ],
            }
        )

    packages = ("prdc", "torch-fidelity", "torch", "scikit-learn", "scipy", "numpy")
    provenance = {name: importlib.metadata.version(name) for name in packages} | {
        "torch-fidelity run": "metric_prc.py loaded alone, stand-ins for its imports",
        "dgm-eval": flags.dgm_eval_source,
        "dgm-eval changes": "ct.Zu's result, an array of one number, turned into a number; exact PCA",
        "dgm-eval sha256": {
            name: hashlib.sha256((dgm_eval / name).read_bytes()).hexdigest()
            for name in ("ct.py", "authpct.py")
        },
        "date": datetime.date.today().isoformat(),
    }
    result = {
        "provenance": provenance,
        "prdc": prdc_values,
        "nearest": nearest_values,
        "copying": copying,
    }
    (HERE / "neighbors.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
