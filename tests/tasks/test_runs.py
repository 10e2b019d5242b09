"""A run of every task, from its config to a prediction of its artifact."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from finetune_jax.artifact import Artifact
from finetune_jax.base_variables import load_variables
from finetune_jax.data.preprocess import ImagePreprocess
from finetune_jax.data.sources import open_source
from finetune_jax.data.text import TextPreprocess
from finetune_jax.errors import UserError
from finetune_jax.evaluation.evaluator import open_run
from finetune_jax.evaluation.predictions import predict_split
from finetune_jax.reporting.mistakes import mistakes
from finetune_jax.setup import open_setup
from finetune_jax.training.arms import run_arms
from finetune_jax.training.loop import train
from finetune_jax.training.phase import PhaseRun
from finetune_jax.training.teacher import open_teacher, translation, with_teacher


def losses(workdir):
    """Training losses by step."""
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([r["loss"] for r in rows if r["split"] == "train"])


def predicted(workdir, tmp_path, text=""):
    """The prediction of the artifact for a digit, or for a text."""
    kind = "text" if text else "image"
    if not text:
        text = str(tmp_path / "digit.png")
        Image.fromarray(open_source("digits").read("test")[0]["image"]).save(text)
    artifact = Artifact.load(workdir)
    if artifact.preprocess.kind == "image pair":
        kind, text = "image pair", f"{text}\t{text}"
    (answer,) = artifact.predict([text])
    assert answer.pop(kind) == text
    json.dumps(answer)
    return answer


# Values that must be equal for a head on cached activations and a head on the whole model.
CACHED = [
    pytest.param("classification", "class_balanced", {}, "probabilities",
                 marks=pytest.mark.slow),
    pytest.param("multilabel", "", {"data__source": "digits:attributes"}, "labels",
                 marks=pytest.mark.slow),
    pytest.param("ordinal", "", {}, "above", marks=pytest.mark.slow),
    pytest.param("regression", "huber", {}, "value", marks=pytest.mark.slow),
    pytest.param("segmentation", "", {"data__source": "digits:masks", "task__neck": 8,
                                      "scheme": "stages('grid_neck') + head"}, "shares",
                 marks=pytest.mark.slow),
    pytest.param("regression", "", {"texts": True}, "value", marks=pytest.mark.slow),
    pytest.param("similarity", "", {"data__source": "digits:pairs"}, "cosine",
                 marks=pytest.mark.slow),
    pytest.param("similarity", "contrastive", {"texts": True}, "cosine",
                 marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("task", "loss", "keys", "told"), CACHED)
def test_a_run_is_the_same_with_and_without_cached_activations(
    task, loss, keys, told, tiny, tmp_path
):
    keys = {"scheme": "linear_probe", **keys}
    if task == "similarity":
        keys["train__accumulate"] = 2
    results = []
    for enabled in (True, False):
        config = tiny(task, loss, **keys, prefix_cache__enabled=enabled)
        results.append(train(open_setup(config), tmp_path / str(enabled)))
    cached, whole = (losses(tmp_path / str(enabled)) for enabled in (True, False))
    assert len(cached) == 4 and np.isfinite(cached).all()
    np.testing.assert_allclose(cached, whole, rtol=1e-6, atol=1e-6)
    assert results[0]["test"] == pytest.approx(results[1]["test"], rel=1e-5, nan_ok=True)
    answer = predicted(tmp_path / "True", tmp_path, "the cat\ta red dog" if "texts" in keys else "")
    assert told in answer


@pytest.mark.slow
def test_a_fitted_task_predicts_in_the_units_of_its_labels(tiny, tmp_path):
    config = tiny("regression", scheme="linear_probe")
    train(open_setup(config), tmp_path)
    task = Artifact.load(tmp_path).task
    labels = [e["label"] for e in (open_source("digits").read("train[:32]")[i] for i in range(32))]
    assert task.mean == pytest.approx(np.mean(labels)) and task.std == pytest.approx(np.std(labels))
    assert 0 <= predicted(tmp_path, tmp_path)["value"] <= 9


@pytest.mark.slow
def test_pairs_of_highest_loss_are_shown_side_by_side(tiny, tmp_path):
    train(open_setup(tiny("similarity", data__source="digits:pairs")), tmp_path)
    evaluator = open_run(tmp_path)
    ((heading, body),) = mistakes(evaluator, predict_split(evaluator, "test"), tmp_path)
    assert heading == "Highest losses"
    assert body.count("<img") == 2 * body.count('class="mistake"') == 36


@pytest.mark.slow
def test_unknown_labels_of_a_table_are_left_out_of_a_run(tiny, tmp_path, capsys):
    words = ("cat", "dog", "tree")
    lines = ["text,cat,dog,tree"]
    for i in range(60):
        text = f"the {words[i % 3]} ran on {words[i // 3 % 3]}"
        known = [str(int(word in text)) if (i + j) % 4 else "" for j, word in enumerate(words)]
        lines.append(",".join([text, *known]))
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    results = []
    for cached in (True, False):
        config = tiny(
            "multilabel", texts=True, scheme="linear_probe", prefix_cache__enabled=cached,
            data__source=f"csv:{tmp_path}/t.csv", data__text_columns=("text",),
            data__label_columns=words, train__steps=40, data__train="train",
        )  # fmt: skip
        results.append(train(open_setup(config), tmp_path / str(cached)))
        assert "45 labels are unknown" in capsys.readouterr().err
        assert np.isfinite(losses(tmp_path / str(cached))).all()
    assert results[0]["test"] == pytest.approx(results[1]["test"], rel=1e-5, nan_ok=True)
    assert losses(tmp_path / "True")[-1] < 0.95 * losses(tmp_path / "True")[0]
    answer = Artifact.load(tmp_path / "True").predict(["the cat ran"])[0]
    assert {*answer["probabilities"]} == {*words}
    evaluator = open_run(tmp_path / "False")
    scores = evaluator.scores(evaluator.observe("test"))
    assert scores["loss"] == pytest.approx(results[1]["test"]["loss"], rel=1e-5)


def test_the_column_of_labels_is_no_input(tiny, tmp_path):
    (tmp_path / "t.csv").write_text("text,other\n" + "a cat,x\na dog,y\n" * 10)
    config = tiny(
        "classification", texts=True, data__source=f"csv:{tmp_path}/t.csv",
        data__text_columns=("text",), data__label_column="text",
    )  # fmt: skip
    with pytest.raises(UserError, match="data.label_column: 'text' is in data.text_columns, too"):
        open_setup(config)


def test_pairs_are_refused_by_tasks_of_one_image(tiny):
    with pytest.raises(UserError, match="regression reads one image .* expected 'similarity'"):
        open_setup(tiny("regression", data__source="digits:pairs"))


@pytest.mark.parametrize("task", ["regression", "similarity"])
def test_more_tokens_than_the_model_has_positions_are_refused(tiny, task):
    assert task == "similarity" or open_setup(tiny(task, texts=True, data__max_tokens=16))
    with pytest.raises(UserError, match="data.max_tokens: 17 tokens, .* expected at most 16"):
        open_setup(tiny(task, texts=True, data__max_tokens=17))


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"texts": True}, {"data__source": "digits:pairs"}])
def test_a_pretrained_encoder_is_scored_as_it_is_by_similarity(keys, tiny, tmp_path):
    """The head starts as the identity, so the first score is that of the bare features."""
    setup = open_setup(tiny("similarity", **keys))
    variables, _ = load_variables(setup)
    example = setup.source.read("test")[0]
    batch = {name: x[None] for name, x in setup.encode(example).items()}
    x = setup.preprocess.device(batch)
    features = setup.model.apply(variables, x, stop="head")
    assert features.shape == (2, 16)
    np.testing.assert_allclose(setup.model.apply(variables, x), features, rtol=1e-6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of the teacher's artifact, which the first test that needs it writes."""
    return tmp_path_factory.mktemp("teacher") / "run"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["distill", "distill_features"])
def test_a_teacher_is_read_and_not_saved(loss, tiny, teacher, tmp_path):
    if not teacher.exists():
        train(open_setup(tiny("classification", data__image_size=8)), teacher)
    text = f"{loss}(teacher={str(teacher)!r})"
    # The teacher sees pictures of another size than the student.
    setup = open_setup(tiny("classification", text, scheme="linear_probe"))
    result = train(setup, tmp_path / "run")
    assert np.isfinite(losses(tmp_path / "run")).all()
    # No leaf of the teacher trains, and no leaf of the teacher is saved.
    assert result["audit"]["frozen_leaves"] + result["audit"]["moved_leaves"] == len(
        setup.plan.leaves
    )
    own = Artifact.load(tmp_path / "run")
    assert jax.tree.map(np.shape, own.variables["params"]) == jax.tree.map(
        lambda x: x.shape, setup.abstract["params"]
    )
    saved = sum(p.stat().st_size for p in (tmp_path / "run" / "checkpoints").rglob("*"))
    assert saved < 2**20
    # An artifact does not need its teacher.
    assert own.task.teacher == str(teacher)
    predicted(tmp_path / "run", tmp_path)


@pytest.mark.slow
def test_a_student_equal_to_its_teacher_has_no_distillation_loss(tiny, teacher, tmp_path):
    if not teacher.exists():
        train(open_setup(tiny("classification", data__image_size=8)), teacher)
    config = tiny(
        "classification",
        f"distill(teacher={str(teacher)!r}, alpha=1)",
        data__image_size=8,
        pretrained__path=str(teacher / "artifact"),
        scheme="linear_probe",
    )
    train(open_setup(config), tmp_path)
    assert losses(tmp_path)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused(tiny, teacher):
    if not teacher.exists():
        train(open_setup(tiny("classification", data__image_size=8)), teacher)
    setup = open_setup(tiny("classification", f"distill(teacher={str(teacher)!r})"))
    other = dataclasses.replace(setup.task, class_names=("a", "b"))
    with pytest.raises(UserError, match="predicts classification with classes 0, 1, 2, 3, 4, 5, …"):
        open_teacher(other, setup.preprocess, setup.mesh)


def test_a_teacher_that_is_not_there_is_missed_before_any_step(tiny, tmp_path):
    text = f"distill(teacher={str(tmp_path / 'nobody')!r})"
    with pytest.raises(UserError, match="nobody: no such folder"):
        with_teacher(open_setup(tiny("classification", text)))


def test_a_student_and_its_teacher_see_the_same_picture(tokenizer):
    own = ImagePreprocess(size=8, crop=0)
    other = ImagePreprocess(size=8, crop=0, mean=(0.1, 0.2, 0.3), std=(2, 3, 4), channels="bgr")
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)

    def seen(preprocess):
        return preprocess.device({"image": preprocess.host({"image": image})["image"][None]})

    np.testing.assert_allclose(translation(own, other)(seen(own)), seen(other), atol=1e-5)
    np.testing.assert_allclose(translation(other, own)(seen(other)), seen(own), atol=1e-5)
    assert translation(own, own)("as it is") == "as it is"
    texts = TextPreprocess.open(tokenizer, 8, ("text",), "joined")
    with pytest.raises(UserError, match="the teacher reads texts, and the student images"):
        translation(own, texts)
    longer = TextPreprocess.open(tokenizer, 9, ("text",), "joined")
    with pytest.raises(UserError, match="expected the student's"):
        translation(texts, longer)


@pytest.mark.slow
def test_the_teacher_costs_no_gradient(tiny, teacher):
    """Its leaves are read: the step of a student holds their forward pass and nothing more."""
    if not teacher.exists():
        train(open_setup(tiny("classification", data__image_size=8)), teacher)

    def flops(loss):
        setup = with_teacher(open_setup(tiny("classification", loss, scheme="full")))
        compiled = PhaseRun(setup).compile_train_step()
        return compiled.cost_analysis()["flops"]

    plain = flops("")
    forward = plain / 3
    # At 8 pixels it has 5 tokens where the student has 17.
    assert plain < flops(f"distill(teacher={str(teacher)!r})") < plain + 0.6 * forward


@pytest.mark.slow
def test_arms_with_a_teacher_train_as_each_would_alone(tiny, teacher, tmp_path):
    if not teacher.exists():
        train(open_setup(tiny("classification", data__image_size=8)), teacher)
    text = f"distill(teacher={str(teacher)!r})"
    arms = [open_setup(tiny("classification", text, seed=seed)) for seed in (0, 1)]
    run_arms(arms, [tmp_path / "0", tmp_path / "1"])
    train(open_setup(tiny("classification", text, seed=1)), tmp_path / "alone")
    np.testing.assert_allclose(losses(tmp_path / "1"), losses(tmp_path / "alone"), rtol=1e-5)
