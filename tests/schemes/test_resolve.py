import jax
import pytest

from finetune_jax import tree
from finetune_jax.errors import UserError
from finetune_jax.models import build, initialise
from finetune_jax.schemes import resolve


@pytest.fixture(scope="module", params=["resnet20_cifar", "vit_ti16"])
def model(request):
    module = build(request.param, 10, image_size=32)
    abstract = jax.eval_shape(lambda k: initialise(module, 32, k), jax.random.key(0))
    return module, abstract


def plan_of(model, scheme, **policies):
    module, abstract = model
    return resolve(scheme, module.stages, abstract["params"], abstract["batch_stats"], **policies)


@pytest.mark.parametrize(
    "scheme",
    [
        "full",
        "linear_probe",
        "last_k(2)",
        "first_k(1) + linear_probe",
        "norm_only",
        "bias_only",
        "stages('stem')",
        "[('head/.*', 'head(lr=10, decay=0.1)'), ('.*', 'frozen')]",
    ],
)
def test_every_leaf_is_in_exactly_one_half_and_text_is_canonical(model, scheme):
    plan = plan_of(model, scheme)
    trainable, frozen = plan.split(model[1]["params"])
    whole = tree.flatten(model[1]["params"])
    assert set(tree.flatten(trainable)) | set(tree.flatten(frozen)) == set(whole)
    assert not set(tree.flatten(trainable)) & set(tree.flatten(frozen))
    assert {leaf.path for leaf in plan.leaves} == set(whole)
    assert plan_of(model, plan.scheme) == plan


def test_parameter_counts_are_the_formulas():
    module = build("resnet20_cifar", 10, image_size=32)
    abstract = jax.eval_shape(lambda k: initialise(module, 32, k), jax.random.key(0))

    def count(scheme):
        return tree.size(plan_of((module, abstract), scheme).split(abstract["params"])[0])

    head = 64 * 10 + 10
    norms = 2 * (16 * 7 + 32 * 6 + 64 * 6)
    assert count("linear_probe") == head
    assert count("norm_only") == norms + head
    assert count("bias_only") == norms // 2 + head
    assert count("last_k(1)") == 2 * 9 * 64 * 64 + 4 * 64 + head
    assert count("first_k(1)") == 9 * 3 * 16 + 2 * 16 + 2 * 9 * 16 * 16 + 4 * 16
    assert count("full") == 269_722


def test_last_k_takes_the_final_norm_of_a_vit():
    module = build("vit_ti16", 10, image_size=32)
    abstract = jax.eval_shape(lambda k: initialise(module, 32, k), jax.random.key(0))
    plan = plan_of((module, abstract), "last_k(2)")
    stages = {leaf.stage for leaf in plan.leaves if leaf.trains}
    assert stages == {"block_10", "block_11", "norm", "head"}


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("lask_k(2)", "Did you mean 'last_k'"),
        ("last_k", "missing a required argument: 'k'"),
        ("last_k(99)", "whole number from 1 to"),
        ("stages('stme')", "Did you mean 'stem'"),
        ("full + norm_only", "'norm_only' is shadowed"),
        ("full(speed=3)", "unexpected keyword argument 'speed'"),
        ("full(lr=0)", "use the group 'frozen'"),
        ("[('.*', 'frozen')]", "trains nothing"),
        ("[('heat/kernel', 'a'), ('.*', 'frozen')]", "matches no leaf. Did you mean 'head/kernel'"),
        ("[('.*', 'frozen'), ('head/.*', 'a')]", "'head/.*' is shadowed"),
        ("[('head/.*', 'a')]", "no rule matches"),
        ("[('head/.*', 'a', 3)]", "every rule is"),
        ("[('head/(', 'a')]", "not a regular expression"),
        ("__import__('os').getcwd()", "cannot read"),
    ],
)
def test_bad_schemes_say_what_is_wrong(model, scheme, message):
    with pytest.raises(UserError) as error:
        plan_of(model, scheme)
    assert message in str(error.value)


def test_batch_norm_policy_decides_the_tracked_stages_and_the_hash():
    module = build("resnet20_cifar", 10, image_size=32)
    abstract = jax.eval_shape(lambda k: initialise(module, 32, k), jax.random.key(0))
    plans = {
        policy: plan_of((module, abstract), "last_k(1)", batch_norm=policy)
        for policy in ("frozen", "frozen_all", "track", "reestimate")
    }
    assert plans["frozen"].tracked == ("layer3_block2",)
    assert plans["frozen_all"].tracked == ()
    assert plans["track"].tracked == module.stages[:-1]
    assert len({plan.hash for plan in plans.values()}) == 4


def test_decay_mask_is_orthogonal_to_the_groups(model):
    plan = plan_of(model, "full(decay=0.3)")
    for leaf in plan.leaves:
        assert leaf.decays == leaf.path.endswith("kernel")
