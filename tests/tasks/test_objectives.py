"""Losses equal the formulas of their papers, which are written out in NumPy here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from finetune_jax.errors import UserError
from finetune_jax.models.pretraining import patch_order, patches_of, visible
from finetune_jax.tasks import Classification, MultiLabel, Ordinal, Regression, Similarity
from finetune_jax.tasks.contrastive import SimCLR, SupCon, ntxent, supcon
from finetune_jax.tasks.loss import mixed, parse_loss
from finetune_jax.tasks.masked import MaskedPixels, masked
from finetune_jax.tasks.objectives import MULTI, REAL, SINGLE, contrast
from finetune_jax.tasks.similarity import contrastive, cosine

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 4)).astype(np.float32) * 3
LABELS = np.array([0, 1, 2, 3, 1, 1])
ONES = np.eye(4, dtype=np.float32)[LABELS]
SMOOTH = {"label_smoothing": 0.0}


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def near(a, b) -> None:
    np.testing.assert_allclose(np.asarray(a), b, rtol=2e-5, atol=2e-6)


def test_cross_entropy_with_smoothing_and_mixed_images():
    task = Classification(tuple("abcd"))
    other = np.array([1, 1, 0, 2, 3, 0])
    share = np.linspace(0, 1, 6)
    batch = {"label": LABELS, "label2": other, "mix": share.astype(np.float32)}
    found = task.per_example(LOGITS, batch, {"label_smoothing": 0.2})["loss"]
    blend = share[:, None] * ONES + (1 - share[:, None]) * np.eye(4)[other]
    near(found, -((0.8 * blend + 0.2 / 4) * log_softmax(LOGITS)).sum(-1))
    # The score is the plain cross-entropy, whatever the training loss is.
    plain = Classification(tuple("abcd"), "focal").per_example(LOGITS, {"label": LABELS})["loss"]
    near(plain, -log_softmax(LOGITS)[np.arange(6), LABELS])


def test_focal():
    log_p = log_softmax(LOGITS)[np.arange(6), LABELS]
    near(parse_loss("focal(gamma=0)", SINGLE)(LOGITS, ONES), -log_p)
    expected = -((1 - np.exp(log_p)) ** 2.5) * log_p
    near(parse_loss("focal(gamma=2.5)", SINGLE)(LOGITS, ONES), expected)
    # The gradient is finite where the prediction is certain.
    sure = jnp.array([[200.0, 0, 0, 0]])
    loss = parse_loss("focal(gamma=0.5)", SINGLE)
    assert np.isfinite(jax.grad(lambda x: loss(x, ONES[:1]).sum())(sure)).all()


def test_class_balanced_takes_its_counts_from_the_training_split():
    task = Classification(tuple("abcd"), "class_balanced(beta=0.99)")
    assert task.needs_fit and not Classification(("a",), "focal").needs_fit
    fitted = task.fit({"label": np.repeat(np.arange(3), [100, 10, 1])})
    assert fitted.counts == (100, 10, 1, 0)
    weights = (1 - 0.99) / (1 - 0.99 ** np.array([100, 10, 1, 1.0]))
    weights *= 4 / weights.sum()
    found = fitted.per_example(LOGITS, {"label": LABELS}, SMOOTH)["loss"]
    near(found, -weights[LABELS] * log_softmax(LOGITS)[np.arange(6), LABELS])


def test_binary_losses():
    hot = (RANDOM.random((6, 4)) < 0.5).astype(np.float32)
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    both = -(hot * np.log(p) + (1 - hot) * np.log(1 - p))
    task = MultiLabel(tuple("abcd"))
    near(task.per_example(LOGITS, {"label": hot}, SMOOTH)["loss"], both.mean(-1))
    wrong = np.where(hot > 0, 1 - p, p)
    near(parse_loss("binary_focal", MULTI)(LOGITS, hot), (wrong**2 * both).mean(-1))
    near(parse_loss("binary_focal(gamma=0)", MULTI)(LOGITS, hot), both.mean(-1))


@pytest.mark.parametrize("loss", ["", "binary_focal(gamma=1.5)"])
def test_unknown_labels_are_in_no_loss_and_no_gradient(rng, loss):
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    labels = rng.integers(0, 2, (5, 4)).astype(np.float32)
    unknown = np.zeros((5, 4), bool)
    unknown[0, 1] = unknown[1, [0, 2, 3]] = unknown[4] = True
    task = MultiLabel(tuple("abcd"), loss)
    asked = np.where(unknown, np.float32(-1), labels)

    def mean(x):
        found = task.per_example(x, {"label": asked}, {"label_smoothing": 0.0})
        return found["loss"].mean(), found

    (_, found), slope = jax.jit(jax.value_and_grad(mean, has_aux=True))(logits)
    losses = np.logaddexp(0, logits) - logits * labels
    if loss:
        losses *= np.abs(labels - 1 / (1 + np.exp(-logits))) ** 1.5
    of_known = [row[known].mean() for row, known in zip(losses[:4], ~unknown[:4], strict=True)]
    np.testing.assert_allclose(found["loss"], [*of_known, 0], rtol=1e-5)
    right = ((logits > 0) == (labels > 0.5)) | unknown
    assert found["exact"].tolist() == right.all(1).tolist()
    slope = np.asarray(slope)
    assert (slope[unknown] == 0).all() and (slope[~unknown] != 0).all()


@pytest.mark.parametrize("loss", ["", "binary_focal(gamma=2)"])
def test_a_mean_over_known_labels_changes_no_bit_where_all_are_known(rng, loss):
    logits = rng.normal(size=(64, 7)).astype(np.float32)
    labels = rng.integers(0, 2, (64, 7)).astype(np.float32)

    def plain(x):
        losses = optax.sigmoid_binary_cross_entropy(x, labels)
        if loss:
            rest = jnp.maximum(jnp.abs(labels - jax.nn.sigmoid(x)), 1e-7)
            losses = losses * rest**2
        return losses.mean(-1)

    def ours(x):
        task = MultiLabel(tuple("abcdefg"), loss)
        return task.per_example(x, {"label": labels}, {"label_smoothing": 0.0})["loss"]

    def both(function):
        return jax.jit(lambda x: (function(x), jax.grad(lambda y: function(y).mean())(x)))

    for a, b in zip(both(ours)(logits), both(plain)(logits), strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_of_real_values():
    a, b = RANDOM.normal(size=(2, 5, 1)).astype(np.float32) * 3
    gap = np.abs(a - b)
    near(parse_loss("", REAL)(a, b), gap[:, 0] ** 2)
    near(parse_loss("absolute", REAL)(a, b), gap[:, 0])
    bent = np.where(gap <= 0.7, gap**2 / 2, 0.7 * (gap - 0.35))
    near(parse_loss("huber(delta=0.7)", REAL)(a, b), bent[:, 0])


def test_regression_is_learned_on_its_standardised_scale():
    task = Regression().fit({"label": np.array([10.0, 20, 30, 40], np.float32)})
    assert task.mean == 25 and task.std == pytest.approx(np.sqrt(125))
    found = task.per_example(jnp.array([[1.0]]), {"label": np.array([30.0], np.float32)})
    near(found["loss"], [(1 - 5 / np.sqrt(125)) ** 2])
    near(found["error"], [np.sqrt(125) - 5])
    same = Regression().fit({"label": np.full(100, 0.1, np.float32)})
    assert same.std == 1 and same.mean == pytest.approx(0.1)


def test_ordinal_thresholds():
    task = Ordinal(tuple("abcd"))
    assert task.head_size == 3
    outputs, labels = LOGITS[:, :3], np.array([0, 1, 2, 3, 3, 0])
    p = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    above = labels[:, None] > np.arange(3)
    found = task.per_example(outputs, {"label": labels})
    near(found["loss"], -np.where(above, np.log(p), np.log(1 - p)).sum(-1))
    near(found["error"], np.abs((outputs > 0).sum(-1) - labels))
    certain = np.array([[9.0, 9, -9]])
    assert task.read(certain)[0]["label"] == "c"


def test_distillation_by_logits():
    teacher = RANDOM.normal(size=(6, 4)).astype(np.float32) * 2
    loss = parse_loss("distill(teacher='x', temperature=3, alpha=0.7)", SINGLE)
    soft, own = log_softmax(teacher / 3), log_softmax(LOGITS / 3)
    divergence = (np.exp(soft) * (soft - own)).sum(-1)
    hard = -log_softmax(LOGITS)[np.arange(6), LABELS]
    near(loss(LOGITS, ONES, {"teacher": teacher}), 0.7 * 9 * divergence + 0.3 * hard)
    near(
        parse_loss("distill(teacher='x', alpha=1)", SINGLE)(LOGITS, ONES, {"teacher": LOGITS}),
        np.zeros(6),
    )


def test_distillation_by_features_of_another_width():
    own, other = RANDOM.normal(size=(6, 5)), RANDOM.normal(size=(6, 9))
    given = {"features": own.astype(np.float32), "teacher_features": other.astype(np.float32)}
    grams = []
    for x in (own, other):
        gram = x @ x.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    hard = -log_softmax(LOGITS)[np.arange(6), LABELS]
    loss = parse_loss("distill_features(teacher='x', weight=10)", SINGLE)
    found = np.asarray(loss(LOGITS, ONES, given))
    # The paper's loss is the sum of squares over b², here as a mean over examples.
    assert (found - hard).mean() == pytest.approx(
        10 * ((grams[0] - grams[1]) ** 2).sum() / 36, rel=1e-4
    )
    turned = {"features": given["features"], "teacher_features": -2 * given["features"]}
    near(loss(LOGITS, ONES, turned), hard)


def test_infonce_is_symmetric():
    pairs = RANDOM.normal(size=(5, 2, 8)).astype(np.float32)
    unit = pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)
    table = unit[:, 0] @ unit[:, 1].T / 0.1
    own = np.arange(5)
    expected = -(log_softmax(table)[own, own] + log_softmax(table.T)[own, own]) / 2
    task = Similarity(8, "contrastive(temperature=0.1)")
    batch = {"label": np.zeros(5, np.float32)}
    near(task.per_example(pairs.reshape(10, 8), batch, SMOOTH)["loss"], expected)
    swapped = pairs[:, ::-1].reshape(10, 8)
    near(task.per_example(swapped, batch, SMOOTH)["loss"], expected)


def test_cosine_loss_is_on_the_scale_of_the_training_labels():
    task = Similarity().for_features(2).fit({"label": np.array([0.0, 5, 3], np.float32)})
    outputs = np.array([[1, 0], [0.6, 0.8]], np.float32)
    found = task.per_example(outputs, {"label": np.array([4.0], np.float32)})
    near(found["cosine"], [0.6])
    near(found["loss"], [(0.6 - 0.8) ** 2])
    head = task.start_head({"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)})
    near(head["kernel"], np.eye(3, 2))
    near(head["bias"], [0, 0])


def test_contrastive_pretraining_losses():
    z = RANDOM.normal(size=(8, 3)).astype(np.float32)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosines = unit @ unit.T
    for groups, temperature in (
        (np.arange(8) // 2, 0.5),
        (np.array([0, 0, 1, 1, 0, 0, 2, 2]), 0.1),
    ):
        expected = []
        for i in range(8):
            others = [j for j in range(8) if j != i]
            total = sum(np.exp(cosines[i, j] / temperature) for j in others)
            alike = [j for j in others if groups[j] == groups[i]]
            expected.append(
                -np.mean([np.log(np.exp(cosines[i, j] / temperature) / total) for j in alike])
            )
        near(contrast(jnp.asarray(z), jnp.asarray(groups), temperature), expected)
    task = SimCLR()
    found = task.per_example(z, {})
    near(found["loss"], np.reshape(contrast(z, np.arange(8) // 2, 0.5), (4, 2)).mean(1))
    # An image that is alone in its class still has its other view.
    near(
        SupCon(("a", "b", "c", "d"), "supcon(temperature=0.5)").per_example(
            z, {"label": np.arange(4)}
        )["loss"],
        found["loss"],
    )
    assert contrast(z[:1], np.zeros(1, int), 0.5) == 0


def test_masked_pixels_count_the_hidden_patches_alone():
    images = RANDOM.normal(size=(3, 8, 8, 3)).astype(np.float32)
    patches = np.asarray(patches_of(images, 4))
    np.testing.assert_array_equal(patches[1, 1].reshape(4, 4, 3), images[1, :4, 4:])
    np.testing.assert_array_equal(patches[2, 2].reshape(4, 4, 3), images[2, 4:, :4])
    key = jax.random.key(5)
    order = np.asarray(patch_order(key, 3, 4))
    assert [sorted(row) for row in order.tolist()] == [[0, 1, 2, 3]] * 3
    assert visible(16, 0.75) == 4 and visible(2, 0.99) == 1 and visible(4, 0.01) == 3
    outputs = RANDOM.normal(size=patches.shape).astype(np.float32)
    flat = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
        patches.var(-1, keepdims=True) + 1e-6
    )
    for text, targets in (
        ("masked(mask=0.5)", flat),
        ("masked(mask=0.5, normalise=False)", patches),
    ):
        expected = [
            np.mean([((outputs[i, j] - targets[i, j]) ** 2).mean() for j in order[i, 2:]])
            for i in range(3)
        ]
        task = MaskedPixels(8, text)
        batch = {"pixels": images, "mask_key": key}
        near(task.per_example(outputs, batch)["loss"], expected)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        *((t, SINGLE) for t in ("cross_entropy", "focal", "class_balanced", "distill(teacher='x')",
                                "distill_features(teacher='x')")),
        *((t, MULTI) for t in ("binary", "binary_focal(gamma=0.5)")),
        *((t, REAL) for t in ("squared", "absolute", "huber")),
        ("ntxent", (ntxent,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_finite(text, known, scale):
    targets = ONES if known is not REAL else LOGITS
    given = {"counts": (1, 2, 3, 4), "teacher": LOGITS, "teacher_features": LOGITS}
    loss = parse_loss(text, known)

    def total(x):
        return loss(x, targets, {**given, "features": x}).sum()

    assert np.isfinite(jax.grad(total)(LOGITS * scale)).all()


@pytest.mark.parametrize("loss", ["cosine", "contrastive"])
def test_gradients_of_similarity_are_finite_even_for_nothing(loss):
    task = Similarity(4, loss)
    batch = {"label": np.zeros(3, np.float32)}
    gradient = jax.grad(lambda x: task.per_example(x, batch, SMOOTH)["loss"].sum())(
        jnp.zeros((6, 4))
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("text", "known", "message"),
    [
        ("focl", SINGLE, "unknown loss 'focl'. Did you mean 'focal'?"),
        ("focal + binary", SINGLE, "unknown loss 'focal .* binary'"),
        ("focal(gama=1)", SINGLE, "unknown argument 'gama'. Did you mean 'gamma'?"),
        ("focal(2)", SINGLE, "write focal.gamma=…"),
        ("focal(gamma=-1)", SINGLE, "expected a number >= 0 as gamma, found -1"),
        ("focal(gamma='a')", SINGLE, "expected a number >= 0 as gamma, found 'a'"),
        ("class_balanced(beta=1)", SINGLE, r"expected a number in \[0, 1\) as beta, found 1"),
        ("cross_entropy(gamma=1)", SINGLE, "unknown argument 'gamma'. It takes none"),
        ("distill", SINGLE, "missing a required .*argument: 'teacher'"),
        ("distill(teacher=3)", SINGLE, "expected a text as teacher, found 3"),
        ("huber(delta=0)", REAL, "expected a number > 0 as delta, found 0"),
        ("contrastive(temperature=0)", (cosine, contrastive), "> 0 as temperature, found 0"),
        ("masked(mask=1)", (masked,), r"in \(0, 1\) as mask, found 1"),
        ("masked(width=2.5)", (masked,), "expected a whole number >= 1 as width, found 2.5"),
        ("masked(normalise=1)", (masked,), "expected True or False as normalise, found 1"),
    ],
)
def test_wrong_losses_are_reported(text, known, message):
    with pytest.raises(UserError, match=message):
        parse_loss(text, known)


def test_mixed_takes_shares():
    batch = {
        "label": jnp.array([1.0, 1]),
        "label2": jnp.array([0.0, 3]),
        "mix": jnp.array([0.25, 1]),
    }
    near(mixed(lambda y: y * 2, batch), [0.5, 2])
    near(mixed(lambda y: y * 2, {"label": jnp.array([1.0])}), [2])


@pytest.mark.parametrize(
    ("name", "known", "options"),
    [
        ("focal", SINGLE, {"gamma": 2.0}),
        ("class_balanced", SINGLE, {"beta": 0.999}),
        ("distill(teacher='x')", SINGLE, {"teacher": "x", "temperature": 2.0, "alpha": 0.5}),
        ("distill_features(teacher='x')", SINGLE, {"teacher": "x", "weight": 3000.0}),
        ("binary_focal", MULTI, {"gamma": 2.0, "alpha": None}),
        ("huber", REAL, {"delta": 1.0}),
        ("contrastive", (cosine, contrastive), {"temperature": 0.05}),
        ("ntxent", (ntxent,), {"temperature": 0.5, "width": 128, "hidden": 128}),
        ("supcon", (supcon,), {"temperature": 0.1, "width": 128, "hidden": 128}),
        ("masked", (masked,), {"mask": 0.75, "normalise": True, "width": 128, "depth": 1,
                               "heads": 4}),
    ],
)  # fmt: skip
def test_default_options_are_those_of_the_papers(name, known, options):
    assert parse_loss(name, known).options == options


def test_an_empty_text_is_the_first_loss():
    for known in (SINGLE, MULTI, REAL, (cosine, contrastive)):
        assert parse_loss("", known).function is known[0]
    assert [losses[0].__name__ for losses in (SINGLE, MULTI, REAL)] == [
        "cross_entropy", "binary", "squared",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["focal(gamma=0)", "class_balanced(beta=0)", "focal(gamma=1)"])
def test_ends_of_ranges_that_are_allowed(text):
    parse_loss(text, SINGLE)


def test_smoothing_applies_to_every_loss_of_classes():
    found = Classification(tuple("abcd"), "focal(gamma=1)").per_example(
        LOGITS, {"label": LABELS}, {"label_smoothing": 0.2}
    )["loss"]
    log_p = log_softmax(LOGITS)
    near(found, -((0.8 * ONES + 0.05) * (1 - np.exp(log_p)) * log_p).sum(-1))
