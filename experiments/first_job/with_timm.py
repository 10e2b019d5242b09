"""The job with timm's library: photos/, resnet18.pth and new/ in the working folder."""

import csv
from pathlib import Path

import timm
import torch
from timm.data import ImageDataset, create_loader, resolve_data_config
from torch.utils.data import random_split

SCHEMES = {"probe": ("fc.",), "last": ("layer4.1.", "fc."), "full": ("",)}
data = ImageDataset("photos")
classes = sorted(data.reader.class_to_idx, key=data.reader.class_to_idx.get)
train, val = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
best = None
for name, trained in SCHEMES.items():
    model = timm.create_model("resnet18", checkpoint_path="resnet18.pth")
    model.reset_classifier(len(classes))
    for path, parameter in model.named_parameters():
        parameter.requires_grad = path.startswith(trained)
    sizes = resolve_data_config({}, model=model)
    images = {"input_size": sizes["input_size"], "mean": sizes["mean"], "std": sizes["std"]}
    images |= {"batch_size": 16, "use_prefetcher": False, "num_workers": 0}
    data.transform = None
    loader = create_loader(data, is_training=True, **images)
    train_transform = data.transform
    create_loader(data, is_training=False, **images)
    eval_transform = data.transform
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    model.train()
    data.transform = train_transform
    for step, (x, y) in enumerate(torch.utils.data.DataLoader(train, 16, shuffle=True)):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        print(f"{name} step {step} loss {loss.item():.3f}", flush=True)
    model.eval()
    data.transform = eval_transform
    with torch.no_grad():
        right = [model(x).argmax(1) == y for x, y in torch.utils.data.DataLoader(val, 16)]
    accuracy = torch.cat(right).float().mean().item()
    print(f"{name}: {accuracy:.3f}")
    if best is None or accuracy > best[0]:
        best = accuracy, model
best[1].eval()
new = ImageDataset("new", transform=eval_transform)
with open("predictions.csv", "w", newline="") as file, torch.no_grad():
    writer = csv.writer(file)
    writer.writerow(["path", "label", "probability"])
    for (x, _), path in zip(new, new.filenames(), strict=True):
        chances = best[1](x[None]).softmax(1)[0]
        writer.writerow([path, classes[chances.argmax()], chances.max().item()])
torch.save(best[1].state_dict(), "mine.pth")
Path("classes.txt").write_text("\n".join(classes))
