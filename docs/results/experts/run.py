"""The paper's future work (VII), tried: a small network of its own for each expression it misses.

  python docs/results/experts/run.py --data fer2013.csv [--weights fer2013] [--out FOLDER]

An expert is a hidden layer and one output on the shared trunk's embedding. It learns whether a
face shows its expression, from those Training images whose label it is or that the main network
nearly takes for it, and what it says is added to the main network's logit with one weight for all,
chosen on a twentieth of Training that no expert learns from. experts.json has PublicTest with and
without the experts, by the centre crop and its mirror.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tools"))

from _fer2013 import Faces, hold_out, load  # noqa: E402
from _settings import make_parser  # noqa: E402

from ferfacenet import ImprovedVGG19, load_pretrained  # noqa: E402
from ferfacenet.model import FER2013_CATEGORIES  # noqa: E402
from ferfacenet.transforms import views  # noqa: E402

EXPERTS = ("fear", "sadness", "disgust")
WEIGHTS = [round(0.1 * step, 1) for step in range(11)]


@torch.no_grad()
def embed(model: ImprovedVGG19, faces: Faces) -> Tensor:
    """The embeddings of each face's centre crop and its mirror, (2, N, D)."""
    parts = []
    for images in torch.from_numpy(faces.images).split(128):
        both = views(images[:, None].float() / 255, "flip").flatten(0, 1)
        features = model.forward_features(both.contiguous(memory_format=torch.channels_last))
        parts.append(model.forward_head(features, pre_logits=True).unflatten(0, (2, -1)))
    return torch.cat(parts, 1)


def train_expert(x: Tensor, labels: Tensor) -> nn.Module:
    """A head that tells its expression, ``labels`` (N,) of 0 and 1, from embeddings (N, D)."""
    torch.manual_seed(0)
    head = nn.Sequential(
        nn.LayerNorm(x.shape[1]), nn.Dropout(0.5), nn.Linear(x.shape[1], 64), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(64, 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(20):
        for picked in torch.randperm(len(x)).split(128):
            loss = F.binary_cross_entropy_with_logits(head(x[picked])[:, 0], labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return head.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",))
    parser.add_argument("--weights", default="fer2013", help="name, folder or Hub id")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of experts.json")
    options = parser.parse_args(arguments)
    model, faces = load_pretrained(options.weights), load(options.data)
    training = faces.split("Training")
    out = hold_out(training, 0.05)
    kept, held = training.where(~out), training.where(out)
    heads: dict[int, nn.Module] = {}

    @torch.no_grad()
    def scores(x: Tensor, part: Faces, weight: float) -> dict[str, float]:
        logits = model.classifier(x) / model.temperature
        for expression, head in heads.items():
            logits[..., expression] += weight * head(x)[..., 0]
        labels = torch.from_numpy(part.labels)
        right = (logits.softmax(-1).mean(0).argmax(1) == labels).float()
        recall = [float(right[labels == i].mean()) for i in range(len(FER2013_CATEGORIES))]
        found = {"accuracy": float(right.mean()), "mean recall": sum(recall) / len(recall)}
        return found | {name: recall[FER2013_CATEGORIES.index(name)] for name in EXPERTS}

    seen, labels = embed(model, kept).flatten(0, 1), torch.from_numpy(kept.labels).repeat(2)
    likeliest = model.classifier(seen).topk(2).indices
    for expression in map(FER2013_CATEGORIES.index, EXPERTS):
        chosen = (labels == expression) | (likeliest == expression).any(1)
        own = (labels[chosen] == expression).float()
        heads[expression] = train_expert(seen[chosen], own)
    test, held_x = faces.split("PublicTest"), embed(model, held)
    x = embed(model, test)
    tried = {weight: scores(held_x, held, weight)["accuracy"] for weight in WEIGHTS}
    weight = max(tried, key=lambda key: (tried[key], -key))
    result = {
        "weights": options.weights,
        "weight": weight,
        "held-out accuracy by weight": tried,
        "without": scores(x, test, 0.0),
        "with": scores(x, test, weight),
        "PublicTest accuracy by weight": {w: scores(x, test, w)["accuracy"] for w in WEIGHTS},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "experts.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
