"""ONNX graphs of what stands around the two networks: the steps of ``ferfacenet.faces`` on pixels,
for programs without PyTorch. Pictures are (rows, columns, RGB or RGBA), levels from 0 to 255."""

from __future__ import annotations

from typing import Any

import onnx

from ferfacenet.faces.yunet import ECHO
from ferfacenet.transforms import LUMA, SIZE

_HEAD = '<ir_version: 10, opset_import: ["": {opset}]>'

# A picture shrunk, as everywhere, by averaging; enlarged bilinearly.
_RESIZED = """
    zero = Constant<value_ints = [0]>()
    three = Constant<value_ints = [3]>()
    last = Constant<value_ints = [-1]>()
    rgb = Slice(pixels, zero, three, last)
    planes = Transpose<perm = [2, 0, 1]>(rgb)
    batch = Unsqueeze(planes, zero)
    depth = Constant<value_ints = [1, 3]>()
    length = Concat<axis = 0>(depth, size)
    part = Resize<antialias = 1, exclude_outside = 1, mode = "linear">(batch, , , length)
"""

# A square of it as wide as ``side``: where in the picture its points are, theta says, in
# coordinates that go from -1 to 1 in both.
_SAMPLED = """
    one = Constant<value_ints = [1]>()
    many = Shape<end = 1>(theta)
    sizes = Concat<axis = 0>(many, one, side, side)
    grid = AffineGrid(theta, sizes)
    times = Concat<axis = 0>(many, one, one, one)
    same = Expand({shown}, times)
    drawn = GridSample<mode = "{mode}", padding_mode = "{outside}">(same, grid)
"""

_RESIZE = f"""
resize (uint8[rows, columns, channels] pixels, int64[2] size) => (uint8[height, width, 3] picture)
{{
    {_RESIZED}
    first = Squeeze(part, zero)
    picture = Transpose<perm = [1, 2, 0]>(first)
}}
"""

_VIEW = f"""
view (
    uint8[rows, columns, channels] pixels, int64[2] size, float[views, 2, 3] theta, int64[1] side
) => (float[views, height, width, 3] pictures)
{{
    {_RESIZED}
    floats = Cast<to = 1>(part)
    {_SAMPLED.format(shown="floats", mode="linear", outside="zeros")}
    pictures = Transpose<perm = [0, 2, 3, 1]>(drawn)
}}
"""

_FRAME = f"""
frame (
    uint8[rows, columns, channels] pixels, int64[2] size, float[faces, 2, 3] theta, int64[1] side
) => (float[faces, 1, {SIZE}, {SIZE}] faces)
{{
    {_RESIZED}
    floats = Cast<to = 1>(part)
    luma = Constant<value_floats = [{", ".join(str(share / 255) for share in LUMA)}]>()
    like = Constant<value_ints = [1, 3, 1, 1]>()
    shares = Reshape(luma, like)
    gray = Conv(floats, shares)
    {_SAMPLED.format(shown="gray", mode="cubic", outside="border")}
    black = Constant<value_float = 0.0>()
    full = Constant<value_float = 1.0>()
    shown = Clip(drawn, black, full)
    plane = Constant<value_ints = [1, {SIZE}, {SIZE}]>()
    small = Concat<axis = 0>(many, plane)
    face = Resize<antialias = 1, exclude_outside = 1, mode = "cubic", cubic_coeff_a = -0.5>(
        shown, , , small
    )
    faces = Clip(face, black, full)
}}
"""

# Before and behind YuNet: what takes levels from 0 to 255, and of its places leaves those that are
# faces, each with the number of its picture in front, the best score of a picture first.
_BEFORE = """
before (float[views, height, width, channels] pictures) => (float[views, 3, height, width] pixels)
{
    first = Constant<value_ints = [0]>()
    behind = Constant<value_ints = [3]>()
    axis = Constant<value_ints = [-1]>()
    rgb = Slice(pictures, first, behind, axis)
    planes = Transpose<perm = [0, 3, 1, 2]>(rgb)
    white = Constant<value_float = 255.0>()
    pixels = Div(planes, white)
}
"""

_BEHIND = f"""
behind (float[views, spots, 15] places, float[1] least) => (float[faces, 16] rows)
{{
    zero = Constant<value_ints = [0]>()
    two = Constant<value_ints = [2]>()
    four = Constant<value_ints = [4]>()
    last = Constant<value_ints = [14]>()
    end = Constant<value_ints = [15]>()
    columns = Constant<value_ints = [0, 2]>()
    boxes = Slice(places, zero, four, two)
    score = Slice(places, last, end, two)
    scores = Transpose<perm = [0, 2, 1]>(score)
    many = Shape<start = 1, end = 2>(places)
    echo = Constant<value_floats = [{ECHO}]>()
    picked = NonMaxSuppression(boxes, scores, many, echo, least)
    found = Gather<axis = 1>(picked, columns)
    values = GatherND(places, found)
    picture = Gather<axis = 1>(picked, zero)
    number = Cast<to = 1>(picture)
    rows = Concat<axis = 1>(number, values)
}}
"""


def _parse(text: str, opset: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(_HEAD.format(opset=opset) + text)
    onnx.checker.check_model(model, full_check=True)
    return model


def picture_graphs() -> dict[str, onnx.ModelProto]:
    """By name: ``resize``; ``view``, what the detector looks at from close by; ``frame``, what the
    network is given."""
    return {"resize": _parse(_RESIZE, 20), "view": _parse(_VIEW, 20), "frame": _parse(_FRAME, 20)}


def finish_detector(yunet: onnx.ModelProto) -> onnx.ModelProto:
    """YuNet, from "pixels" to "places", with the graphs before and behind it."""
    before, behind = (_parse(text, yunet.opset_import[0].version) for text in (_BEFORE, _BEHIND))
    before.ir_version = behind.ir_version = yunet.ir_version
    merge: Any = onnx.compose.merge_models
    whole = merge(merge(before, yunet, [("pixels",) * 2]), behind, [("places",) * 2])
    assert isinstance(whole, onnx.ModelProto)
    del whole.opset_import[1:]  # one for each part, which onnxruntime's quantiser refuses
    return whole
