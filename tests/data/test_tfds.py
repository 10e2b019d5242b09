"""The TFDS path on a dataset prepared here by a real builder, without TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image

from finetune_jax.config import default
from finetune_jax.data.sources import Options, open_source
from finetune_jax.errors import UserError
from finetune_jax.setup import open_setup
from finetune_jax.training import prefix_cache
from finetune_jax.training.phase import PhaseRun

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def builder():
    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Ten gray pictures of two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(5, 5, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(10):
                encoded = io.BytesIO()
                Image.fromarray(np.full((5, 5), 20 * i, np.uint8)).save(encoded, "PNG")
                encoded.seek(0)
                yield str(i), {"image": encoded, "label": "light" if i > 4 else "dark"}

    return TinyPictures


def prepared(builder, folder):
    builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


@pytest.fixture(scope="module")
def data_dir(builder, tmp_path_factory):
    return prepared(builder, tmp_path_factory.mktemp("tfds"))


def test_a_prepared_dataset_reads_as_rgb_with_names_and_split_syntax(data_dir):
    source = open_source("tfds:tiny_pictures", data_dir=data_dir)
    assert source.class_names == ("dark", "light")
    assert source.splits == {"train": 10}
    examples = source.read("train[:70%]")
    assert len(examples) == 7
    for i in range(7):
        example = examples[i]
        assert example["image"].shape == (5, 5, 3)
        assert example["image"].dtype == np.uint8
        assert (example["image"][0, 0, 0] >= 100) == bool(example["label"])


def test_an_image_above_the_limit_is_refused_before_it_is_decoded(data_dir):
    def read(max_pixels):
        source = open_source(
            "tfds:tiny_pictures", Options(data_dir=data_dir, max_pixels=max_pixels)
        )
        return source.read("train")[0]["image"]

    assert read(25).shape == (5, 5, 3)
    with pytest.raises(UserError, match="5 x 5 pixels, more than the 24 of data.max_pixels"):
        read(24)


def test_an_unknown_split_is_refused(data_dir):
    with pytest.raises(UserError, match="unknown split 'test'"):
        open_source("tfds:tiny_pictures", data_dir=data_dir).read("test")


def test_two_copies_of_one_name_never_share_cached_activations(builder, data_dir, tmp_path):
    def key(folder):
        config = default()
        config.scheme = "last_k(1)"
        config.data.source, config.data.data_dir = "tfds:tiny_pictures", folder
        phase = PhaseRun(open_setup(config))
        variables = phase.setup.initial_variables()
        return prefix_cache._key(phase, variables, "train", 10, "", 1)

    assert key(data_dir) == key(data_dir)
    assert key(data_dir) != key(prepared(builder, tmp_path))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        """Texts with a class under another name, and a number."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label-coarse": tfds.features.ClassLabel(names=["a", "b"]),
                    "score": np.float32,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                yield str(i), {"text": f"grün {i}", "label-coarse": i % 2, "score": i / 2}

    return str(tmp_path_factory.mktemp("texts"))


def test_a_dataset_is_prepared_only_where_the_config_says_so(texts):
    with pytest.raises(UserError, match="data.prepare=True"):
        open_source("tfds:tiny_texts", data_dir=texts)
    source = open_source("tfds:tiny_texts", Options(data_dir=texts, prepare=True))
    assert source.splits == {"train": 6}


def test_texts_read_by_feature_and_classes_by_the_column_named(texts):
    plain = open_source("tfds:tiny_texts", Options(data_dir=texts, prepare=True))
    assert plain.class_names == ()
    assert set(plain.columns) == {"text", "label-coarse", "score"}
    source = open_source("tfds:tiny_texts", Options(data_dir=texts, label_column="label-coarse"))
    assert source.class_names == ("a", "b")
    examples = source.read("train")
    for i in range(6):
        number = int(examples[i]["text"].removeprefix("grün "))
        assert examples[i]["label"] == number % 2
        assert examples[i]["score"] == number / 2
    assert source.origin != plain.origin
    assert source.identity["version"] == "1.0.0" and len(source.identity["description"]) == 64
    with pytest.raises(UserError, match="Did you mean 'label-coarse'"):
        open_source("tfds:tiny_texts", Options(data_dir=texts, label_column="label_coarse"))


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    class TinyColumns(tfds.core.GeneratorBasedBuilder):
        """Labels in two features of 0 and 1, of which some are nan."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "dog": np.float32, "cat": np.bool_}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield (
                    str(i),
                    {"text": str(i), "dog": np.nan if i == 3 else i % 2, "cat": i % 2 == 0},
                )

    return str(tmp_path_factory.mktemp("columns"))


def test_labels_in_features(columns):
    def opened(**options):
        wanted = Options(data_dir=columns, prepare=True, label_columns=("cat", "dog"), **options)
        source = open_source("tfds:tiny_columns", wanted)
        assert source.class_names == ("cat", "dog") and "label" in source.columns
        return source.read("train")

    several = opened(task_labels="classes")
    labels = {several[i]["text"]: several[i]["label"] for i in range(4)}
    np.testing.assert_array_equal(labels["0"], [1, 0])
    np.testing.assert_array_equal(labels["3"], [0, np.nan])
    np.testing.assert_array_equal(several.labels(), [*labels.values()])
    examples = opened(task_labels="class")
    for number, text in enumerate(labels):  # in the order of the split
        if text == "3":
            with pytest.raises(UserError, match="example .: expected a 1 in exactly one"):
                examples[number]
        else:
            assert examples[number]["label"] == int(text) % 2
