"""The figures and files that every evaluation of predicted labels has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import plot_confusion
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ferfacenet.hub import write_atomically


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


def save_confusion(
    true: Sequence[int], predicted: Sequence[int], names: Sequence[str], folder: Path
) -> None:
    """Write ``confusion.csv``, counts, and ``confusion.png``, shares, into ``folder``."""
    counts = confusion_matrix(true, predicted, labels=range(len(names)))
    plot_confusion(counts, names, folder / "confusion.png")
    rows = [",".join(["true\\predicted", *names])]
    rows += [",".join([name, *map(str, row)]) for name, row in zip(names, counts, strict=True)]
    write_atomically(folder / "confusion.csv", ("\n".join(rows) + "\n").encode())
