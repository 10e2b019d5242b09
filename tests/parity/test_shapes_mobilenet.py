"""Names and shapes of the small convolutional networks at their full sizes, without values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")
torchvision = pytest.importorskip("torchvision", reason="not run: needs requirements-reference.txt")
transformers = pytest.importorskip(
    "transformers", reason="not run: needs requirements-reference.txt"
)
keras = pytest.importorskip("keras", reason="not run: needs requirements-reference.txt")

from harness import assert_shapes  # noqa: E402


def _torch(make):
    def shapes():
        with torch.device("meta"):
            return {n: tuple(t.shape) for n, t in make().state_dict().items()}

    return shapes


def _keras(make):
    def shapes():
        return {
            f"{layer.name}/{variable.name}": tuple(variable.shape)
            for layer in make().layers
            for variable in layer.weights
        }

    return shapes


def _transformers():
    config = transformers.MobileNetV2Config(num_labels=1001)
    return transformers.MobileNetV2ForImageClassification(config)


_V1, _V2 = keras.applications.MobileNet, keras.applications.MobileNetV2
CASES = [
    ("mobilenetv2_100", "torchvision", _torch(torchvision.models.mobilenet_v2)),
    *(
        (name, "timm", _torch(lambda name=name: timm.create_model(name)))
        for name in ("mobilenetv2_050", "mobilenetv2_100", "mobilenetv2_140")
    ),
    ("mobilenetv2_100_tf", "transformers", _torch(_transformers)),
    ("mobilenetv2_100_keras", "keras", _keras(lambda: _V2(weights=None))),
    ("mobilenetv1_025", "keras", _keras(lambda: _V1(weights=None, alpha=0.25))),
    ("mobilenetv1_100", "keras", _keras(lambda: _V1(weights=None))),
    ("squeezenet1_0", "torchvision", _torch(torchvision.models.squeezenet1_0)),
]


@pytest.mark.parametrize(
    ("name", "origin", "reference"), CASES, ids=[f"{n}-{o}" for n, o, _ in CASES]
)
def test_every_tensor_has_its_leaf_and_every_leaf_its_tensor(name, origin, reference):
    assert_shapes(name, origin, reference())
