#!/usr/bin/env bash
# Guessed: OpenCV's dnn heeds an ONNX AveragePool's count_include_pad, as ONNX Runtime does; the name of
# the program that made a file is there to be shown.
# Found: it decides by that name alone. From "pytorch" the padding is counted, from anything else it is
# not, whatever the attribute says; so nn.AvgPool2d(..., count_include_pad=False) has wrong borders
# without a word, and a right model turns wrong when a tool writes its own name (as ONNX Runtime's
# quantiser does).
# Source: ONNXImporter::parseAveragePool in OpenCV's modules/dnn/src/onnx/onnx_importer.cpp.
# Seen with opencv-python-headless 4.14.0.94, onnx 1.23.2 and onnxruntime 1.32.0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q opencv-python-headless==4.14.0.94 onnx==1.23.2 \
    onnxruntime==1.32.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

ones = np.ones((1, 1, 6, 6), np.float32)
given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6, 6])
found = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3, 3])
for counted in (0, 1):
    pool = helper.make_node(
        "AveragePool", ["x"], ["y"],
        kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=counted,
    )
    graph = helper.make_graph([pool], "pool", [given], [found])
    for producer in ("pytorch", "onnx.quantize"):
        model = helper.make_model(
            graph, producer_name=producer, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]
        ).SerializeToString()
        right = onnxruntime.InferenceSession(model).run(None, {"x": ones})[0]
        net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
        net.setInput(ones)
        corners = f"{right[0, 0, 0, 0]:.2f}, OpenCV {net.forward()[0, 0, 0, 0]:.2f}"
        print(f"count_include_pad {counted}, by {producer}: corner in ONNX Runtime {corners}")
END
diff "$place/said" - <<'END'
count_include_pad 0, by pytorch: corner in ONNX Runtime 1.00, OpenCV 0.44
count_include_pad 0, by onnx.quantize: corner in ONNX Runtime 1.00, OpenCV 1.00
count_include_pad 1, by pytorch: corner in ONNX Runtime 0.44, OpenCV 0.44
count_include_pad 1, by onnx.quantize: corner in ONNX Runtime 0.44, OpenCV 1.00
END
