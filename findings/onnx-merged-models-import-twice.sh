#!/usr/bin/env bash
# Guessed: onnx.compose.merge_models of two models of one operator set imports that set once, as each
# of the two does.
# Found: it imports it twice, and of n models n times. ONNX's checker and onnxruntime's sessions take
# that, but onnxruntime's quantiser says "Failed to find proper ai.onnx domain", and
# version_converter raises the first of the two alone. `del merged.opset_import[1:]` mends it.
# Source: `opset_imports=opset_imports` in onnx/compose.py, the lists of both one after the other,
# though it has a map of domains to versions; nothing known on the quantiser.
# Seen with onnx 1.23.2 and onnxruntime 1.32.0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4
PLACE="$place" "$place/bin/python" - <<'END' | tee "$place/said"
import logging
import os
from pathlib import Path

import onnx
from onnxruntime import InferenceSession, quantization

logging.disable()  # that one may preprocess the model


def versions(model: onnx.ModelProto) -> list[int]:
    return [entry.version for entry in model.opset_import]


one, two = (
    onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 18]>
        g (float[1, 8] {x}) => (float[1, 8] {y}) {{ {y} = Relu({x}) }}""")
    for x, y in (("x", "y"), ("u", "v"))
)
merged = onnx.compose.merge_models(one, two, io_map=[("y", "u")])
onnx.checker.check_model(merged, full_check=True)
InferenceSession(merged.SerializeToString())
print("merged:", versions(merged))
print("converted to 20:", versions(onnx.version_converter.convert_version(merged, 20)))
for name in ("quantised", "quantised with one import"):
    try:
        quantization.quantize_dynamic(merged, Path(os.environ["PLACE"], "int8.onnx"))
        print(f"{name}: yes")
    except ValueError as error:
        print(f"{name}: {error}")
    del merged.opset_import[1:]
END
diff "$place/said" - <<'END'
merged: [18, 18]
converted to 20: [20, 18]
quantised: Failed to find proper ai.onnx domain
quantised with one import: yes
END
