"""The TFDS path on a dataset prepared here by a real builder, without TensorFlow."""

import io

import numpy as np
import pytest
from PIL import Image

from finetune_jax.data.sources import open_source
from finetune_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
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

    folder = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


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


def test_an_unknown_split_is_refused(data_dir):
    with pytest.raises(UserError, match="unknown split 'test'"):
        open_source("tfds:tiny_pictures", data_dir=data_dir).read("test")
