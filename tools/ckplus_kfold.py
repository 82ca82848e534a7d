"""Ten-fold cross-validation on CK+, by frames as in the paper or by subjects, and its weights.

  python tools/ckplus_kfold.py --data CK+48 --protocol subject --init fer2013 --out runs/subject
  python tools/ckplus_kfold.py --resume runs/subject
  python tools/ckplus_kfold.py --data CK+48 --protocol all --init fer2013 --out runs/ckplus

--protocol random   folds over frames, stratified by label: the paper's (V-C). Neighbouring
                    frames of one sequence fall on both sides, so it does not say how well the
                    network reads a person it has not seen.
--protocol subject  folds over persons, stratified as far as that allows: nobody is on both sides.
                    The ten of --seed 0 are read from docs/results/ckplus-subject/folds.json.
--protocol all      no folds: trains on every frame, for the weights that ship.

Every fold is trained for the same fixed number of epochs and tested once, at the end; its test
images choose nothing. The folder --out gets config.json, metrics.jsonl, checkpoint.safetensors,
and at the end predictions.csv (by ten crops, with each frame's fold), result.json, confusion.png
and reliability.png; or, with --protocol all, weights/.
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
from _checkpoint import claimed, load_checkpoint, save_checkpoint, save_config, stoppable
from _ckplus import CATEGORIES, Frames, load
from _fer2013 import Faces
from _networks import change_categories
from _settings import Settings, load_init, name_of, parse_run
from _trainer import Trainer, progress
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.weights import write_atomically


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run."""

    data: str = ""  # the folder CK+48
    protocol: Literal["random", "subject", "all"] = "random"
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
    config, out = parse_run(__doc__, arguments, Config, RECIPES, paths=("data", "result"))
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


def make_folds(frames: Frames, config: Config) -> npt.NDArray[np.int64]:
    """The fold, from 0, that tests each frame, (N,); -1 where there are none."""
    folds = np.full(len(frames.names), -1)
    if config.protocol == "all":
        return folds
    published = json.loads((PUBLISHED / "config.json").read_text())
    if all(getattr(config, name) == published[name] for name in ("protocol", "n_folds", "seed")):
        return published_folds(frames)
    kind, groups = StratifiedKFold, None
    if config.protocol == "subject":
        kind, groups = StratifiedGroupKFold, frames.subjects
    try:
        splitter = kind(config.n_folds, shuffle=True, random_state=config.seed)
        for fold, (_, test) in enumerate(splitter.split(frames.names, frames.labels, groups)):
            folds[test] = fold
    except ValueError as error:
        raise SystemExit(f"--n-folds {config.n_folds}: {error}") from error
    return folds


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
    (N, 10, 7) of networks that did not see them; ``accuracy_by_fold`` is of ten crops (IV-C)."""
    found = evaluate.evaluate(part, np.ones(len(part), bool), model, logits, fit=True)
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
            "folds": make_folds(frames, config).tolist(),
            "command": evaluate.record_command("ckplus_kfold.py", arguments),
        }  # fmt: skip
    history, folds = state["history"], np.array(state["folds"])

    count = max(1, folds.max() + 1)
    batch = config.batch_size
    images = [(folds != fold).sum() // batch * batch for fold in range(count)]
    done = sum(images[line["fold"] - 1] for line in history)
    logits = tensors.get("logits", torch.empty(0, 10, len(CATEGORIES)))
    again = f"python tools/ckplus_kfold.py --resume {out}"
    with claimed(out), stoppable(again), progress(sum(images) * config.epochs, done) as bar:
        save_config(out, config)
        for fold in range(state["fold"], count):
            state["fold"], training = fold, folds != fold
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
                history.append({"fold": fold + 1} | trainer.train_epoch(epoch, bar))
                save_checkpoint(out, trainer.tensors() | {"logits": logits}, state)
            model = trainer.average.eval()
            if config.protocol != "all":
                logits = torch.cat((logits, evaluate.crop_logits(model, frames.images[~training])))
    if config.protocol == "all":
        save_weights(model, config, out / "weights", len(frames.names))
        return

    order = np.argsort(folds, kind="stable")
    part = Faces(frames.images[order], frames.labels[order], folds[order], order)
    rows = [["file", "fold", "true", "predicted", *CATEGORIES]]
    for index, chances in zip(order, evaluate.average(logits, 1.0).tolist(), strict=True):
        true, found = frames.labels[index], np.argmax(chances)
        row = [frames.names[index], str(folds[index] + 1), CATEGORIES[true], CATEGORIES[found]]
        rows.append(row + [f"{chance:.5f}" for chance in chances])
    write_atomically(out / "predictions.csv", "".join(",".join(r) + "\n" for r in rows).encode())
    result = summarise(model, config, part, logits, out) | {"command": state["command"]}
    evaluate.write_json(out / "result.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
