#!/usr/bin/env bash
# Guessed: a model that is exported with Dim("batch", max=64) and lowered for XNNPACK takes up to 64
# pictures, whatever the example's size was.
# Found: from an example of fewer than 16 pictures, the finished program takes at most 15, and fails on
# more with error 0x10; exporting and lowering say nothing. (What sees two views of each picture takes
# 7.) An example of 16 gives 64, and a single picture then runs too.
# Source: lowering runs the convolutions once more on shapes, and PyTorch's choice of a convolution on
# a CPU asks whether the batch is below 16 (https://github.com/pytorch/pytorch/issues/118289, where
# torch.export refused for it); the answer narrows the range that memory is planned for.
# Seen with executorch 1.5.1 and torch 2.14.1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4 executorch==1.5.1
"$place/bin/python" - <<'END' | tee "$place/said"
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8)).eval()
batch = torch.export.Dim("batch", max=64)
for example in (2, 15, 16):
    for name, partitioners in (("portable kernels", []), ("XNNPACK", [XnnpackPartitioner()])):
        x = torch.zeros(example, 1, 44, 44)
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        edge = to_edge_transform_and_lower(exported, partitioner=partitioners)
        program = Runtime.get().load_program(edge.to_executorch().buffer)
        method, runs = program.load_method("forward"), []
        for count in (1, 15, 16, 64):
            try:
                method.execute([torch.zeros(count, 1, 44, 44)])
                runs.append(count)
            except RuntimeError:
                pass
        print(f"example of {example}, {name}: runs {runs}")
END
diff "$place/said" - <<'END'
example of 2, portable kernels: runs [1, 15, 16, 64]
example of 2, XNNPACK: runs [1, 15]
example of 15, portable kernels: runs [1, 15, 16, 64]
example of 15, XNNPACK: runs [1, 15]
example of 16, portable kernels: runs [1, 15, 16, 64]
example of 16, XNNPACK: runs [1, 15, 16, 64]
END
