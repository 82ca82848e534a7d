"""tools/experts.py on tiny data: what an expert learns from, and how its word is added."""

from __future__ import annotations

import json
from pathlib import Path

import experts
import pytest
import torch

from ferfacenet import ImprovedVGG19, load_pretrained, save_pretrained


def test_an_expert_learns_from_its_own_and_from_what_is_nearly_taken_for_it() -> None:
    logits = torch.tensor([[3.0, 2, 1], [3, 1, 2], [1, 3, 2], [2, 1, 3]])
    assert experts.hard(logits, torch.tensor([0, 1, 2, 2]), 1).tolist() == [True, True, True, False]


def test_an_expert_learns() -> None:
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 3] > x[:, 5]).float()
    head = experts.train_expert(x, labels, 0)
    assert ((head(x)[:, 0] > 0).float() == labels).float().mean() > 0.85


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = ImprovedVGG19(width=0.125)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.temperature = 1.5
    save_pretrained(model, tmp_path / "weights")
    return tmp_path / "weights"


def test_experts_of_a_network_are_measured(tiny_csv: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    experts.main(["--data", str(tiny_csv), "--weights", str(weights), "--out", str(out)])
    result = json.loads((out / "experts.json").read_text())
    part = experts.load(tiny_csv).split("PublicTest")
    model = load_pretrained(weights)
    edge = slice(2, 46)
    centre = experts.prepare(model, part.images)[..., edge, edge]
    with torch.no_grad():
        views = [(model(x) / model.temperature).softmax(1) for x in (centre, centre.flip(-1))]
    right = (sum(views).argmax(1) == torch.from_numpy(part.labels)).float()  # type: ignore[attr-defined]
    assert result["without"]["accuracy"] == pytest.approx(float(right.mean()))
    by_weight = result["PublicTest accuracy by weight"]
    assert by_weight["0.0"] == result["without"]["accuracy"]
    assert by_weight[str(result["weight"])] == result["with"]["accuracy"]
    assert (out / "table.md").read_text() == experts.table(result)
