#!/usr/bin/env bash
# Guessed: on the meta device, where tensors have no values, building and initialising a network costs
# nothing, which is why weights are loaded into networks that were built there.
# Found: the first normal draw (nn.init.normal_, kaiming_normal_, or nn.Embedding, which draws so by
# itself) imports the whole of torch._dynamo with sympy, some 900 modules, once per process: longer
# than many a network takes to be built and loaded. Uniform draws, so nn.Linear and nn.Conv2d, and
# constants import nothing.
# Source: normal in torch/_refs/__init__.py goes through torch/_compile.py, which imports
# torch._dynamo when it is first called; https://github.com/PriorLabs/TabPFN/pull/1257 met it too.
# Seen with torch 2.14.1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import sys

import torch
from torch import nn


def count(what, call):
    before = len(sys.modules)
    call()
    added = len(sys.modules) - before
    print(f"{what}: {'hundreds of' if added > 500 else added} modules imported")


with torch.device("meta"):
    count("Linear", lambda: nn.Linear(8, 8))
    count("Conv2d", lambda: nn.Conv2d(8, 8, 3))
    weight = torch.empty(8, 8)
    count("zeros_", lambda: nn.init.zeros_(weight))
    count("uniform_", lambda: nn.init.uniform_(weight))
    count("normal_", lambda: nn.init.normal_(weight))
    count("normal_ again", lambda: nn.init.normal_(weight))
print("torch._dynamo, sympy:", {"torch._dynamo", "sympy"} <= sys.modules.keys())
END
diff "$place/said" - <<'END'
Linear: 0 modules imported
Conv2d: 0 modules imported
zeros_: 0 modules imported
uniform_: 0 modules imported
normal_: hundreds of modules imported
normal_ again: 0 modules imported
torch._dynamo, sympy: True
END
