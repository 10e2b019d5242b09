"""The job with the Trainer of transformers: photos/, resnet18/ and new/ in the working folder."""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

SCHEMES = {
    "probe": ("classifier.",),
    "last": ("resnet.encoder.stages.3.layers.1.", "classifier."),
    "full": ("",),
}
folder = ImageFolder("photos")
names = dict(enumerate(folder.classes))
processor = AutoImageProcessor.from_pretrained("resnet18")
folder.transform = lambda image: processor(image.convert("RGB"))["pixel_values"][0]
parts = torch.utils.data.random_split(folder, [0.8, 0.2], torch.Generator().manual_seed(0))


def collate(examples):  # noqa: D103
    images = torch.stack([torch.as_tensor(x) for x, _ in examples])
    return {"pixel_values": images, "labels": torch.tensor([y for _, y in examples])}


def accuracy(prediction):  # noqa: D103
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


best = None
for name, trained in SCHEMES.items():
    model = AutoModelForImageClassification.from_pretrained(
        "resnet18",
        id2label=names,
        label2id={v: k for k, v in names.items()},
        ignore_mismatched_sizes=True,
    )
    for path, parameter in model.named_parameters():
        parameter.requires_grad = path.startswith(trained)
    arguments = TrainingArguments(
        f"runs/{name}",
        per_device_train_batch_size=16,
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=parts[0],
        eval_dataset=parts[1],
        data_collator=collate,
        compute_metrics=accuracy,
    )
    trainer.train()
    found = trainer.evaluate()["eval_accuracy"]
    print(f"{name}: {found:.3f}")
    if best is None or found > best[0]:
        best = found, trainer
best[1].save_model("mine")
processor.save_pretrained("mine")
classify = pipeline("image-classification", "mine")
with open("predictions.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "label", "probability"])
    for path in sorted(Path("new").iterdir()):
        top = classify(Image.open(path).convert("RGB"))[0]
        writer.writerow([path, top["label"], top["score"]])
