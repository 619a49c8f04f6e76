"""Reference outputs of the feature networks, from PyTorch code that is not bpgan's.

    python tests/references/make_features.py

writes ``features.npz`` and ``*.pth`` beside this file. It needs torch, torch-fidelity 0.4, pytorch-fid 0.3 and
efficientnet-lite-pytorch 0.1; torchvision is not needed: what the two Inception codes import of it is stood in for by
blocks of torch-fidelity, over which pytorch-fid lays its own. Weights and images are not stored: the functions below
make them from seeds, here and in the tests.
"""

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import sys
import types
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def random_state(shapes):
    """Weights that keep the scale of activations, and batch-norm statistics that are not trivial."""
    state = {}
    for name, shape in sorted(shapes.items()):
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        last = name.rpartition(".")[2]
        if len(shape) > 1:
            value = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif last == "running_var":
            value = rng.uniform(0.5, 1.5, shape)
        elif last == "weight":
            value = rng.uniform(0.8, 1.2, shape)
        else:
            value = 0.1 * rng.randn(*shape)
        state[name] = value.astype(np.float32)
    return state


def images(height, width):
    """Two smooth color images with some noise, uint8 ``[2, h, w, 3]``."""
    rng = np.random.RandomState(7)
    y, x = np.mgrid[:height, :width] / max(height, width)
    phase = rng.uniform(0, 6, (2, 1, 1, 3))
    wave = np.sin(9 * x[None, ..., None] + phase) * np.cos(7 * y[None, ..., None] - phase)
    return np.clip(128 + 90 * wave + 12 * rng.randn(2, height, width, 3), 0, 255).astype(np.uint8)


SIZES = {"inception": (40, 36), "downscaled": (400, 310)}


def stand_in_for_torchvision(torch):
    """Modules with the names that pytorch-fid and torch-fidelity import."""

    def stand_in(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return object

    vision = types.ModuleType("torchvision")
    vision.__version__ = "0.20"
    for name in ("models", "datasets", "transforms"):
        module = types.ModuleType(f"torchvision.{name}")
        module.__getattr__ = stand_in
        setattr(vision, name, module)
        sys.modules[f"torchvision.{name}"] = module
    sys.modules["torchvision.transforms.functional"] = vision.transforms
    sys.modules["torchvision"] = vision
    from torch_fidelity import feature_extractor_inceptionv3 as ours

    inception = types.ModuleType("torchvision.models.inception")
    inception.InceptionA, inception.InceptionC = ours.InceptionA, ours.InceptionC
    inception.InceptionE = ours.InceptionE_1
    vision.models.inception = inception
    sys.modules["torchvision.models.inception"] = inception

    class Inception(torch.nn.Module):
        def __init__(self, **_):
            super().__init__()
            conv = ours.BasicConv2d
            self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
            self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
            self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
            self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
            self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
            self.Mixed_6a, self.Mixed_7a = ours.InceptionB(288), ours.InceptionD(768)
            self.fc = torch.nn.Linear(2048, 1008)

    vision.models.inception_v3 = Inception
    return ours


def main() -> None:
    import torch

    from bpgan.metrics.features import inception

    result, tensor = {}, lambda array: torch.tensor(np.ascontiguousarray(array))
    ours = stand_in_for_torchvision(torch)
    state = random_state(inception.shapes())
    path = HERE / "inception.tmp"
    torch.save({name: tensor(value) for name, value in state.items()}, path)
    taps = ["64", "192", "768", "2048", "logits_unbiased", "logits"]
    fidelity = ours.FeatureExtractorInceptionV3("x", taps, feature_extractor_weights_path=str(path))
    from pytorch_fid import inception as fid

    fid.load_state_dict_from_url = lambda *_, **__: torch.load(path)
    pytorch_fid = fid.InceptionV3(output_blocks=(0, 1, 2, 3)).eval()
    for name, size in SIZES.items():
        x = tensor(images(*size).transpose(0, 3, 1, 2))
        with torch.no_grad():
            for tap, value in zip(taps, fidelity(x), strict=True):
                result[f"tf1/{name}/{tap}"] = value.numpy()
            for tap, value in zip(taps, pytorch_fid(x.float() / 255), strict=False):
                result[f"torch/{name}/{tap}"] = value.mean((2, 3)).numpy()
    path.unlink()

    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if v.ndim}
    net.load_state_dict({k: tensor(v) for k, v in random_state(shapes).items()}, strict=False)
    x = tensor((images(224, 224).transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128)
    with torch.no_grad():
        result["effnet/features"] = net.extract_features(x).mean((2, 3)).numpy()
        result["effnet/logits"] = net(x).numpy()

    # Files of both formats: permuted, shared, offset, of several types.
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "plain": base,
        "permuted": base.permute(2, 0, 1),
        "part": base[:, 1:, ::2],
        "double": torch.linspace(0, 1, 5, dtype=torch.float64),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(tensors, HERE / f"state_{name}.pth", _use_new_zipfile_serialization=zipped)

    modules = [ours, fid, sys.modules[EfficientNet.__module__]]
    packages = ("torch", "torch-fidelity", "pytorch-fid", "efficientnet-lite-pytorch")
    provenance = {name: importlib.metadata.version(name) for name in packages} | {
        "sha256": {
            module.__name__: hashlib.sha256(pathlib.Path(module.__file__).read_bytes()).hexdigest()
            for module in modules
        },
        "date": datetime.date.today().isoformat(),
    }
    np.savez_compressed(HERE / "features.npz", provenance=json.dumps(provenance), **result)


if __name__ == "__main__":
    main()
