"""Writes what programs without PyTorch need: a network as one ONNX file, or a folder that finds and
reads every face of a photo.

  python tools/export_onnx.py --weights photos --out app
  python app/face_reader.py photo.jpg

A folder holds the network and the face detector, three small graphs of what is done to pixels on
the way, config.json with the numbers of the search, and face_reader.py, which needs numpy, Pillow
and onnxruntime alone. Its network computes in int8, but for the first layer, whose input would lose
levels; --float32 leaves it as it is.

With .onnx in its name, --out ferfacenet.onnx is the network alone, in float32.

The network takes "faces", (batch, 1, 48, 48) float32 in [0, 1] as preprocess makes them, and gives
"probabilities", (batch, classes) float32, what predict_proba makes of them: normalisation, the
views of --tta, temperature, softmax and average are inside. Its metadata hold categories (a JSON
list) and tta. Needs the onnx extra.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from _augment import NUMBERS, Augmentation, augment
from _graphs import finish_detector, picture_graphs
from _settings import load_init, make_parser, name_of
from onnxruntime import quantization
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet import ImprovedVGG19, __version__, detect_faces, faces, files, predict_proba
from ferfacenet.faces import framing, search, types
from ferfacenet.faces.yunet import WEIGHTS, detect, load_detector
from ferfacenet.images import decode
from ferfacenet.transforms import SIZE, TTA, views
from ferfacenet.weights import write_atomically

DOCS = Path(__file__).parents[1] / "docs"
READER = DOCS / "examples" / "face_reader.py"
PHOTOS = [DOCS / "photos" / name for name in ("portraits.jpg", "astronaut.jpg")]

#: The checked batch sizes, and the largest difference from PyTorch that passes: of probabilities,
#: of their 95th percentile in int8, and of the detector's pixels.
BATCHES, TOLERANCE, ROUNDED, PIXELS = (1, 7, 128), 1e-4, 0.03, 0.01

#: Of the opsets that PyTorch exports to, the oldest: the most runtimes read it.
OPSET = 18

_Feed = dict[str, npt.NDArray[Any]]


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
    program = _export(whole, x, "faces", sizes, "probabilities")
    about = {"categories": json.dumps(model.categories), "tta": str(tta).lower()}
    onnx.helper.set_model_props(program, about)
    return bytes(program.SerializeToString())


def export_detector() -> bytes:
    """The ONNX file of the face detector: of "pictures" (views, height, width, 3 or 4) float32,
    RGB from 0 to 255, with sides that are multiples of 32, the faces whose score is above "least"
    (1,), in "rows" (n, 16): the picture's number, x0, y0, x1 and y1 of the box, x and y of five
    landmarks, score.
    """
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "rows", "columns"))
    sizes = {0: batch, 2: 32 * height, 3: 32 * width}
    detector, x = load_detector(torch.device("cpu")), torch.zeros(2, 3, 96, 128)
    program = _export(detector, x, "pixels", sizes, "places")
    return bytes(finish_detector(program).SerializeToString())


def _export(
    model: nn.Module, x: Tensor, taken: str, sizes: dict[int, Any], given: str
) -> onnx.ModelProto:
    """A model of one input, some of whose sizes are free."""
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
    proto = program.model_proto
    assert isinstance(proto, onnx.ModelProto)
    return proto


def shipped_faces(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(count, 1, 48, 48) in [0, 1]: the faces of the photos in docs/photos, turned, scaled, in
    other light and degraded, so that nobody needs a data set to export."""
    crops = torch.cat([face.crop for photo in PHOTOS for face in detect_faces(photo)])
    numbers = torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(seed))
    pixels = (crops * 255).round().to(torch.uint8).repeat(-(-count // len(crops)), 1, 1)[:count]
    how = Augmentation(rotate=20, scale=0.3, shift=0.1, brightness=0.2, contrast=0.3)
    return augment(pixels, numbers, how, SIZE).numpy()


class _Faces(quantization.CalibrationDataReader):  # type: ignore[misc]  # has no types
    def __init__(self) -> None:
        self._parts: Iterator[npt.NDArray[np.float32]] = iter(np.split(shipped_faces(200), 10))

    def get_next(self) -> _Feed | None:
        part = next(self._parts, None)
        return None if part is None else {"faces": part}


def quantise(data: bytes) -> bytes:
    """A network's file with convolutions in int8, but for the first, which sees pixels: that one
    would lose levels, and costs next to nothing."""
    whole = onnx.load_from_string(data)
    first = next(node.name for node in whole.graph.node if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder:
        path, known = Path(folder) / "network.onnx", Path(folder) / "shapes.onnx"
        quantization.quant_pre_process(
            whole, known, skip_optimization=True, skip_symbolic_shape=True
        )
        quantization.quantize_static(
            known, path, _Faces(), op_types_to_quantize=["Conv"], nodes_to_exclude=[first],
            per_channel=True, activation_type=quantization.QuantType.QUInt8,
        )  # fmt: skip
        return path.read_bytes()


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def check(data: bytes, model: ImprovedVGG19, tta: TTA | None = "flip") -> float:
    """The largest difference of onnxruntime's probabilities from PyTorch's.

    Raises:
        RuntimeError: it is more than ``TOLERANCE``.
    """
    session = open_session(data)
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


def check_rounded(data: bytes, like: bytes) -> float:
    """The 95th percentile of the differences of the probabilities of a network in int8.

    Raises:
        RuntimeError: it is more than ``ROUNDED``.
    """
    faces = {"faces": shipped_faces(200, seed=1)}
    rows, expected = (open_session(file).run(None, faces)[0] for file in (data, like))
    worst = float(np.quantile(np.abs(rows - expected).max(1), 0.95))
    if not worst <= ROUNDED:
        raise RuntimeError(
            f"in int8 probabilities differ by {worst:.2g}, over {ROUNDED:g}; try --float32"
        )
    return worst


def check_detector(data: bytes) -> None:
    """Raise a RuntimeError if onnxruntime's faces differ from PyTorch's by over ``PIXELS``."""
    session, whole = open_session(data), decode(PHOTOS[0])[None]
    for height, width in ((256, 480), (512, 992), (32, 96)):
        x = F.interpolate(whole, size=(height, width), mode="bilinear", antialias=True)
        pictures = torch.cat([x, x.flip(3)])
        seen = detect(pictures, 0.1, torch.device("cpu"))
        expected = torch.cat([F.pad(rows, (1, 0), value=index) for index, rows in enumerate(seen)])
        feed = {
            "pictures": pictures.permute(0, 2, 3, 1).float().numpy(),
            "least": np.array([0.1], np.float32),
        }
        (rows,) = session.run(["rows"], feed)
        alike = rows.shape == expected.shape
        worst = float(np.abs(rows - expected.numpy()).max(initial=0)) if alike else math.inf
        if not worst <= PIXELS:
            raise RuntimeError(f"the detectors differ by {worst:.2g} pixels, over {PIXELS:g}")


def numbers_of(model: ImprovedVGG19, weights: str, tta: TTA | None, rounded: bool) -> bytes:
    """config.json: what the weights are, and the numbers of the search, of the library's own."""
    limits: dict[str, Any] = {
        "smallest_box": types.Limits.LEAST, "smallest_share": types.Limits.SHARE,
        "max_pixels": files.MAX_PIXELS, "formats": files.FORMATS,
    }  # fmt: skip
    about = {
        "weights": weights,
        "categories": model.categories,
        "size": SIZE,
        "tta": tta,
        "levels": bool(model.levels > 0),
        "int8": rounded,
        "version": __version__,
    }
    for module in (search, framing, faces, types):
        for name, value in vars(module).items():
            if name.isupper() and type(value) in (int, float, tuple):
                limits[name.lstrip("_").lower()] = value
    return (json.dumps(about | {"search": limits}, indent=2) + "\n").encode()


def make_network(weights: str, tta: TTA | None) -> tuple[ImprovedVGG19, bytes]:
    """A network by its name, and its checked file in float32."""
    model = load_init(weights, "--weights")
    if next(model.parameters()).shape[1] != 1:
        raise SystemExit(f"--weights {weights}: only networks of gray pictures are exported")
    network = export(model, tta)
    worst = check(network, model, tta)
    batches = ", ".join(map(str, BATCHES))
    print(f"at batch {batches} the network differs from PyTorch by at most {worst:.2g}")
    return model, network


def make_folder(weights: str, tta: TTA | None = "flip", rounded: bool = True) -> dict[str, bytes]:
    """The checked files of a folder, by name."""
    model, network = make_network(weights, tta)
    if rounded:
        exact, network = network, quantise(network)
        worst = check_rounded(network, exact)
        print(f"in int8 the probabilities of 95 % of faces differ by at most {worst:.2g}")
    detector = export_detector()
    check_detector(detector)
    files = {f"{name}.onnx": graph.SerializeToString() for name, graph in picture_graphs().items()}
    files |= {"network.onnx": network, "detector.onnx": detector, READER.name: READER.read_bytes()}
    licences = DOCS.parent / "LICENSE", WEIGHTS.with_name("LICENSE")
    files["LICENSE"] = b"\n".join(licence.read_bytes() for licence in licences)
    files["config.json"] = numbers_of(model, name_of(weights), tta, rounded)
    return files


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    # fmt: off
    parser.add_argument("--weights", default="photos", help="name, folder or Hub id (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("app"),
                        help="a folder, or a file whose name ends in .onnx (%(default)s)")
    parser.add_argument("--tta", choices=("flip", "ten_crop", "none"), default="flip",
                        help="views of each face that are averaged (%(default)s)")
    parser.add_argument("--float32", action="store_true", help="no int8, in a folder")
    # fmt: on
    options = parser.parse_args(arguments)
    out: Path = options.out
    single = out.suffix == ".onnx"
    if not out.parent.is_dir():
        raise SystemExit(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and out.is_dir() == single:
        raise SystemExit(f"--out {out}: is a {'folder' if single else 'file'}; take another name")
    tta = None if options.tta == "none" else options.tta
    if single:
        _, network = make_network(options.weights, tta)
        write_atomically(out, network)
        print(f"{out}: {len(network) / 1e6:.1f} MB")
        return
    files = make_folder(options.weights, tta, not options.float32)
    out.mkdir(exist_ok=True)
    for file, data in files.items():
        write_atomically(out / file, data)
    total = sum(map(len, files.values())) / 1e6
    print(f"{out}: {len(files)} files, {total:.1f} MB; python {out / READER.name} photo.jpg")


if __name__ == "__main__":
    main()
