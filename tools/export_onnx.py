"""Writes a network and the face detector as two ONNX files, checks them, and prints the lines that
read a photo with them.

  python tools/export_onnx.py --weights fer2013 --out ferfacenet.onnx

The file takes "faces", (batch, 1, 48, 48) float32 in [0, 1] as preprocess makes them, and gives
"probabilities", (batch, classes) float32, what predict_proba makes of them: normalisation, the
views of --tta, temperature, softmax and average are inside. Its metadata hold categories (a JSON
list) and tta. yunet.onnx, beside it, takes "pictures", (batch, 3, height, width) float32 RGB in
[0, 1] with sides that are multiples of 32, and gives "places", (batch, n, 15): of each place where
a face may be the box x0, y0, x1, y1, five landmarks x, y, and the score. Needs the onnx extra.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from _settings import load_init
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, predict_proba
from ferfacenet.faces.yunet import load_detector
from ferfacenet.transforms import SIZE, TTA, views
from ferfacenet.weights import write_atomically

SNIPPET = Path(__file__).parents[1] / "docs" / "examples" / "onnx_face.py"

#: The checked batch sizes, and the largest difference from PyTorch that passes: of probabilities,
#: and of the detector's pixels.
BATCHES, TOLERANCE, PIXELS = (1, 7, 128), 1e-4, 0.01

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
    sizes = {0: torch.export.Dim("batch", min=1)}
    whole, x = Probabilities(model, tta).eval(), torch.zeros(2, 1, SIZE, SIZE)
    about = {"categories": json.dumps(model.categories), "tta": str(tta).lower()}
    return _export(whole, x, "faces", sizes, "probabilities", about)


def export_detector() -> bytes:
    """The ONNX file of the face detector."""
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    sizes = {0: batch, 2: 32 * height, 3: 32 * width}
    detector, x = load_detector(torch.device("cpu")), torch.zeros(2, 3, 96, 128)
    return _export(detector, x, "pictures", sizes, "places", {})


def _export(
    model: nn.Module,
    x: Tensor,
    taken: str,
    sizes: dict[int, Any],
    given: str,
    about: dict[str, str],
) -> bytes:
    """A model of one input, some of whose sizes are free, as a file with metadata."""
    with warnings.catch_warnings():
        # The exporter's own use of what PyTorch deprecates is none of our users' business.
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))
        program = torch.onnx.export(
            model,
            (x,),
            input_names=[taken],
            output_names=[given],
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(about)
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


def check_detector(data: bytes) -> None:
    """Raise a RuntimeError if onnxruntime's places differ from PyTorch's by over ``PIXELS``."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 480, 640), (2, 256, 256), (1, 32, 96)):
        x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        (found,) = session.run(["places"], {"pictures": x.numpy()})
        worst = float((torch.from_numpy(found) - load_detector(x.device)(x)).abs().max())
        if not worst <= PIXELS:
            raise RuntimeError(f"the detectors differ by {worst:.2g} pixels, over {PIXELS:g}")


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
    beside = options.out.with_name("yunet.onnx")
    if beside == options.out:
        raise SystemExit(f"--out {options.out}: the detector's file has this name")
    if not options.out.parent.is_dir():
        raise SystemExit(f"--out {options.out}: there is no folder {options.out.parent}")
    tta = None if options.tta == "none" else options.tta
    model = load_init(options.weights, "--weights")
    data, detector = export(model, tta), export_detector()
    worst = check(data, model, tta)
    check_detector(detector)
    write_atomically(options.out, data)
    write_atomically(beside, detector)
    print(
        f"{options.out}: {len(data) / 1e6:.1f} MB; at batch {', '.join(map(str, BATCHES))} it "
        f"differs from PyTorch by at most {worst:.2g}.\n{beside}: the face detector.\n"
        f"To read a photo with them (python snippet.py {options.out} {beside} photo.jpg):\n"
    )
    print(SNIPPET.read_text(encoding="utf-8").split('"""\n', 1)[1].strip("\n"))


if __name__ == "__main__":
    main()
