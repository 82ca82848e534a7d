"""The paper's future work, tried: a small network of its own for each expression it misses most.

  python tools/experts.py --data fer2013.csv --weights fer2013 --out runs/experts

An expert is a hidden layer and one output on the shared trunk's embedding. It learns whether a
face shows its expression, from those Training images whose label it is or that the main network
nearly takes for it, and what it says is added to the main network's logit with one weight for all,
chosen on a twentieth of Training that no expert learns from. --out gets experts.json and table.md:
PublicTest with and without the experts, by the centre crop and its mirror.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from evaluate import prepare
from fer2013 import hold_out, load
from torch import Tensor, nn
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, load_pretrained
from ferfacenet.hub import write_atomically
from ferfacenet.inference import views

EXPERTS = ("fear", "sadness", "disgust")
WEIGHTS = [round(0.1 * step, 1) for step in range(11)]


@torch.no_grad()
def embed(model: ImprovedVGG19, images: Any, label: str) -> Tensor:
    """(N, 48, 48) uint8 to the embeddings of the centre crop and its mirror, (2, N, 512)."""
    parts = []
    for part in tqdm(prepare(model, images).split(128), desc=label, disable=None):
        both = views(part, "flip").flatten(0, 1).to(memory_format=torch.channels_last)
        found = model.forward_head(model.forward_features(both), pre_logits=True)
        parts.append(found.unflatten(0, (2, -1)))
    return torch.cat(parts, 1)


def hard(logits: Tensor, labels: Tensor, expression: int) -> Tensor:
    """Which images an expert learns from: its own, and where it is one of the two likeliest."""
    return (labels == expression) | (logits.topk(2).indices == expression).any(1)


def train_expert(x: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A head that tells its expression, ``labels`` (N,) of 0 and 1, from embeddings (N, D)."""
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.LayerNorm(x.shape[1]), nn.Dropout(0.5), nn.Linear(x.shape[1], 64), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(64, 1),
    )  # fmt: skip
    epochs, batch = 20, 128
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for picked in torch.randperm(len(x)).split(batch):
            loss = F.binary_cross_entropy_with_logits(head(x[picked])[:, 0], labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def combined(model: ImprovedVGG19, heads: dict[int, nn.Module], x: Tensor, weight: float) -> Tensor:
    """Embeddings of several views (V, N, D) to probabilities (N, C), the experts' word added."""
    logits = model.classifier(x) / model.temperature
    for expression, head in heads.items():
        logits[..., expression] += weight * head(x)[..., 0]
    mean: Tensor = logits.softmax(-1).mean(0)
    return mean


def scores(probabilities: Tensor, labels: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    right = probabilities.argmax(1) == labels
    recall = {name: float(right[labels == i].float().mean()) for i, name in enumerate(names)}
    found = {
        "accuracy": float(right.float().mean()),
        "mean recall": float(np.mean([*recall.values()])),
    }
    return found | {name: recall[name] for name in EXPERTS}


def table(result: dict[str, Any]) -> str:
    """A Markdown table, in percent."""
    columns = list(result["without"])
    rows = [f"| | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for label, key in (("the network", "without"), ("with its experts", "with")):
        rows.append(f"| {label} | {' | '.join(f'{100 * result[key][c]:.2f}' for c in columns)} |")
    return "\n".join(rows) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="fer2013.csv or the folder")
    parser.add_argument("--weights", default="fer2013", help="name, folder or Hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = load_pretrained(options.weights)
    names = model.categories or ()
    faces = load(options.data)
    kept, held = hold_out(faces.split("Training"), 0.05)
    parts = {"kept": kept, "held": held, "test": faces.split("PublicTest")}
    x = {key: embed(model, part.images, key) for key, part in parts.items()}
    y = {key: torch.from_numpy(part.labels) for key, part in parts.items()}

    seen, labels = x["kept"].flatten(0, 1), y["kept"].repeat(2)
    with torch.no_grad():
        logits = model.classifier(seen)
    heads = {}
    for expression in map(names.index, EXPERTS):
        chosen = hard(logits, labels, expression)
        own = (labels[chosen] == expression).float()
        heads[expression] = train_expert(seen[chosen], own, options.seed)
    tried = {
        weight: scores(combined(model, heads, x["held"], weight), y["held"], names)["accuracy"]
        for weight in WEIGHTS
    }
    weight = max(tried, key=lambda key: (tried[key], -key))
    result = {
        "weights": options.weights,
        "weight": weight,
        "held-out accuracy by weight": tried,
        "without": scores(combined(model, {}, x["test"], 0), y["test"], names),
        "with": scores(combined(model, heads, x["test"], weight), y["test"], names),
        "PublicTest accuracy by weight": {
            w: scores(combined(model, heads, x["test"], w), y["test"], names)["accuracy"]
            for w in WEIGHTS
        },
        "command": shlex.join(["python", "tools/experts.py", *(arguments or sys.argv[1:])]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "experts.json", (json.dumps(result, indent=2) + "\n").encode())
    write_atomically(options.out / "table.md", table(result).encode())
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
