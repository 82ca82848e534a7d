#!/usr/bin/env bash
# Guessed: an optimizer's step between a forward and its backward is refused ("modified by an inplace
# operation"), as weights carry a version that each change moves; `fused=True` changes speed alone.
# Found: a fused step moves no version, so that the backward runs on weights that the forward did not
# have and gives a wrong gradient without a word, where the plain and the foreach steps are refused.
# Who tells by `tensor._version` whether weights have changed is misled likewise. One meets it where two
# losses share weights and each has its optimizer, as with a discriminator.
# Source: none known.
# Seen with torch 2.14.1, on a CPU.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import torch

x = torch.ones(1, 3)
for name in ("SGD", "Adagrad", "Adam", "AdamW"):
    for way in ("foreach", "fused"):
        first, second = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.ones_(second.weight)
        optimizer = getattr(torch.optim, name)(
            second.parameters(), lr=1.0, weight_decay=0.0, **{way: True}
        )
        score = second(first(x)).sum()
        second(x).sum().backward()
        before = second.weight._version
        optimizer.step()  # every weight of the second goes from 1 to 0
        same = second.weight._version == before
        try:
            score.backward()
            said = f"the gradient is {first.weight.grad[0, 0]:.1f} where 1.0 is right"
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            said = "refused"
        print(f"{name}, {way}: version {'the same' if same else 'moved'}, {said}")
END
diff "$place/said" - <<'END'
SGD, foreach: version moved, refused
SGD, fused: version the same, the gradient is 0.0 where 1.0 is right
Adagrad, foreach: version moved, refused
Adagrad, fused: version the same, the gradient is 0.0 where 1.0 is right
Adam, foreach: version moved, refused
Adam, fused: version the same, the gradient is 0.0 where 1.0 is right
AdamW, foreach: version moved, refused
AdamW, fused: version the same, the gradient is 0.0 where 1.0 is right
END
