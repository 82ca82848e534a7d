#!/usr/bin/env bash
# Guessed: onnxruntime resizes a picture of (rows, columns, colours) by Transpose, Resize of axes 2 and
# 3, and Transpose back, whichever of its optimisations are on; ONNX's own checker accepts the graph.
# Found: by default it refuses the graph when the session is made; with `scales` in place of `sizes` it
# makes the session, and each run fails. Its optimiser takes the two Transposes away and reorders four
# numbers, of which there are only two. With four, and no `axes`, or with basic optimisations, it runs.
# Source: HandleResize in core/optimizer/transpose_optimization/onnx_transpose_optimization.cc, which
# does not look at `axes`; https://github.com/microsoft/onnxruntime/pull/21954 mends the same in the
# layouts of execution providers.
# Seen with onnxruntime 1.32.0 and onnx 1.23.2.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import numpy as np
import onnx
import onnxruntime
from onnxruntime import GraphOptimizationLevel

picture = np.zeros((1, 60, 40, 3), np.float32)
ways = {
    "two sizes": ("size = Constant<value_ints = [30, 20]>()", "axes = [2, 3]", "x, , , size"),
    "two scales": ("size = Constant<value_floats = [0.5, 0.5]>()", "axes = [2, 3]", "x, , size"),
    "four sizes": ("size = Constant<value_ints = [1, 3, 30, 20]>()", "", "x, , , size"),
}
for name, (size, axes, inputs) in ways.items():
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 18]>
        shrink (float[1, rows, columns, 3] picture) => (float[1, height, width, 3] small) {{
            {size}
            x = Transpose<perm = [0, 3, 1, 2]>(picture)
            y = Resize<{axes + "," if axes else ""} mode = "linear">({inputs})
            small = Transpose<perm = [0, 2, 3, 1]>(y)
        }}""")
    onnx.checker.check_model(model, full_check=True)
    for level in ("basic", "all"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(
            GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}"
        )
        said = "refused"
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            said = "runs fail"
            said = str(session.run(None, {"picture": picture})[0].shape)
        except Exception:  # onnxruntime's own kinds, which have no public names
            pass
        print(f"{name}, optimisations {level}: {said}")
END
diff "$place/said" - <<'END'
two sizes, optimisations basic: (1, 30, 20, 3)
two sizes, optimisations all: refused
two scales, optimisations basic: (1, 30, 20, 3)
two scales, optimisations all: runs fail
four sizes, optimisations basic: (1, 30, 20, 3)
four sizes, optimisations all: (1, 30, 20, 3)
END
