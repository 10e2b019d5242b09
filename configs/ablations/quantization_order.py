"""When to quantize: before training, after training, or while training (see the experiment).

Command (see experiments/quantization_order.py; TASK is digits, cifar10, trec or banking77):
  python -m finetune_jax.ablate --config=configs/ablations/quantization_order.py:TASK --workdir=DIR

For each format: LoRA over a quantized base, full fine-tuning and then quantization, and full
fine-tuning whose second half trains with rounded weights; beside LoRA and full fine-tuning in
float32. All rows have the same steps and the same grid of rates.
"""

from finetune_jax.configs.tasks.text_classification import get_config as classification

from finetune_jax.ablation.axes import chain
from finetune_jax.ablation.study import Study
from finetune_jax.configs import quickstart

CIFAR10 = "runs/quantization_order/images"
"""Folder of 2,500 training images and all test images, which the experiment writes."""

FORMATS = ("int8", "int4", "nf4")
LORA = "lora(rank=8) + head"
RATES = {
    "digits": [0.01, 0.03, 0.1],
    "cifar10": [0.003, 0.01, 0.03],
    "trec": [1e-4, 1e-3, 1e-2],
    "banking77": [1e-4, 1e-3, 1e-2],
}


def get_config(task: str = "digits"):
    if task not in RATES:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(RATES)}")
    config = _texts(task) if task in ("trec", "banking77") else _images(task)
    config.eval.every_epochs = config.train.epochs
    config.mesh.cpu_devices = 0
    config.log.tensorboard = False
    return config


def _images(task: str):
    """The shipped ResNet-20 with a new head, on digits or on 2,000 images of CIFAR-10."""
    config = quickstart.get_config()
    config.train.epochs = 3.0
    if task == "cifar10":
        config.data.source = f"folder:{CIFAR10}"
        config.data.train, config.data.validation = "train[:80%]", "train[80%:]"
        config.data.test = "test"
        config.data.image_size = 32
        config.eval.batch_size = 500
    return config


def _texts(task: str):
    """MiniLM on TREC's six types of questions, or on the 77 intents of Banking77."""
    config = classification(task)
    config.scheme = "full"
    count = 480 if task == "trec" else 1540
    config.data.train = f"train[:{count}]"
    config.train.epochs = 2.0 if task == "trec" else 3.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10
    return config


def _rows(epochs: float):
    yield {"scheme": "full"}
    yield {"scheme": LORA}
    for name in FORMATS:
        yield {"scheme": LORA, "model.frozen_dtype": name}
        yield {"scheme": "full", "artifact.quantize": name}
        aware = f"full + phase(quantize='{name}')"
        yield {"scheme": f"full + phase(epochs={epochs / 2:g}) >> {aware}"}


def get_study(task: str = "digits"):
    return Study(
        rows=chain(_rows(get_config(task).train.epochs)),
        tune=[{"optimizer.learning_rate": rate} for rate in RATES[task]],
        search="grid(extend=0)",
        seeds=(0, 1, 2),
    )
