"""InceptionV3 with PyTorch's weights, beside PyTorch: torch-fidelity's network (tf1) and pytorch-fid's (torch).

References: ``tests/references/features.npz``, made by ``make_features.py`` there from random weights with batch-norm
statistics that are not trivial. The published weights are not needed to show that the network is theirs.
"""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from references import make_features

from bpgan.evaluation import evaluate
from bpgan.evaluation import features as feature_nets
from bpgan.metrics.features import inception, preprocess
from bpgan.types import UserError

REFERENCE = np.load(pathlib.Path(__file__).parent / "references" / "features.npz")
TAPS = {
    "tf1": ("64", "192", "768", "2048", "logits_unbiased", "logits"),
    "torch": ("64", "192", "768", "2048"),
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def state():
    return make_features.random_state(inception.shapes())


@pytest.fixture(scope="module")
def params(state):
    return inception.params_of(state)


def error(preset, size, found, taps=None):
    """The largest relative Frobenius distance of any tap."""
    errors = []
    for tap in taps or TAPS[preset]:
        wanted = REFERENCE[f"{preset}/{size}/{tap}"]
        errors.append(np.linalg.norm(found[tap] - wanted) / np.linalg.norm(wanted))
    return max(errors)


def taps(params, preset="tf1", size="inception"):
    images = make_features.images(*make_features.SIZES[size])
    return jax.jit(lambda p, x: inception.taps(p, x, preset))(params, images)


@pytest.mark.medium
@pytest.mark.parametrize("preset", TAPS)
@pytest.mark.parametrize("size", make_features.SIZES)
def test_every_tap_is_pytorchs(params, preset, size):
    assert error(preset, size, taps(params, preset, size)) < TOLERANCE


def counted(x):
    return inception.nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=True)


MUTATIONS = {
    "the last block pools by average": ("_max_pool", inception._average_pool),
    "average pools count the padding": ("_average_pool", counted),
    "pixels over 127.5": ("PRESETS", {"tf1": ("tf1", 127.5, 127.5)}),
    "half-pixel centers": ("PRESETS", {"tf1": ("torch", 128.0, 128.0)}),
    "bicubic": ("PRESETS", {"tf1": ("clean", 128.0, 128.0)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_public_ports_get_wrong_would_show(params, monkeypatch, mutation):
    monkeypatch.setattr(inception, *MUTATIONS[mutation])
    assert error("tf1", "inception", taps(params), ["2048"]) > 20 * TOLERANCE


@pytest.mark.medium
def test_the_epsilon_of_batch_norms_would_show(state):
    found = taps(inception.params_of(state, eps=1e-5))
    assert error("tf1", "inception", found, ["2048"]) > 20 * TOLERANCE


@pytest.mark.medium
def test_mirrored_kernels_would_show(state):
    mirrored = {k: v[..., ::-1] if v.ndim == 4 else v for k, v in state.items()}
    found = taps(inception.params_of(mirrored))
    assert error("tf1", "inception", found, ["64"]) > 20 * TOLERANCE


@pytest.mark.parametrize("size, target", [((28, 28), 299), ((400, 310), 299), ((299, 299), 299)])
def test_the_clean_preset_resizes_as_pil_does_in_float(size, target):
    images = make_features.images(*size)
    wanted = np.stack(
        [
            np.stack(
                [
                    np.asarray(
                        Image.fromarray(image[..., c].astype(np.float32)).resize(
                            (target, target), Image.Resampling.BICUBIC
                        )
                    )
                    for c in range(3)
                ],
                -1,
            )
            for image in images
        ]
    ).clip(0, 255)
    found = preprocess.resize(images, target, "clean")
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_resizing_to_the_same_size_changes_nothing():
    images = make_features.images(64, 64)
    for how in ("tf1", "torch", "clean"):
        np.testing.assert_allclose(preprocess.resize(images, 64, how), images, atol=1e-3)


def test_images_must_have_one_or_three_channels():
    assert preprocess.rgb(np.zeros((2, 5, 5, 1), np.uint8), "net").shape == (2, 5, 5, 3)
    with pytest.raises(UserError, match="net: images have 4 channels; must be 1 or 3"):
        preprocess.rgb(np.zeros((2, 5, 5, 4), np.uint8), "net")


@pytest.fixture
def extractor(state, monkeypatch, tmp_path):
    """``extractor(preset, digest)`` of a file of random weights whose hash begins with ``digest``."""
    path = tmp_path / "weights.pth"
    path.touch()
    monkeypatch.setattr(inception.weights, "read", lambda _: state)
    monkeypatch.setattr(inception, "_BATCH", 2)

    def make(preset, digest):
        monkeypatch.setattr(inception.weights, "sha256", lambda _: digest + "0" * 56)
        return inception.extractor(path, preset)

    return make


@pytest.mark.medium
def test_only_the_published_weights_make_an_fid(extractor):
    published, other = extractor("tf1", "6726825d"), extractor("clean", "12345678")
    assert published.inception and published.name == "Inception-tf1"
    assert not other.inception and other.name == "Inception-unpublished-12345678-clean"
    names = ("FD", "nFD", "KD", "FD-inf", "IS", "recall-k3")
    assert [evaluate.name_of(n, published) for n in names] == [
        f"{n}-Inception-tf1" for n in ("FID", "nFID", "KID", "FID-inf", "IS", "recall-k3")
    ]
    assert not any("FID" in evaluate.name_of(n, other) for n in names)


@pytest.mark.medium
def test_an_extractor_takes_gray_and_color_images_of_any_size(extractor):
    found = extractor("tf1", "6726825d")
    images = make_features.images(40, 36)
    features = found.function(images)
    assert error("tf1", "inception", {"2048": features}, ["2048"]) < TOLERANCE
    assert found.logits is not None and found.logits(images[..., :1]).shape == (2, 1008)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="preset=pil: must be one of tf1, torch, clean"):
        inception.extractor(tmp_path / "a", "pil")
    with pytest.raises(UserError, match="nothing.pth: cannot be read"):
        feature_nets.parse(f"inception-clean:{tmp_path}/nothing.pth")("mnist10k")
    path = pathlib.Path(__file__).parent / "references" / "state_zip.pth"
    with pytest.raises(UserError, match="is of another network"):
        feature_nets.parse(f"inception:{path}")("mnist10k")
