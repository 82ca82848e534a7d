"""The bundled weights say of the shipped photo what they said on the day they were bundled.

On every path, and whatever the versions of Python and of the dependencies (docs/quality.md). New
weights are new figures; this writes them, by PyTorch's own layers one after another:

  python tests/test_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ferfacenet import ImprovedVGG19, list_pretrained, load_pretrained, predict_proba, preprocess
from ferfacenet.transforms import ten_crop

TESTS = Path(__file__).parent
PHOTO = TESTS.parent / "docs" / "images" / "astronaut.jpg"
GOLDEN = TESTS / "golden.json"
NAMES = sorted(name for name, info in list_pretrained().items() if info.bundled)

#: The astronaut's face as FER2013 would frame it, in pixels.
FACE = (172, 67, 277, 172)
TOLERANCE = 1e-3


def face(model: ImprovedVGG19) -> Tensor:
    """The face as (1, 1, 48, 48), by Pillow and preprocess alone: no detector has a say."""
    with Image.open(PHOTO) as photo:
        crop = photo.crop(FACE)
    return preprocess(crop, align=False, mean=model.mean, std=model.std)[None]


def eager(model: ImprovedVGG19, x: Tensor) -> Tensor:
    """The paper's ten-crop answer (num_classes,), spelt out."""
    with torch.no_grad():
        logits = torch.stack([model(crop) for crop in ten_crop(x)])
    return (logits / model.temperature).softmax(-1).mean((0, 1))


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> ImprovedVGG19:
    return load_pretrained(request.param)


@pytest.fixture
def golden(model: ImprovedVGG19, request: pytest.FixtureRequest) -> Tensor:
    named: dict[str, float] = json.loads(GOLDEN.read_text())[request.node.callspec.params["model"]]
    assert tuple(named) == model.categories, "new weights: python tests/test_golden.py"
    row = torch.tensor(list(named.values()))
    assert row.max() - row.min() > 0.3, "a face that is nothing in particular would show little"
    return row


def differ(found: Tensor, golden: Tensor) -> float:
    return float((found - golden).abs().max())


def test_eager(model: ImprovedVGG19, golden: Tensor) -> None:
    assert differ(eager(model, face(model)), golden) <= TOLERANCE


@pytest.mark.parametrize("count", [1, 20])
def test_fast(model: ImprovedVGG19, golden: Tensor, count: int) -> None:
    """Alone, and among as many that the path for large batches is taken."""
    rows = predict_proba(model, face(model).expand(count, -1, -1, -1), precision="float32")
    assert differ(rows, golden) <= TOLERANCE


def test_bfloat16(model: ImprovedVGG19, golden: Tensor) -> None:
    """What predict_proba takes by itself where the processor computes it."""
    (row,) = predict_proba(model, face(model), precision="bfloat16")
    assert differ(row, golden) <= 10 * TOLERANCE
    assert row.argmax() == golden.argmax()


def test_found_by_the_detector(model: ImprovedVGG19, golden: Tensor) -> None:
    """The photo as it is: framed a little otherwise, and still the same expression."""
    pytest.importorskip("cv2", reason="needs the faces extra")
    (row,) = predict_proba(model, PHOTO, precision="float32")
    assert row.argmax() == golden.argmax()


def test_onnx(model: ImprovedVGG19, golden: Tensor) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the onnx extra")
    import export_onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(export_onnx.export(model))
    (rows,) = session.run(None, {"faces": face(model).numpy()})
    assert differ(torch.from_numpy(rows), golden) <= TOLERANCE


if __name__ == "__main__":
    found = {}
    for name in NAMES:
        network = load_pretrained(name)
        assert network.categories is not None
        row = eager(network, face(network)).tolist()
        found[name] = {c: round(p, 6) for c, p in zip(network.categories, row, strict=True)}
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
