"""Ten-fold cross-validation on CK+, by frames, sequences or subjects, and its weights.

  python tools/ckplus_kfold.py --data CK+48 --protocol subject --init fer2013 --out runs/subject
  python tools/ckplus_kfold.py --resume runs/subject
  python tools/ckplus_kfold.py --data CK+48 --protocol all --init fer2013 --out runs/ckplus

--protocol public   the folds of the public VGG19 code, 99 frames each, that tear no sequence; most
                    persons are on both sides. The paper's best fold, 93.939 % (V-C), is 93 of 99,
                    so most likely its own.
--protocol random   folds over frames, stratified by label. Neighbouring frames of one sequence fall
                    on both sides, so it does not say how well the network reads a person, or even
                    a sequence, that it has not seen.
--protocol subject  folds over persons, stratified as far as that allows: nobody is on both sides.
                    The ten of --seed 0 are read from docs/results/ckplus-subject/folds.json.
--protocol all      no folds: trains on every frame, for the weights that ship.

Every fold is trained for the same fixed number of epochs and tested once, at the end; its test
images choose nothing. The folder --out gets config.json, metrics.jsonl, checkpoint.safetensors,
and at the end predictions.csv (by ten crops, with each frame's fold), result.json (with what the
nearest neighbour by pixels gets right on the same folds), confusion.png and reliability.png; or,
with --protocol all, weights/.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import evaluate
import numpy as np
import numpy.typing as npt
import torch
from _checkpoint import (
    claimed,
    load_checkpoint,
    save_checkpoint,
    save_config,
    stoppable,
    uninterrupted,
)
from _ckplus import CATEGORIES, Frames, load, public_folds
from _fer2013 import Faces
from _networks import change_categories
from _settings import Settings, load_init, name_of, parse_run
from _trainer import Trainer, progress, with_precision
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.weights import write_atomically


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run."""

    data: str = ""  # the folder CK+48
    protocol: Literal["public", "random", "subject", "all"] = "public"
    init: str = "scratch"  # or fer2013, or another name, folder or Hub id of weights
    n_folds: int = 10
    result: str = ""  # result.json of folds, whose temperature and figures go with the weights
    epochs: int = 60


#: The paper's, and ours. Both are fixed for all folds.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": {
        "label_smoothing": 0.1,
        "batch_size": 32, "schedule": "cosine", "warmup": 0.1,
        "nesterov": True, "decay_all": False, "clip_value": 0.0, "clip_norm": 1.0, "ema": 0.99,
        "crop": False, "rotate": 10.0, "scale": 0.1, "shift": 0.06, "brightness": 0.1,
        "contrast": 0.2,
    },
}  # fmt: skip

#: The run over persons whose folds are read, since StratifiedGroupKFold's hang on the version of
#: scikit-learn. (StratifiedKFold's do not.)
PUBLISHED = Path(__file__).parents[1] / "docs" / "results" / "ckplus-subject"

DATASET_LICENSE = (
    "CK+ (Lucey et al., 2010) is given out for research under an agreement that forbids passing "
    "it on. None of its images are in this repository."
)


def parse(arguments: list[str] | None) -> tuple[Config, Path]:
    """The resolved config and the run's folder."""
    config, out = parse_run(
        __doc__, arguments, Config, RECIPES, paths=("data", "result"), weights=("init",)
    )
    if config.result and (config.protocol != "all" or not Path(config.result).is_file()):
        raise SystemExit("--result takes the result.json of folds, and is for --protocol all")
    if not config.epochs:
        raise SystemExit("--epochs counts from 1")
    return config, out


def published_folds(frames: Frames) -> npt.NDArray[np.int64]:
    """The published fold, from 0, of each frame's person, (N,)."""
    path = PUBLISHED / "folds.json"
    by_person = json.loads(path.read_text())
    if others := sorted(by_person.keys() ^ set(frames.subjects)):
        raise SystemExit(
            f"{', '.join(others[:5])}: only in --data or only in {path}, whose folds are for the "
            "persons that it names; another --seed makes others"
        )
    return np.array([by_person[person] - 1 for person in frames.subjects])


def make_folds(frames: Frames, config: Config) -> list[npt.NDArray[np.int64]]:
    """The frames that each fold tests; one fold that tests none for the protocol "all"."""
    if config.protocol == "all":
        return [np.empty(0, np.int64)]
    if config.protocol == "public":
        if config.n_folds != 10:
            raise SystemExit(f"--n-folds {config.n_folds}: the public folds are ten")
        return public_folds(frames)
    published = json.loads((PUBLISHED / "config.json").read_text())
    if all(getattr(config, name) == published[name] for name in ("protocol", "n_folds", "seed")):
        folds = published_folds(frames)
        return [np.flatnonzero(folds == fold) for fold in range(config.n_folds)]
    kind, groups = StratifiedKFold, None
    if config.protocol == "subject":
        kind, groups = StratifiedGroupKFold, frames.subjects
    try:
        splitter = kind(config.n_folds, shuffle=True, random_state=config.seed)
        return [test for _, test in splitter.split(frames.names, frames.labels, groups)]
    except ValueError as error:
        raise SystemExit(f"--n-folds {config.n_folds}: {error}") from error


def nearest_neighbour(frames: Frames, folds: list[npt.NDArray[np.int64]]) -> dict[str, Any]:
    """What the label of the training frame nearest by pixels gets right: what a protocol gives to
    memory alone."""
    pixels = frames.images.reshape(len(frames.images), -1).astype(np.float32)
    right = []
    for test in folds:
        rest = np.delete(np.arange(len(pixels)), test)
        reader = KNeighborsClassifier(1).fit(pixels[rest], frames.labels[rest])
        right.append(reader.predict(pixels[test]) == frames.labels[test])
    by_fold = [float(of.mean()) for of in right]
    return {"accuracy": float(np.concatenate(right).mean()), "accuracy_by_fold": by_fold}


def build(config: Config) -> ImprovedVGG19:
    """A network for CK+'s seven labels, fresh or from other weights."""
    model = config.network() if config.init == "scratch" else load_init(config.init)
    model.dropout = nn.Dropout(config.dropout)
    change_categories(model, CATEGORIES)
    if config.levels:
        model.levels.fill_(1)
    return model


def summarise(
    model: ImprovedVGG19, config: Config, part: Faces, logits: Tensor, out: Path
) -> dict[str, Any]:
    """All figures of the tested images, ``part``, whose splits are the folds, by the ``logits``
    (N, 10, 7) of networks that did not see them; ``accuracy_by_fold`` is of ten crops (IV-C).

    The temperature is fitted to the same images, so nothing is decided by it: only ``ece`` is of
    probabilities that it has calibrated."""
    fresh = np.ones(len(part), bool)
    found = evaluate.evaluate(part, fresh, model, logits, fit=True, decide_at=1.0)
    right = evaluate.average(logits, 1.0).argmax(1).numpy() == part.labels
    by_fold = [float(right[part.splits == fold].mean()) for fold in range(config.n_folds)]
    result = {
        "split": f"{config.n_folds} folds by {config.protocol}, pooled",
        "init": name_of(config.init),
        "epochs": config.epochs,
        **{name: value for name, value in found.items() if "deduplicated" not in name},
        "accuracy_fold_mean": float(np.mean(by_fold)),
        "accuracy_fold_sd": float(np.std(by_fold, ddof=1)),
        "accuracy_by_fold": by_fold,
    }
    evaluate.draw(result, part, logits, out)
    return result


def save_weights(model: ImprovedVGG19, config: Config, folder: Path, images: int) -> None:
    """Write the weights that were trained on every frame, with what the folds say of them."""
    metrics, selected = {}, "The weights after the last epoch; no epoch was picked."
    if config.result:
        result = json.loads(Path(config.result).read_text())
        model.temperature.fill_(result["temperature"])
        metrics = {
            f"{result['split']} {views} accuracy": round(value, 5)
            for views, value in result["accuracy"].items()
        }
        selected += (
            f" The figures are those of {result['split']}: of networks trained in the same way, "
            "each tested on the part of the frames that it had not seen. The temperature was "
            "fitted on the same predictions."
        )
    source = f"{config.epochs} epochs, from {name_of(config.init)}"
    save_pretrained(
        model, folder, metrics=metrics, dataset_license=DATASET_LICENSE,
        trained_on=f"All {images} frames of CK+48, {source}.", selected_on=selected,
    )  # fmt: skip
    print(f"The weights are in {folder}")


def main(arguments: list[str] | None = None) -> None:
    config, out = parse(arguments)
    device = config.device_of()
    frames = load(config.data)
    fingerprint = frames.fingerprint()
    tensors, state = load_checkpoint(out, fingerprint, config.data)
    if not state:
        state = {
            "fingerprint": fingerprint, "history": [], "fold": 0,
            "folds": [test.tolist() for test in make_folds(frames, config)],
            "command": evaluate.record_command("ckplus_kfold.py", arguments),
        }  # fmt: skip
    history, folds = state["history"], [np.array(test, np.int64) for test in state["folds"]]

    count, total, batch = len(folds), len(frames.names), config.batch_size
    images = [(total - len(test)) // batch * batch for test in folds]
    done = sum(images[line["fold"] - 1] for line in history)
    logits = tensors.get("logits", torch.empty(0, 10, len(CATEGORIES)))
    again = f"python tools/ckplus_kfold.py --resume {out}"
    config = with_precision(config, device)
    with claimed(out), stoppable(again), progress(sum(images) * config.epochs, done) as bar:
        save_config(out, config)
        for fold in range(state["fold"], count):
            state["fold"], training = fold, np.delete(np.arange(total), folds[fold])
            settings = dataclasses.replace(config, seed=config.seed * 1_000 + fold)
            torch.manual_seed(settings.seed)
            trainer = Trainer(
                build(config), settings,
                torch.tensor(frames.images[training], device=device),
                torch.tensor(frames.labels[training], device=device),
            )  # fmt: skip
            if tensors:
                trainer.load(tensors)
                tensors = {}
            for epoch in range(sum(line["fold"] == fold + 1 for line in history), config.epochs):
                bar.set_description(f"fold {fold + 1}/{count}")
                line = {"fold": fold + 1} | trainer.train_epoch(epoch, bar)
                with uninterrupted():
                    history.append(line)
                    save_checkpoint(out, trainer.tensors() | {"logits": logits}, state)
            model = trainer.average.eval()
            if config.protocol != "all":
                tested = evaluate.crop_logits(model, frames.images[folds[fold]])
                logits = torch.cat((logits, tested))
    if config.protocol == "all":
        save_weights(model, config, out / "weights", len(frames.names))
        return

    order, numbers = np.concatenate(folds), np.repeat(np.arange(count), [*map(len, folds)])
    part = Faces(frames.images[order], frames.labels[order], numbers, order)
    rows = [["file", "fold", "true", "predicted", *CATEGORIES]]
    answers = evaluate.average(logits, 1.0).tolist()
    for index, number, chances in zip(order, numbers, answers, strict=True):
        true, found = frames.labels[index], np.argmax(chances)
        row = [frames.names[index], str(number + 1), CATEGORIES[true], CATEGORIES[found]]
        rows.append(row + [f"{chance:.5f}" for chance in chances])
    write_atomically(out / "predictions.csv", "".join(",".join(r) + "\n" for r in rows).encode())
    result = summarise(model, config, part, logits, out)
    result["nearest_neighbour"] = nearest_neighbour(frames, folds)
    result |= evaluate.measured_by() | {"command": state["command"]}
    evaluate.write_json(out / "result.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
