"""Reference → ours → two steps of fine-tuning → the reference's names → the reference."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="not run: needs requirements-reference.txt")
timm = pytest.importorskip("timm", reason="not run: needs requirements-reference.txt")

from harness import randomise, save_safetensors  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from finetune_jax.artifact import Artifact  # noqa: E402
from finetune_jax.config import default  # noqa: E402
from finetune_jax.pretrained import save_as  # noqa: E402
from finetune_jax.setup import open_setup  # noqa: E402
from finetune_jax.training.loop import train  # noqa: E402


@pytest.mark.parametrize(
    ("ours", "theirs", "origin", "options"),
    [
        ("vit_ti16", "vit_tiny_patch16_224", "timm", {"img_size": 32}),
        ("resnet18", "resnet18", "torchvision", {}),
    ],
)
def test_a_fine_tuned_model_goes_back_where_it_came_from(tmp_path, ours, theirs, origin, options):
    path = save_safetensors(
        randomise(timm.create_model(theirs, num_classes=1000, **options)), tmp_path
    )
    config = default()
    config.model.name, config.pretrained.path = ours, str(path)
    config.data.image_size, config.data.test = 32, ""
    config.train.steps, config.train.batch_size, config.eval.batch_size = 2, 8, 64
    config.data.train, config.data.validation = "train[:16]", "validation[:16]"
    config.optimizer.learning_rate, config.log.tensorboard = 1e-3, False
    train(open_setup(config), tmp_path / "run")

    artifact = Artifact.load(tmp_path / "run")
    written = tmp_path / "exported.safetensors"
    save_as(written, artifact.variables, artifact_family(ours), origin, artifact.model.model.sizes)
    reference = timm.create_model(theirs, num_classes=10, **options)
    reference.load_state_dict(with_counters(reference, load_file(written)), strict=True)
    before, after = load_file(path), load_file(written)
    body = [n for n in after if before[n].shape == after[n].shape]
    assert len(after) - len(body) == 2  # the head
    assert sum(not torch.equal(before[n], after[n]) for n in body) > len(body) // 2

    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    images = np.asarray(artifact.preprocess.device({"image": pixels}))
    with torch.no_grad():
        expected = reference.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    difference = np.abs(np.asarray(artifact.outputs({"image": pixels})) - expected).max()
    assert difference <= 1e-5 * np.abs(expected).max()


def artifact_family(name: str) -> str:
    from finetune_jax.models import entry_of

    return entry_of(name).family


def with_counters(module, tensors):
    """The module's counters of batches, which are no weights."""
    counters = {n: t for n, t in module.state_dict().items() if n.endswith("num_batches_tracked")}
    return {**counters, **tensors}
