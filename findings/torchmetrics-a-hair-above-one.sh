#!/usr/bin/env bash
# Guessed: a probability that is 1.0000001 by float32's rounding is taken for 1, or refused.
# Found: it has all of its batch taken for logits and sent through softmax once more, without a word.
# Ten crops that are added up at a tenth each give that number for any face of which the network is
# sure: the calibration error leaps from 0.04 to 0.47, the areas under the curves move, accuracy does
# not, and what an evaluation in batches says hangs on how large they are. The mean of the same crops
# is right. (That logits which happen to lie between 0 and 1 are taken for probabilities is the same
# rule's other side: issue 3269 of torchmetrics.)
# Seen with torchmetrics 1.9.0, whose normalize_logits_if_needed decides, and torch 2.13.0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.13.0 torchmetrics==1.9.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import numpy as np
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
)

random = np.random.default_rng(0)
logits = torch.from_numpy(random.normal(size=(1000, 7)).astype(np.float32)) * 3
labels = (logits + torch.from_numpy(random.gumbel(size=(1000, 7)))).argmax(1)  # as likely as said
logits[0, labels[0]] = 100  # the one face that the network is sure of
faces = logits.softmax(1)
crops = [faces] * 10
ways = {"mean": torch.stack(crops).mean(0), "tenths": sum(0.1 * crop for crop in crops)}
for name, read in ways.items():
    print(f"{name}: the highest is 1 + {read.max().item() - 1:.1e}")
    for batch in (1000, 100, 10):
        metrics = (
            MulticlassCalibrationError(7, n_bins=15),
            MulticlassAUROC(7),
            MulticlassAccuracy(7, average="micro"),
        )
        for some, those in zip(read.split(batch), labels.split(batch)):
            for metric in metrics:
                metric.update(some, those)
        error, area, right = (metric.compute().item() for metric in metrics)
        print(f"  batches of {batch}: ECE {error:.2f}, AUROC {area:.3f}, accuracy {right:.2f}")
END
diff "$place/said" - <<'END'
mean: the highest is 1 + 0.0e+00
  batches of 1000: ECE 0.04, AUROC 0.945, accuracy 0.71
  batches of 100: ECE 0.04, AUROC 0.945, accuracy 0.71
  batches of 10: ECE 0.04, AUROC 0.945, accuracy 0.71
tenths: the highest is 1 + 1.2e-07
  batches of 1000: ECE 0.47, AUROC 0.940, accuracy 0.71
  batches of 100: ECE 0.08, AUROC 0.936, accuracy 0.71
  batches of 10: ECE 0.05, AUROC 0.944, accuracy 0.71
END
