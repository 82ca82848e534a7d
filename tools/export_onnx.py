"""Writes a network as one ONNX file, checks it, and prints the lines that read a face with it.

  python tools/export_onnx.py --weights fer2013 --out ferfacenet.onnx

The file takes "faces", (batch, 1, 48, 48) float32 in [0, 1] as preprocess makes them, and gives
"probabilities", (batch, classes) float32, what predict_proba makes of them: normalisation, the
views of --tta, temperature, softmax and average are inside. Its metadata hold categories (a JSON
list) and tta. Needs the onnx extra.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba
from ferfacenet.transforms import SIZE, TTA, views
from ferfacenet.weights import write_atomically

SNIPPET = Path(__file__).parents[1] / "docs" / "examples" / "onnx_face.py"

#: The checked batch sizes, and the largest difference from PyTorch that passes.
BATCHES, TOLERANCE = (1, 7, 128), 1e-4

#: Of the opsets that PyTorch exports to, the oldest: the most runtimes read it.
OPSET = 18


class Probabilities(nn.Module):
    """``predict_proba`` as a module: (N, 1, 48, 48) to (N, num_classes)."""

    def __init__(self, model: ImprovedVGG19, tta: TTA | None) -> None:
        super().__init__()
        self.model, self.tta = model, tta

    def forward(self, faces: Tensor) -> Tensor:
        crops = views(faces, self.tta)
        rows = self.model(crops.flatten(0, 1)).softmax(1)
        mean: Tensor = rows.unflatten(0, (len(crops), -1)).mean(0)
        return mean


def export(model: ImprovedVGG19, tta: TTA | None = "flip") -> bytes:
    """The ONNX file of a model on the CPU, in eval mode."""
    with warnings.catch_warnings():
        # The exporter's own use of what PyTorch deprecates is none of our users' business.
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        program = torch.onnx.export(
            Probabilities(model, tta).eval(),
            (torch.zeros(2, 1, SIZE, SIZE),),
            input_names=["faces"],
            output_names=["probabilities"],
            dynamic_shapes={"faces": {0: torch.export.Dim("batch", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    categories = model.categories or tuple(map(str, range(model.num_classes)))
    program.model.metadata_props.update(categories=json.dumps(categories), tta=str(tta).lower())
    data: bytes = program.model_proto.SerializeToString()
    return data


def check(data: bytes, model: ImprovedVGG19, tta: TTA | None = "flip") -> float:
    """The largest difference of onnxruntime's probabilities from PyTorch's.

    Raises:
        RuntimeError: it is more than ``TOLERANCE``.
    """
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    blobs = torch.rand(max(BATCHES), 1, 6, 6, generator=torch.Generator().manual_seed(0))
    faces = nn.functional.interpolate(blobs, size=(SIZE, SIZE), mode="bilinear")
    expected = predict_proba(model, faces, tta=tta, precision="float32")
    worst = 0.0
    for count in BATCHES:
        (found,) = session.run(["probabilities"], {"faces": faces[:count].numpy()})
        worst = max(worst, float((torch.from_numpy(found) - expected[:count]).abs().max()))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"onnxruntime and PyTorch differ by {worst:.2g}, over {TOLERANCE:g}")
    return worst


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--weights", default="fer2013", help="name, folder or Hub id")
    parser.add_argument("--out", type=Path, default=Path("ferfacenet.onnx"), help="(%(default)s)")
    parser.add_argument("--tta", choices=("flip", "ten_crop", "none"), default="flip",
                        help="views of each face that are averaged (%(default)s)")
    # fmt: on
    options = parser.parse_args(arguments)
    tta = None if options.tta == "none" else options.tta
    model = load_pretrained(options.weights)
    data = export(model, tta)
    worst = check(data, model, tta)
    write_atomically(options.out, data)
    print(
        f"{options.out}: {len(data) / 1e6:.1f} MB; at batch {', '.join(map(str, BATCHES))} it "
        f"differs from PyTorch by at most {worst:.2g}.\n"
        f"To read a face with it (python snippet.py {options.out} face.jpg):\n"
    )
    print(SNIPPET.read_text(encoding="utf-8").split('"""\n', 2)[1].strip("\n"))


if __name__ == "__main__":
    main()
