#!/usr/bin/env bash
# Guessed: ExecuTorch takes an example and an input in either layout of memory, as PyTorch does, or
# says that they differ; for one channel both are the same numbers in the same order.
# Found: with three channels, an input in the other layout than the example's is read in the wrong
# order, without an error. With one channel, a convolution that was exported from a channels-last
# example exports and loads, and then fails at every call, whatever the input's layout.
# Source: https://github.com/pytorch/executorch/issues/21837 (the first) and
# https://github.com/pytorch/executorch/issues/19153 (the second, with XNNPACK).
# Seen with executorch 1.5.1 and torch 2.14.1, its portable kernels.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4 executorch==1.5.1
"$place/bin/python" - <<'END' | tee "$place/said"
import torch
from executorch.exir import to_edge
from executorch.runtime import Runtime

layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
for channels in (1, 3):
    for example in layouts:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(channels, 5, 3).eval().to(memory_format=layouts[example])
        x = torch.rand(1, channels, 44, 44)
        exported = torch.export.export(model, (x.to(memory_format=layouts[example]),))
        program = Runtime.get().load_program(to_edge(exported).to_executorch().buffer)
        method = program.load_method("forward")
        for given in layouts:
            try:
                found = method.execute([x.to(memory_format=layouts[given])])[0]
                said = "right" if torch.allclose(found, model(x), atol=1e-4) else "wrong numbers"
            except RuntimeError:
                said = "an error"
            print(f"{channels} channels, example {example}, input {given}: {said}")
END
diff "$place/said" - <<'END'
1 channels, example contiguous, input contiguous: right
1 channels, example contiguous, input channels last: right
1 channels, example channels last, input contiguous: an error
1 channels, example channels last, input channels last: an error
3 channels, example contiguous, input contiguous: right
3 channels, example contiguous, input channels last: wrong numbers
3 channels, example channels last, input contiguous: wrong numbers
3 channels, example channels last, input channels last: right
END
