#!/usr/bin/env bash
# Guessed: what converts a model for a snapshot during training leaves the model as it was, as
# torch.onnx.export does.
# Found: openvino.convert_model and pnnx.export switch the model itself to evaluation, and leave it so.
# A loop that calls train() once before its epochs goes on with BatchNorm frozen and without Dropout;
# nothing says so. Exported by torch.export first, OpenVINO cannot reach the model.
# Source: `pt_module.eval()` in OpenVINO's frontend/pytorch/ts_decoder.py, and `model.eval()` in
# pnnx/utils/export.py.
# Seen with openvino 2026.4.1, pnnx 20261020 and torch 2.14.1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4 \
    openvino==2026.4.1 pnnx==20261020 packaging==25.0 # which OpenVINO imports, and does not ask for
PLACE="$place" "$place/bin/python" - <<'END' | tee "$place/said"
import os
from pathlib import Path

import openvino
import pnnx
import torch

x = torch.rand(4, 1, 44, 44)
ways = {
    "openvino.convert_model(model)": lambda m: openvino.convert_model(m, example_input=x),
    "openvino, of a torch.export": lambda m: openvino.convert_model(torch.export.export(m, (x,))),
    "pnnx.export": lambda m: pnnx.export(m, str(Path(os.environ["PLACE"], "model.pt")), x),
}
for name, convert in ways.items():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Dropout()
    ).train()
    convert(model)
    before = model[1].running_mean.clone()
    model(x)
    frozen = torch.equal(before, model[1].running_mean)
    print(f"{name}: training {model.training}, BatchNorm frozen {frozen}")
END
diff "$place/said" - <<'END'
openvino.convert_model(model): training False, BatchNorm frozen True
openvino, of a torch.export: training True, BatchNorm frozen False
pnnx.export: training False, BatchNorm frozen True
END
