import pytest
from conv_checks import check_bfloat16, check_names, check_parts, check_schemes, parameters

from finetune_jax.models.resnet import ResNet

SMALL = ResNet((1, 2), True, 5, (16, 32), 8)
BASIC = ResNet((1, 1), False, 5, (8, 16), 8)
KERAS = SMALL.clone(stride_first=True, conv_bias=True, epsilon=1.001e-5, momentum=0.99)


@pytest.mark.parametrize("model", [SMALL, BASIC, KERAS], ids=["bottleneck", "basic", "keras"])
def test_parts_make_the_whole(model):
    check_parts(model)


def test_logits_are_f32_when_the_rest_is_bfloat16():
    check_bfloat16(SMALL)


@pytest.mark.parametrize(
    ("origin", "model"), [("torchvision", SMALL), ("transformers", BASIC), ("keras", KERAS)]
)
def test_names_map_to_leaves_and_back(origin, model):
    check_names("resnet", origin, model)


def test_published_parameter_counts():
    # torchvision's num_params; Keras' summary of ResNet50, whose biases make the difference.
    assert parameters("resnet18") == 11_689_512
    assert parameters("resnet50") == 25_557_032
    assert parameters("resnet50_keras") == 25_583_592


def test_dropout_is_refused():
    with pytest.raises(ValueError, match="no dropout"):
        check_parts(SMALL.clone(dropout=0.1))


def test_schemes():
    check_schemes(
        SMALL,
        {
            "last_k(1)": {"layer2_block1", "head"},
            "norm_only": set(SMALL.stages),
            "lora(rank=2) + head": set(SMALL.stages),
            "ssf(on='norm.*') + head": set(SMALL.stages),
        },
    )
