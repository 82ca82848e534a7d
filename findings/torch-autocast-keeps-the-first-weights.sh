#!/usr/bin/env bash
# Guessed: within `with torch.autocast(...)` every call casts the weights as they are then; one
# context around a whole loop is a matter of style.
# Found: a weight that learns is cast at its first use, and that copy serves until the context ends.
# An optimizer's steps, `load_state_dict` and averaged weights that are copied in go unseen, by a test
# under no_grad as well, without a word: training within one context has the same loss for ever, while
# the weights drift by a gradient that never changes. With cache_enabled=False, or a context for each
# call, all is as expected.
# Source: torch's documentation names the cache, not when it is out of date; a project that trained so
# tells of it in https://github.com/X-GenGroup/Flow-Factory/pull/186.
# Seen with torch 2.14.1, on a CPU in bfloat16.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import torch

x = torch.ones(1, 4)
for cache in (True, False):
    layer = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1 / 32)
    losses = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
        for _ in range(4):
            loss = layer(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"cache {cache}: losses {losses}, weight {layer.weight[0, 0].item()}")
        layer.load_state_dict({"weight": torch.full((1, 4), 5.0)})
        with torch.no_grad():
            inside = layer(x).item()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        print(f"    weights of 5 loaded: {inside} in the context, {layer(x).item()} in the next")
END
diff "$place/said" - <<'END'
cache True: losses [16.0, 16.0, 16.0, 16.0], weight 0.0
    weights of 5 loaded: 4.0 in the context, 20.0 in the next
cache False: losses [16.0, 9.0, 5.0625, 2.84765625], weight 0.31640625
    weights of 5 loaded: 20.0 in the context, 20.0 in the next
END
