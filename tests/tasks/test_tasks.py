"""Tasks by themselves: their targets for the examples of a source, and their JSON."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from finetune_jax import tasks
from finetune_jax.data import preprocess
from finetune_jax.data.preprocess import ImagePairPreprocess, ImagePreprocess
from finetune_jax.data.sources import Source, open_source
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError
from finetune_jax.models import build, initial_variables
from finetune_jax.models.dense import per_place
from finetune_jax.models.pretraining import with_projection

IMAGES = ImagePreprocess(size=8, crop=0)
SOURCE = Source("things", ("ant", "bee", "cat"), {"train": 1}, lambda split: [])


def settings(loss: str = "", **keys):
    return ml_collections.ConfigDict({"loss": loss, "num_classes": 0, "neck": 0, **keys})


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_json_and_back(name, tokenizer):
    inputs = IMAGES
    if name == "similarity":
        inputs = TextPreprocess.open(tokenizer, 8, ("one", "other"), "apart")
    task = tasks.kind_of(name).create(settings(), SOURCE, inputs).for_features(7)
    again = tasks.from_json(json.loads(json.dumps(task.to_json())))
    assert again == task and type(again) is type(task)
    with pytest.raises(UserError, match=f"task '{name}': .*'colour'"):
        tasks.from_json({**task.to_json(), "colour": 3})


def test_a_loss_of_another_package_knows_no_unknown_labels():
    source = Source("things", ("ant", "bee"), {"train": 1}, lambda split: [], unknown=3)
    for loss in ("", "binary_focal(gamma=1)"):
        tasks.MultiLabel.create(settings(loss), source, IMAGES)
    with pytest.raises(UserError, match="3 labels of 'things' are unknown.* expected one of bin"):
        tasks.MultiLabel.create(settings("finetune_jax.tasks.objectives:binary"), source, IMAGES)


def test_names_that_do_not_exist():
    with pytest.raises(UserError, match="unknown task 'clasification'. Did you mean 'classificat"):
        tasks.kind_of("clasification")
    with pytest.raises(UserError, match="task.num_classes: the head would have 5 classes"):
        tasks.Classification.create(settings(num_classes=5), SOURCE, IMAGES)
    numbers = Source("numbers", (), {"train": 1}, lambda split: [])
    with pytest.raises(UserError, match="the labels of 'numbers' are not classes"):
        tasks.Classification.create(settings(), numbers, IMAGES)
    one = Source("one", ("a",), {"train": 1}, lambda split: [])
    with pytest.raises(UserError, match="has one class, and ordinal needs at least two"):
        tasks.Ordinal.create(settings(), one, IMAGES)
    for name in ("ordinal", "segmentation"):
        with pytest.raises(UserError, match=f"{name} has one loss only; expected ''"):
            tasks.kind_of(name).create(settings("focal"), SOURCE, IMAGES)


@pytest.mark.parametrize("kind", [tasks.Classification, tasks.Ordinal])
def test_labels_by_number_or_name(kind):
    task = kind(("ant", "bee", "cat"))
    for label in (1, np.int64(1), 1.0, "bee", b"bee"):
        made = task.host({"label": label})["label"]
        assert made == 1 and made.dtype == np.int32
    for label in (-1, 3, 0.5, np.array([1]), None, float("nan"), float("inf")):
        with pytest.raises(UserError, match="expected a class number from 0 to 2"):
            task.host({"label": label})
    with pytest.raises(UserError, match="unknown label 'bea'. Did you mean 'bee'"):
        task.host({"label": "bea"})


def test_labels_of_which_several_are_true():
    task = tasks.MultiLabel(("ant", "bee", "cat"))
    for label, expected in (
        (2, [0, 0, 1]), ("bee", [0, 1, 0]), ([], [0, 0, 0]), (["ant", "cat"], [1, 0, 1]),
        ([0, 1], [1, 1, 0]), (np.array([0, 2]), [1, 0, 1]), (np.array([1, 0, 1]), [1, 0, 1]),
        (np.array([True, True, False]), [1, 1, 0]), (np.array([], np.int64), [0, 0, 0]),
        (np.array([2, 0, 1]), [1, 1, 1]), (np.array(["bee", "ant"]), [1, 1, 0]),
        (np.array([1, np.nan, 0]), [1, -1, 0]), (np.array([np.nan] * 3), [-1, -1, -1]),
    ):  # fmt: skip
        made = task.host({"label": label})["label"]
        assert made.tolist() == expected and made.dtype == np.float32, label
    for label in (3, [-1], ["dog"], np.array([0, 5])):
        with pytest.raises(UserError, match="label"):
            task.host({"label": label})
    read = task.read(np.array([[3.0, -2.0, 5.0]]))[0]
    assert read["labels"] == ["cat", "ant"] and [*read["probabilities"]] == ["cat", "ant", "bee"]


@pytest.mark.parametrize("kind", [tasks.Regression, tasks.Similarity])
def test_targets_are_finite_numbers(kind):
    made = kind().host({"label": "2.5"})["label"]
    assert made == 2.5 and made.dtype == np.float32
    for label in ("high", float("nan"), None, [1.0, 2.0], "2,5", "1_000", "1e99", b"x"):
        with pytest.raises(UserError, match="expected a finite number"):
            kind().host({"label": label})


def test_masks_are_cut_like_their_pictures():
    task = tasks.Segmentation(("a", "b"), size=4, crop=0.5)
    mask = np.zeros((8, 16, 1), np.int64)
    mask[2:6, 6:10] = 1
    mask[2, 6] = 255
    example = {"mask": mask, "image": np.zeros((8, 16, 3), np.uint8)}
    made = task.host(example)["class_map"]
    assert made.dtype == np.uint8
    expected = np.ones((4, 4))
    expected[0, 0] = 255
    np.testing.assert_array_equal(made, expected)
    with pytest.raises(UserError, match=r"mask of shape \(8, 16\): expected one class number per"):
        task.host({"mask": mask[..., 0], "image": np.zeros((8, 8, 3), np.uint8)})
    with pytest.raises(UserError, match=r"from 0 to 1, and 255 .*, found \[7\]"):
        task.host({"mask": np.full((8, 8), 7)})


def test_similarity_needs_two_inputs(tokenizer):
    one = TextPreprocess.open(tokenizer, 8, ("text",), "apart")
    with pytest.raises(UserError, match="set data.text_columns to two names"):
        tasks.Similarity.create(settings(), SOURCE, one)
    pair = ImagePairPreprocess(size=8, crop=0)
    with pytest.raises(UserError, match="examples of 'things' have one image; set data.image_col"):
        tasks.Similarity.create(settings(), SOURCE, pair)


def test_a_pair_of_images_is_prepared_as_each_by_itself(tmp_path):
    pair, one = ImagePairPreprocess(size=8), ImagePreprocess(size=8)
    assert preprocess.from_json(json.loads(json.dumps(pair.to_json()))) == pair
    random = np.random.default_rng(0)
    # Of different sizes, as photographs are.
    pictures = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 12), (20, 8))]
    made = pair.host({"image": pictures[0], "image2": pictures[1]})
    apart = [one.host({"image": picture})["image"] for picture in pictures]
    np.testing.assert_array_equal(made["image"], np.stack(apart))
    batch = {"image": np.stack([made["image"], made["image"][::-1]])}
    assert batch["image"].shape == pair.abstract(2)["image"].shape
    rows = pair.device(batch)
    np.testing.assert_array_equal(rows, one.device({"image": np.stack([*apart, *reversed(apart)])}))
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    read = pair.read("\t".join(files))
    for found, picture in zip((read["image"], read["image2"]), pictures, strict=True):
        np.testing.assert_array_equal(found, picture)
    with pytest.raises(UserError, match="expected 2 image files separated by a tab, found 1"):
        pair.read(files[0])


def test_what_needs_images_refuses_texts(tokenizer):
    texts = TextPreprocess.open(tokenizer, 8, ("text",), "joined")
    for name in ("segmentation", "simclr", "supcon", "mae"):
        with pytest.raises(UserError, match=f"{name} needs images, not text"):
            tasks.kind_of(name).create(settings(), SOURCE, texts)


def test_texts_become_tokens(tokenizer):
    joined = TextPreprocess.open(tokenizer, 8, ("one", "other"), "joined")
    example = {"one": "the cat", "other": "a dog sat on the mat"}
    made = joined.host(example)
    # [CLS] the cat [SEP] and as much of the other as there is room for.
    assert made["input_ids"][:4].tolist() == [2, 5, 6, 3]
    assert made["input_ids"].shape == (8,) and made["attention_mask"].sum() == 8
    assert made["token_type_ids"][:4].sum() == 0 and made["token_type_ids"][-1] == 1
    apart = TextPreprocess.open(tokenizer, 8, ("one", "other"), "apart")
    made = apart.host(example)
    assert made["input_ids"].shape == (2, 8)
    assert made["input_ids"][0].tolist() == [2, 5, 6, 3, 0, 0, 0, 0]
    assert made["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    rows = apart.device({name: x[None] for name, x in made.items()})
    assert rows["input_ids"].shape == (2, 8)
    assert apart.read("the cat\ta dog") == {"one": "the cat", "other": "a dog"}
    with pytest.raises(UserError, match="expected 2 texts separated by tabs, found 1"):
        apart.read("the cat")
    with pytest.raises(UserError, match="an example has no column 'other'. Did you mean 'another'"):
        apart.host({"one": "a", "another": "b"})


def test_a_tokenizer_that_does_not_work_is_reported(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match="not a tokenizer's JSON"):
        TextPreprocess.open(tmp_path / "tokenizer.json", 8, ("text",), "joined")
    with pytest.raises(UserError, match="expected one or two columns, found a, b, c"):
        TextPreprocess.open(tokenizer, 8, ("a", "b", "c"), "joined")
    with pytest.raises(UserError, match="data.max_tokens: 3 tokens have no room"):
        TextPreprocess.open(tokenizer, 3, ("a", "b"), "joined")
    with pytest.raises(UserError, match="no file .*; expected the model's tokenizer.json"):
        TextPreprocess.open(tmp_path / "other.json", 8, ("text",), "joined")


def test_digits_as_attributes_and_masks():
    plain = open_source("digits").read("test[:20]")
    true = open_source("digits:attributes")
    assert true.class_names == ("odd", "prime", "multiple of 3", "above 4", "has a loop")
    masks = open_source("digits:masks")
    assert masks.class_names == ("background", *"0123456789")
    for i in range(20):
        digit, image = int(plain[i]["label"]), plain[i]["image"]
        label = true.read("test[:20]")[i]["label"].tolist()
        assert label[:4] == [digit % 2, digit in (2, 3, 5, 7), digit % 3 == 0, digit > 4]
        example = masks.read("test[:20]")[i]
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["mask"], (digit + 1) * (image[..., 0] >= 127))
    with pytest.raises(UserError, match="unknown variant 'digits:mask'. Did you mean 'masks'"):
        open_source("digits:mask")


@pytest.mark.parametrize("name", ["tiny_vit", "resnet20_cifar", "mobilenetv1_025"])
def test_models_take_one_stage_more(name):
    model = build(name, 3)
    dense = per_place(model, 32, neck=8)
    assert dense.stages == (*model.stages[:-1], "grid_neck", "head")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = initial_variables(dense, 32, stages=())
    shape = jax.eval_shape(dense.apply, variables, images).shape
    assert len(shape) == 4 and shape[0] == 2 and shape[3] == 3
    projected = with_projection(model, 8)
    assert projected.stages == (*model.stages[:-1], "projection", "head")
    variables = initial_variables(projected, 32, stages=())
    assert jax.eval_shape(projected.apply, variables, images).shape == (2, 3)


def test_models_without_a_grid_have_no_head_per_place():
    assert per_place(build("tiny_vit", 3), 16) == per_place(build("tiny_vit", 3), 16)
    with pytest.raises(UserError, match="has no grid of features"):
        per_place(build("siglip_b16", 3), 32)


def labels(*values, dtype=np.int32):
    return {"label": np.array(values, dtype)}


@pytest.mark.parametrize(
    ("task", "good", "bad", "message"),
    [
        (tasks.Classification(("a", "b")), labels(0, 1), labels(1, 1), "of the class 'b'"),
        (tasks.Ordinal(("a", "b")), labels(0, 1), labels(0, 0), "of the class 'a'"),
        (tasks.Regression(), labels(0.5, 1), labels(2.5, 2.5), "all targets are"),
        (tasks.Similarity(4), labels(0.5, 1), labels(1, 1), "all targets are 1"),
        (tasks.MultiLabel(("a", "b")), labels([0, 1]), labels([0, 0]), "no example has a label"),
        (tasks.MultiLabel(("a", "b")), labels([0, 1]), labels([1, 1]), "has every label"),
        (tasks.MultiLabel(("a", "b")), labels([0, 1, -1]), labels([1, -1]), "has every label"),
        (tasks.MultiLabel(("a", "b")), labels([0, 1]), labels([-1, -1, 0]), "no example has a lab"),
        (
            tasks.Segmentation(("a", "b"), 2),
            {"class_map": np.uint8([[0, 255], [1, 0]])},
            {"class_map": np.full((2, 2), 255, np.uint8)},
            "all pixels of all masks are ignored",
        ),
        (
            tasks.Segmentation(("a", "b"), 2),
            {"class_map": np.uint8([[0, 255], [1, 0]])},
            {"class_map": np.uint8([[0, 255], [0, 0]])},
            "of the class 'a'",
        ),
    ],
)
def test_targets_from_which_nothing_can_be_learned(task, good, bad, message):
    assert task.degenerate(good) == ""
    assert message in task.degenerate(bad)


def test_a_loss_that_reads_no_labels_needs_no_different_labels():
    assert tasks.Similarity(4, "contrastive").degenerate(labels(1, 1)) == ""


@pytest.mark.parametrize(
    "task, columns",
    [
        (tasks.Classification(("ant", "bee", "cat")), 3),
        (tasks.MultiLabel(("ant", "bee", "cat")), 3),
        (tasks.Ordinal(("ant", "bee", "cat")), 2),
        (tasks.Regression(mean=2.0, std=3.0), 1),
        (tasks.Similarity(), 4),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_the_numbers_of_an_exported_model_are_those_that_are_read(task, columns):
    outputs = np.random.default_rng(0).normal(size=(4, columns)).astype(np.float32)
    numbers = jax.tree.map(np.asarray, task.numbers(jnp.asarray(outputs)))
    for row, read in enumerate(task.read(outputs)):
        for name, values in numbers.items():
            by_class = isinstance(read[name], dict)
            expected = (
                [read[name][c] for c in task.class_names if c in read[name]]
                if by_class
                else read[name]
            )
            np.testing.assert_allclose(values[row], expected, rtol=1e-5, atol=1e-6)
