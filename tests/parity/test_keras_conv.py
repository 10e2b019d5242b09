"""Keras' ResNet against ours, from files of all three kinds; VGG's are in test_vgg16_story."""

from __future__ import annotations

import jax
import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="not run: needs requirements-reference.txt")
pytest.importorskip("h5py", reason="not run: needs requirements-reference.txt")

from harness import assert_within, delta, our_outputs  # noqa: E402

from finetune_jax.models import initial_variables  # noqa: E402
from finetune_jax.models.resnet import ResNet  # noqa: E402
from finetune_jax.pretrained import load  # noqa: E402

_DEPTHS, _WIDTHS = (2, 1), (32, 64)


def _reference():
    """keras.applications' ResNet of v1, with two short layers and random weights."""
    from keras.src.applications import resnet

    def layers(x):
        for i, (depth, width) in enumerate(zip(_DEPTHS, _WIDTHS, strict=True)):
            x = resnet.stack_residual_blocks_v1(
                x, width // 4, depth, stride1=2 if i else 1, name=f"conv{i + 2}"
            )
        return x

    model = resnet.ResNet(
        layers, preact=False, use_bias=True, weights=None, input_shape=(64, 64, 3), classes=7,
        classifier_activation=None, name="resnet",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    for layer in model.layers:
        drawn = []
        for weight, value in zip(layer.weights, layer.get_weights(), strict=True):
            noise = generator.normal(size=value.shape)
            if value.ndim > 1:
                drawn.append(noise / np.sqrt(np.prod(value.shape[:-1])))
            elif weight.name in ("gamma", "moving_variance"):
                drawn.append(np.abs(1 + 0.1 * noise))
            else:
                drawn.append(0.1 * noise)
        layer.set_weights(drawn)
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_resnet_equals_keras(tmp_path, suffix):
    reference = _reference()
    path = tmp_path / f"resnet{suffix}"
    if suffix == ".weights.h5":
        reference.save_weights(path)
    else:
        reference.save(path)
    model = ResNet(
        _DEPTHS, True, 7, _WIDTHS, stride_first=True, conv_bias=True, epsilon=1.001e-5,
        momentum=0.99,
    )  # fmt: skip
    init = initial_variables(model, 64, stages=())
    variables, manifest = load(path, "resnet", init)
    assert manifest.origin == "keras"
    assert set(manifest.counts()) == {"loaded"}
    ends = {
        "stem": "pool1_pool", "layer1_block0": "conv2_block1_out",
        "layer1_block1": "conv2_block2_out",
    }  # fmt: skip
    outputs = [reference.get_layer(name).output for name in ends.values()]
    x = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    *theirs, logits = keras.Model(reference.input, [*outputs, *reference.outputs])(x)
    ours, _ = our_outputs(model, jax.tree.map(np.asarray, variables), x, ends)
    deltas = [delta(stage, ours[stage], y) for stage, y in zip(ends, theirs, strict=True)]
    deltas.append(delta("logits", ours["logits"], logits))
    for item in deltas:
        print(item.what, f"{item.absolute:.2e} {item.relative:.2e}")
    assert_within(deltas)
