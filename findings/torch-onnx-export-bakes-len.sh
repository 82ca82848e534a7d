#!/usr/bin/env bash
# Guessed: torch.onnx.export with dynamic_shapes either follows the batch or refuses, as torch.export
# does with the same arguments; len(x) and x.shape[0] are the same.
# Found: with an example of one picture len(x) is written down as 1, where x.shape[0] follows. The file
# still says that the batch is dynamic and runs for eight pictures: all eight come out as one row.
# torch.export.export refuses that model, torch.onnx.export says nothing. With an example of two it
# follows in both.
# Source: https://github.com/pytorch/pytorch/pull/170264 describes the specialisation of 1, not the
# silence of the ONNX exporter.
# Seen with torch 2.14.1, onnxscript 0.7.2, onnx 1.23.2 and onnxruntime 1.32.0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4 \
    onnxscript==0.7.2 onnx==1.23.2 onnxruntime==1.32.0
PLACE="$place" "$place/bin/python" - <<'END' | tee "$place/said"
import os
from pathlib import Path

import numpy as np
import onnxruntime
import torch


class ByLen(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), -1)


class ByShape(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1)


file, shapes = Path(os.environ["PLACE"], "model.onnx"), ({0: torch.export.Dim.DYNAMIC},)
for model in (ByLen().eval(), ByShape().eval()):
    for examples in (1, 2):
        x = torch.rand(examples, 1, 44, 44)
        torch.onnx.export(
            model, (x,), file, input_names=["x"], dynamic_shapes=shapes, verbose=False
        )
        session = onnxruntime.InferenceSession(file)
        batch = "any" if isinstance(session.get_inputs()[0].shape[0], str) else "fixed"
        found = session.run(None, {"x": np.zeros((8, 1, 44, 44), np.float32)})[0]
        print(f"{type(model).__name__}, example of {examples}: batch {batch}, 8 in, {found.shape} out")
END
diff "$place/said" - <<'END'
ByLen, example of 1: batch any, 8 in, (1, 15488) out
ByLen, example of 2: batch any, 8 in, (8, 1936) out
ByShape, example of 1: batch any, 8 in, (8, 1936) out
ByShape, example of 2: batch any, 8 in, (8, 1936) out
END
