#!/usr/bin/env bash
# Guessed: quantize_static reads the ModelProto that it is given; the same one can be quantised again
# with other settings, saved or run, as after quantize_dynamic.
# Found: its weights of 1 kB or more are gone: they refer to a file in a temporary folder that has been
# deleted. Saving that model says nothing and writes a file that cannot be loaded; a second
# quantize_static fails. A copy.deepcopy of the model for each call helps.
# Source: https://github.com/microsoft/onnxruntime/issues/23268; since its pull 23322 the model is
# copied in one of two places that save it so, not in quantize_static itself.
# Seen with onnxruntime 1.32.0 and onnx 1.23.2.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.4
PLACE="$place" "$place/bin/python" - <<'END' | tee "$place/said"
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import InferenceSession, quantization

logging.disable()  # that one may preprocess the model
folder = Path(os.environ["PLACE"])


class Example(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"x": np.ones((1, 8, 9, 9), np.float32)}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def attempt(do: Callable[[], object]) -> str:
    try:
        do()
    except Exception as error:
        return f"no, {type(error).__name__}"
    return "yes"


quantisers = {
    "quantize_dynamic": lambda m: quantization.quantize_dynamic(m, folder / "int8.onnx"),
    "quantize_static": lambda m: quantization.quantize_static(m, folder / "int8.onnx", Example()),
}
for name, quantise in quantisers.items():
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[1, 8, 9, 9] x, float[8, 8, 3, 3] w) => (float[1, 8, 7, 7] y) { y = Conv(x, w) }""")
    weight = onnx.numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w")
    model.graph.initializer.append(weight)
    del model.graph.input[1]
    quantise(model)
    print(f"after {name} the model holds {len(model.graph.initializer[0].raw_data)} bytes of weights")
    print("  saves:", attempt(lambda: onnx.save_model(model, folder / "model.onnx")))
    print("  and loads:", attempt(lambda: InferenceSession(folder / "model.onnx")))
    print("  quantises again:", attempt(lambda: quantise(model)))
END
diff "$place/said" - <<'END'
after quantize_dynamic the model holds 2304 bytes of weights
  saves: yes
  and loads: yes
  quantises again: yes
after quantize_static the model holds 0 bytes of weights
  saves: yes
  and loads: no, Fail
  quantises again: no, ValidationError
END
