"""The figures that every evaluation of predicted labels has, by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import precision_recall_fscore_support


def per_class(
    true: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """``macro_f1``, and ``per_class``: recall, precision, F1 and support of each name."""
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=range(len(names)), zero_division=0
    )
    return {
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: {
                "recall": float(recall[index]),
                "precision": float(precision[index]),
                "f1": float(f1[index]),
                "support": int(support[index]),
            }
            for index, name in enumerate(names)
        },
    }
