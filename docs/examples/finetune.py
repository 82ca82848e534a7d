"""Three classes of your own (or two, or ten) on top of the trained network.

  pip install ".[examples]"
  python finetune.py photos/ my_weights/

Each folder in photos/ is a class and holds its pictures: photos/calm/1.jpg, photos/tense/... A
fifth of them is kept out of the training to measure on. What is saved is what save_pretrained
writes: load_pretrained("my_weights") and the ferfacenet command (--weights my_weights) read it.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ferfacenet import load_pretrained, predict_proba, preprocess, save_pretrained


def augment(x: Tensor, crop: int = 44) -> Tensor:
    """(N, 1, 48, 48) to random crops, half of them mirrored, (N, 1, 44, 44)."""
    windows = x.unfold(2, crop, 1).unfold(3, crop, 1)
    top, left = torch.randint(windows.shape[2], (2, len(x)))
    x = windows[torch.arange(len(x)), :, top, left]
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_pretrained(options.weights)
    names = tuple(sorted(path.name for path in options.photos.iterdir() if path.is_dir()))
    files = [(path, names.index(path.parent.name)) for path in sorted(options.photos.glob("*/*"))]
    x = torch.stack([preprocess(path) for path, _ in tqdm(files, unit="picture")])
    y = torch.tensor([label for _, label in files])
    order = torch.randperm(len(files))
    held_out, train = order[: len(files) // 5], order[len(files) // 5 :]

    model.reset_classifier(len(names))
    model.categories = names
    # The new layer starts from nothing, the trunk needs but a touch.
    groups = [
        {"params": model.features.parameters(), "lr": options.lr / 10},
        {"params": model.classifier.parameters(), "lr": options.lr},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = options.epochs * -(-len(train) // options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()  # a few pictures make poor statistics: those of the weights stay
    for _ in (bar := tqdm(range(options.epochs), unit="epoch")):
        for part in train[torch.randperm(len(train))].split(options.batch_size):
            loss = F.cross_entropy(model(augment(x[part])), y[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")

    source = f"{len(train)} pictures of our own, from the weights {options.weights}"
    save_pretrained(model.eval(), options.out, trained_on=source)
    model = load_pretrained(options.out)
    true, read = y[held_out], predict_proba(model, x[held_out]).argmax(1)
    print(f"{(true == read).float().mean():.1%} of {len(true)} held-out pictures right; read as:")
    count, width = len(names), max(map(len, names)) + 2
    matrix = torch.bincount(count * true + read, minlength=count**2).view(count, count)
    print(" " * width + "".join(f"{name:>{width}}" for name in names))
    for name, row in zip(names, matrix.tolist(), strict=True):
        print(f"{name:<{width}}" + "".join(f"{number:>{width}}" for number in row))


if __name__ == "__main__":
    main()
