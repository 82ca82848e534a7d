"""Three classes of your own (or two, or ten) on top of the trained network.

  pip install ".[examples]"
  python finetune.py photos/ my_weights/

Each folder in photos/ is a class and holds its pictures: photos/calm/1.jpg, photos/tense/... What
cannot be read, or has no face, is named and skipped. A fifth of each class is kept out of the
training to measure on. What is saved is what save_pretrained writes: load_pretrained("my_weights")
and the ferfacenet command (--weights my_weights) read it.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ferfacenet import (
    WeightsError,
    load_pretrained,
    predict_proba,
    preprocess,
    save_pretrained,
)


def read(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor, int]:
    """The faces of all classes, (N, 1, 48, 48), the class of each, (N,), and how many files were
    skipped."""
    faces, labels, skipped = [], [], 0
    for label, name in enumerate(names):
        for path in tqdm(sorted((folder / name).iterdir()), desc=name, unit="picture"):
            try:
                faces.append(preprocess(path))
                labels.append(label)
            except (ValueError, OSError) as error:
                skipped += 1
                tqdm.write(f"skipped: {error}", file=sys.stderr)
        if label not in labels:
            sys.exit(f"{folder / name}: no picture with a face; add some, or remove the folder")
    return torch.stack(faces), torch.tensor(labels), skipped


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
    if options.photos.resolve() in options.out.resolve().parents:
        sys.exit(f"{options.out}: is in {options.photos}, where folders are classes; name another")
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # now, so that no training is lost
        model = load_pretrained(options.weights)
    except (OSError, WeightsError) as error:
        sys.exit(str(error))
    folders = sorted(path for path in options.photos.glob("[!.]*") if path.is_dir())
    if len(folders) < 2:
        sys.exit(f"{options.photos}: has to be a folder of two folders or more, one for each class")
    names = tuple(path.name for path in folders)
    x, y, skipped = read(options.photos, names)
    order = torch.randperm(len(y))
    # Every fifth of each class, so that one with few pictures still has some to learn from.
    number = F.one_hot(y[order]).cumsum(0).gather(1, y[order, None])[:, 0]
    held_out, train = order[number % 5 == 0], order[number % 5 > 0]

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
    print(f"{options.out}: {len(names)} classes, {len(train)} pictures learned, {skipped} skipped")
    if not len(held_out):
        print("none held out to measure on: that takes five pictures in a class")
        return
    true, found = y[held_out], predict_proba(model, x[held_out]).argmax(1)
    print(f"{(true == found).float().mean():.1%} of {len(true)} held-out pictures right; read as:")
    count, width = len(names), max(map(len, names)) + 2
    matrix = torch.bincount(count * true + found, minlength=count**2).view(count, count)
    print(" " * width + "".join(f"{name:>{width}}" for name in names))
    for name, row in zip(names, matrix.tolist(), strict=True):
        print(f"{name:<{width}}" + "".join(f"{cell:>{width}}" for cell in row))


if __name__ == "__main__":
    main()
