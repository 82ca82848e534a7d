"""Ten-fold cross-validation on CK+, by frames as in the paper or by subjects, and its weights.

  python tools/ckplus_kfold.py --data CK+48 --protocol subject --init fer2013 --out runs/subject
  python tools/ckplus_kfold.py --resume runs/subject
  python tools/ckplus_kfold.py --data CK+48 --protocol all --init fer2013 --out runs/ckplus

--protocol random   folds over frames, stratified by label: the paper's. Neighbouring frames of
                    one sequence fall on both sides, so it does not say how well the network
                    reads a person it has not seen.
--protocol subject  folds over persons, stratified as far as that allows: nobody is on both sides.
--protocol all      no folds: trains on every frame, for the weights that ship.

Every fold is trained for the same fixed number of epochs and tested once, by ten crops, at the
end; its test images choose nothing. The folder --out gets config.json, folds.csv (which --folds
reads back in), metrics.jsonl, checkpoint.safetensors, predictions.csv, and at the end
result.json, confusion.csv and confusion.png; or, with --protocol all, weights/.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ckplus import CATEGORIES, Frames, load
from engine import (
    Settings,
    Trainer,
    load_init,
    parse_run,
    resume_from,
    save_checkpoint,
    stop_cleanly,
)
from evaluate import calibrated, crop_logits, cross_fitted_ece, fit_temperature, prepare, quoted
from scores import per_class, save_confusion
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.hub import write_atomically


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run."""

    data: str = ""  # the folder CK+48
    protocol: str = "random"  # random, subject or all
    init: str = "scratch"  # or fer2013, or another name, folder or Hub id of weights
    n_folds: int = 10
    result: str = ""  # result.json of folds, whose temperature and figures go with the weights
    epochs: int = 60


#: The paper's, and ours. Both are fixed for all folds.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "label_smoothing": 0.1,
        "batch_size": 32,
        "schedule": "cosine",
        "warmup": 0.1,
        "nesterov": True,
        "decay_all": False,
        "clip_value": 0.0,
        "clip_norm": 1.0,
        "ema": 0.99,
        "crop": False,
        "rotate": 10.0,
        "scale": 0.1,
        "shift": 0.06,
        "brightness": 0.1,
        "contrast": 0.2,
    },
}

CENTRE = 4  # of the ten crops

DATASET_LICENSE = (
    "CK+ (Lucey et al., 2010) is given out for research under an agreement that forbids passing "
    "it on. None of its images are in this repository."
)


def make_folds(frames: Frames, protocol: str, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold, 0 to ``count`` - 1, that tests each frame, (N,)."""
    if protocol == "all":
        return np.full(len(frames.names), -1)
    by_subject = protocol == "subject"
    kind = StratifiedGroupKFold if by_subject else StratifiedKFold
    splitter = kind(count, shuffle=True, random_state=seed)
    groups = frames.subjects if by_subject else None
    folds = np.full(len(frames.names), -1)
    try:
        for fold, (_, test) in enumerate(splitter.split(frames.names, frames.labels, groups)):
            folds[test] = fold
    except ValueError as error:
        raise SystemExit(f"--n-folds {count}: {error}") from error
    return folds


def write_folds(path: Path, frames: Frames, folds: npt.NDArray[np.int64]) -> None:
    rows = [f"{name},{fold + 1}" for name, fold in zip(frames.names, folds, strict=True)]
    write_atomically(path, "\n".join(["file,fold", *rows, ""]).encode())


def read_folds(path: Path, frames: Frames, protocol: str, count: int) -> npt.NDArray[np.int64]:
    """The folds that ``write_folds`` wrote, held against the frames and the protocol."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = {row["file"]: int(row["fold"]) - 1 for row in rows}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SystemExit(f"{path} is no list of folds with columns file,fold: {error}") from error
    if len(found) != len(rows):
        raise SystemExit(f"{path} names a file twice")
    if found.keys() != set(frames.names):
        odd = sorted(found.keys() ^ set(frames.names))
        raise SystemExit(f"{path} and the data differ in {len(odd)} files, the first {odd[0]}")
    folds = np.array([found[name] for name in frames.names])
    if set(folds) != set(range(count)):
        raise SystemExit(f"{path} does not hold the folds 1 to {count}: --n-folds says how many")
    if protocol == "subject":
        for subject in np.unique(frames.subjects):
            if len(set(folds[frames.subjects == subject])) > 1:
                raise SystemExit(f"{path} puts {subject} into several folds: --protocol random")
    return folds


def build(config: Config) -> ImprovedVGG19:
    """A network for CK+'s seven labels, fresh or from other weights.

    The rows of the classifier whose label the weights know too are kept; the others start anew.
    """
    if config.init == "scratch":
        model = ImprovedVGG19(
            num_classes=len(CATEGORIES),
            dropout=config.dropout,
            pool="avg" if config.pool == "avg" else "max",
            hidden_features=config.hidden_features or None,
            width=config.width,
        )
    else:
        model = load_init(config.init)
        old, known = model.classifier, model.categories or ()
        model.dropout = nn.Dropout(config.dropout)
        model.reset_classifier(len(CATEGORIES))
        new = model.classifier
        if isinstance(old, nn.Linear) and isinstance(new, nn.Linear):
            with torch.no_grad():
                for row, label in enumerate(CATEGORIES):
                    if label in known:
                        new.weight[row] = old.weight[known.index(label)]
                        new.bias[row] = old.bias[known.index(label)]
    model.categories = CATEGORIES
    return model


def predictions_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["file", "fold", "true", "predicted", *CATEGORIES], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def indices(rows: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """True and predicted labels of ``rows``, as numbers into ``CATEGORIES``."""
    true, predicted = (
        [CATEGORIES.index(row[key]) for row in rows] for key in ("true", "predicted")
    )
    return true, predicted


def summarise(
    rows: list[dict[str, Any]], logits: Tensor, config: Config, command: str
) -> dict[str, Any]:
    """All figures of the tested images, with the keys that tools/evaluate.py gives them.

    ``accuracy`` is that of all folds pooled. ``temperature`` is fitted on the pooled ``logits``
    (N, 10, 7), each of a network that did not see the image; ``ece`` is the calibration error
    of each half of the images at the temperature of the other half.
    """
    true, predicted = indices(rows)
    labels = torch.tensor(true)
    right = np.equal(true, predicted)
    fold = np.array([row["fold"] for row in rows])
    by_fold = [float(right[fold == number].mean()) for number in sorted(set(fold))]
    centre = logits[:, CENTRE].argmax(1) == labels
    return (
        {
            "split": f"{len(by_fold)} folds by {config.protocol}, pooled",
            "init": config.init,
            "epochs": config.epochs,
            "images": len(rows),
            "temperature": round(fit_temperature(logits, labels), 4),
            "accuracy": {"ten_crop": float(right.mean()), "single": float(centre.double().mean())},
            "accuracy_fold_mean": float(np.mean(by_fold)),
            "accuracy_fold_sd": float(np.std(by_fold, ddof=1)),
            "accuracy_by_fold": by_fold,
            "ece": {
                "ten_crop": cross_fitted_ece(logits, labels),
                "single": cross_fitted_ece(logits[:, CENTRE : CENTRE + 1], labels),
            },
        }
        | per_class(true, predicted, CATEGORIES)
        | {"command": command}
    )


def save_weights(model: ImprovedVGG19, config: Config, folder: Path, images: int) -> None:
    """Write the weights that were trained on every frame, with what the folds say of them."""
    metrics, selected = {}, "The weights after the last epoch; no epoch was picked."
    if config.result:
        result = json.loads(Path(config.result).read_text())
        model.temperature = result["temperature"]
        metrics = quoted(result)
        selected += (
            f" The figures are those of {result['split']}: of networks trained in the same way, "
            "each tested on the part of the frames that it had not seen. The temperature was "
            "fitted on the same predictions."
        )
    save_pretrained(
        model,
        folder,
        metrics=metrics,
        trained_on=f"All {images} frames of CK+48, {config.epochs} epochs, from {config.init}.",
        selected_on=selected,
        dataset_license=DATASET_LICENSE,
    )
    print(f"The weights are in {folder}")


def parse(arguments: list[str] | None) -> tuple[Config, Path, Path | None, bool]:
    """The resolved config, the run's folder, the list of folds, and whether it is resumed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folds", type=Path, metavar="CSV", help="folds.csv of another run")
    config, out, resumed, besides = parse_run(
        parser, arguments, Config, RECIPES,
        choices={"protocol": ("random", "subject", "all")},
        paths=("data", "result"),
    )  # fmt: skip
    if resumed:
        folds = out / "folds.csv"
        return config, out, folds if folds.exists() else None, True
    folds = besides["folds"]
    if folds and config.protocol == "all":
        parser.error("--protocol all has no folds")
    if config.result and (config.protocol != "all" or not Path(config.result).is_file()):
        parser.error("--result takes the result.json of folds, and is for --protocol all")
    return config, out, folds, False


def main(arguments: list[str] | None = None) -> None:
    config, out, folds_file, resumed = parse(arguments)
    command = shlex.join(["python", "tools/ckplus_kfold.py", *(arguments or sys.argv[1:])])
    device = config.device_of()
    stop_cleanly()
    frames = load(config.data)
    all_frames = config.protocol == "all"
    if folds_file and not all_frames:
        folds = read_folds(folds_file, frames, config.protocol, config.n_folds)
    else:
        folds = make_folds(frames, config.protocol, config.n_folds, config.seed)
    fingerprint = frames.fingerprint()
    rows: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    checkpoint = out / "checkpoint.safetensors"
    again = f"python tools/ckplus_kfold.py --resume {out}"
    tensors, begin = None, 0
    logits = torch.empty(0, 10, len(CATEGORIES))  # of the ten crops of each of rows
    if resumed and checkpoint.exists():
        tensors, state = resume_from(checkpoint, fingerprint, config.data)
        rows, history, begin, command = (
            state[key] for key in ("rows", "history", "fold", "command")
        )
        logits = tensors["logits"]
    else:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(config), indent=2)
        write_atomically(out / "config.json", text.encode())
        write_folds(out / "folds.csv", frames, folds)

    count = 1 if all_frames else config.n_folds
    sizes = [int((folds != fold).sum()) // config.batch_size for fold in range(count)]
    done = sum(sizes[line["fold"] - 1] for line in history)
    bar = tqdm(
        total=sum(sizes) * config.epochs * config.batch_size, initial=done * config.batch_size,
        unit="img", unit_scale=True, mininterval=0.5 if sys.stderr.isatty() else 60,
    )  # fmt: skip
    finished = 0
    try:
        for fold in range(begin, count):
            training = folds != fold
            torch.manual_seed(config.seed * 1_000 + fold)
            settings = dataclasses.replace(config, seed=config.seed * 1_000 + fold)
            trainer = Trainer(
                build(config), settings,
                torch.tensor(frames.images[training], device=device),
                torch.tensor(frames.labels[training], device=device),
            )  # fmt: skip
            finished = sum(line["fold"] == fold + 1 for line in history)
            if finished and tensors is not None:
                trainer.load(tensors)
            for epoch in range(finished, config.epochs):
                bar.set_description(f"fold {fold + 1}/{count}")
                line = trainer.train_epoch(
                    epoch, bar, f"start again with a lower --lr than {config.lr}"
                )
                history.append({"fold": fold + 1} | line)
                finished = epoch + 1
                state = {
                    "fingerprint": fingerprint, "rows": rows, "history": history, "fold": fold,
                    "command": command,
                }  # fmt: skip
                saved = trainer.tensors() | {"logits": logits}
                save_checkpoint(checkpoint, saved, state, again)
                lines = "".join(json.dumps(item) + "\n" for item in history)
                write_atomically(out / "metrics.jsonl", lines.encode())
            assert isinstance(trainer.average, ImprovedVGG19)
            model = trainer.average.eval()
            if all_frames:
                break
            tested = np.flatnonzero(~training)
            new = crop_logits(model, prepare(model, frames.images[tested]))
            logits = torch.cat((logits, new))
            for index, found in zip(tested, calibrated(new, 1.0).numpy(), strict=True):
                rows.append(
                    {
                        "file": frames.names[index],
                        "fold": fold + 1,
                        "true": CATEGORIES[frames.labels[index]],
                        "predicted": CATEGORIES[found.argmax()],
                    }
                    | {name: round(float(p), 5) for name, p in zip(CATEGORIES, found, strict=True)}
                )
            write_atomically(out / "predictions.csv", predictions_csv(rows))
            right = [row["true"] == row["predicted"] for row in rows]
            here = [row["true"] == row["predicted"] for row in rows if row["fold"] == fold + 1]
            bar.write(f"fold {fold + 1}: {sum(here)} of {len(here)}; so far {np.mean(right):.2%}")
    except KeyboardInterrupt:
        bar.close()
        print(
            f"Stopped in fold {fold + 1} of {count} after {finished} whole epochs. "
            f"Go on with:\n  {again}",
            file=sys.stderr,
        )
        sys.exit(130)
    bar.close()
    if all_frames:
        save_weights(model, config, out / "weights", len(frames.names))
        return
    result = summarise(rows, logits, config, command)
    save_confusion(*indices(rows), CATEGORIES, out)
    text = json.dumps(result, indent=2)
    write_atomically(out / "result.json", (text + "\n").encode())
    print(text)


if __name__ == "__main__":
    main()
