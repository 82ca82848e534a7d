#!/usr/bin/env bash
# Guessed: the file that torch.export.save writes holds a model's graph and weights; of the example it
# was exported with, shapes and types at most.
# Found: it holds the example itself, every pixel, and load gives it back as `example_inputs`; who
# exports with a real photo of a face publishes the photo. `program.example_inputs = None` before it
# is saved, or an example of zeros, keeps it out.
# Source: https://github.com/pytorch/pytorch/pull/122618, where it was wanted so; the documentation of
# `save` does not say it.
# Seen with torch 2.14.1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import io

import torch

model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(14112, 7))
face = torch.rand(1, 1, 44, 44)
program = torch.export.export(model.eval(), (face,))
for name in ("as exported", "example_inputs = None"):
    if name != "as exported":
        program.example_inputs = None
    file = io.BytesIO()
    torch.export.save(program, file)
    there = face.numpy().tobytes() in file.getvalue()
    example = torch.export.load(io.BytesIO(file.getvalue())).example_inputs
    same = example is not None and torch.equal(example[0][0], face)
    print(f"{name}: the picture's bytes are in the file: {there}, load gives it back: {same}")
END
diff "$place/said" - <<'END'
as exported: the picture's bytes are in the file: True, load gives it back: True
example_inputs = None: the picture's bytes are in the file: False, load gives it back: False
END
