#!/usr/bin/env bash
# Guessed: ONNX's Resize with antialias=1, which stretches its filter as Pillow and PyTorch do, shrinks
# a picture as they do, to a level, everywhere.
# Found: in the outermost rows and columns it is off by up to 10 of 255 levels, in uint8 and in float:
# what of the filter lies outside of the picture counts the pixel of the edge again, where Pillow and
# PyTorch leave it out. With exclude_outside=1, which the specification has for that and the default
# is not, all agree.
# Source: https://github.com/microsoft/onnxscript/pull/2916, by which PyTorch's exporter sets it.
# Seen with onnxruntime 1.32.0, onnx 1.23.2, Pillow 12.3.0 and torch 2.14.1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.4 pillow==12.3.0 \
    torch==2.14.1
"$place/bin/python" - <<'END' | tee "$place/said"
import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image

pixels = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
ways = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC}


def compare(name: str, mode: str, found: np.ndarray) -> None:
    pillow = Image.fromarray(pixels).resize((60, 60), ways[mode])
    off = np.abs(found.clip(0, 255).reshape(60, 60) - np.asarray(pillow, np.float32))
    inside = off[2:-2, 2:-2].max()
    print(f"{mode}, {name}: off by {off.max():.0f} levels, inside by {inside:.0f}")


for mode in ways:
    for kind in ("uint8", "float"):
        x = pixels.astype(np.uint8 if kind == "uint8" else np.float32)[None, None]
        for outside in (0, 1):
            model = onnx.parser.parse_model(f"""
                <ir_version: 9, opset_import: ["": 18]>
                shrink ({kind}[1, 1, 200, 200] x) => ({kind}[1, 1, 60, 60] y) {{
                    size = Constant<value_ints = [1, 1, 60, 60]>()
                    y = Resize<antialias = 1, mode = "{mode}", cubic_coeff_a = -0.5,
                        exclude_outside = {outside}>(x, , , size)
                }}""")
            session = onnxruntime.InferenceSession(model.SerializeToString())
            found = session.run(None, {"x": x})[0].astype(np.float32)
            compare(f"{kind}, exclude_outside={outside}", mode, found)
    x = torch.from_numpy(pixels)[None, None].float()
    small = torch.nn.functional.interpolate(x, (60, 60), mode=f"bi{mode}", antialias=True)
    compare("PyTorch", mode, small.numpy())
END
diff "$place/said" - <<'END'
linear, uint8, exclude_outside=0: off by 10 levels, inside by 1
linear, uint8, exclude_outside=1: off by 1 levels, inside by 1
linear, float, exclude_outside=0: off by 10 levels, inside by 1
linear, float, exclude_outside=1: off by 1 levels, inside by 1
linear, PyTorch: off by 1 levels, inside by 1
cubic, uint8, exclude_outside=0: off by 6 levels, inside by 0
cubic, uint8, exclude_outside=1: off by 0 levels, inside by 0
cubic, float, exclude_outside=0: off by 6 levels, inside by 1
cubic, float, exclude_outside=1: off by 1 levels, inside by 1
cubic, PyTorch: off by 1 levels, inside by 1
END
