"""Trains the paper's network on FER2013, by the paper's recipe or by ours, or thins a trained one.

  python tools/train.py --data fer2013.csv --recipe paper --out runs/paper
  python tools/train.py --data fer2013.csv --votes fer2013new.csv --out runs/release
  python tools/train.py --data fer2013.csv --votes fer2013new.csv --recipe small --out runs/small
  python tools/train.py --data fer2013.csv --votes fer2013new.csv --fold 1/5 --out runs/fold1
  python tools/train.py --resume runs/release [--epochs 120]

The folder --out gets config.json (every setting), metrics.jsonl (a line an epoch),
curves.png, checkpoint.safetensors (--resume goes on from it) and, at the end, weights/
(config.json and model.safetensors, which ferfacenet.load_pretrained reads) and
weights-float32/, the same before they were rounded to float16. The same command again goes on
too. With --epochs 0 the network of --init is kept, and --precise-bn measures its BatchNorm anew.

With --fold 1/5 (to 5/5) that fifth of the Training images is not learned, and in the end
answers.npz tells what the network says of all of them: copy it to docs/results/folds/, for a
student whose teachers have not seen the images that they are asked about.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from _augment import NUMBERS, augment
from _checkpoint import (
    claimed,
    load_checkpoint,
    save_checkpoint,
    save_config,
    stoppable,
    uninterrupted,
)
from _fer2013 import FERPLUS_CATEGORIES, Faces, hold_out, load, load_votes, relabel, vote_odds
from _figures import plot_curves
from _networks import change_categories, plain_vgg19
from _settings import Settings, load_init, name_of, parse_run
from _thin import FACES, thin
from _trainer import Teacher, Trainer, accuracy, progress, with_precision
from evaluate import crop_logits, predict
from torch import Tensor, nn

from ferfacenet import ImprovedVGG19, save_pretrained
from ferfacenet.fast import Precision, fast_forward
from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.weights import write_atomically


def parse_numbers(text: str) -> list[float]:
    """Those that commas part; none where one of them is not finite, or no number."""
    with suppress(ValueError):
        found = [float(part) for part in text.split(",")]
        if all(map(math.isfinite, found)):
            return found
    return []


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of a run."""

    data: str = ""  # fer2013.csv (or .gz, .xz, .zip, or the Kaggle folder)
    votes: str = ""  # FER+'s fer2013new.csv, for the labels, votes_weight and votes_correction
    labels: Literal["fer2013", "ferplus"] = "fer2013"  # ferplus: each image's votes, 8 classes
    votes_weight: float = 0.0  # weight of an auxiliary head's loss on the FER+ votes
    teachers: str = ""  # weights, as a,b, whose mean probabilities are learned besides the labels
    teacher_shares: str = ""  # theirs, as 0.8,0.2, in that (geometric) mean; equal ones if empty
    teacher_weight: float = 0.5  # their share; the labels have the rest
    consistent: bool = False  # they see each batch as it is augmented, not each face once
    embedding_weight: float = 0.0  # weight of predicting the consistent teachers' embeddings
    votes_correction: float = 0.0  # how far their answers are corrected by the face's FER+ votes
    arch: Literal["improved", "vgg19"] = "improved"  # vgg19: torchvision's plain VGG19
    batch_norm: bool = True
    holdout: float = 0.0  # share of Training that is kept out of training, to report on
    fold: Literal["", "1/5", "2/5", "3/5", "4/5", "5/5"] = ""  # a fifth that is kept out
    limit: int = 0  # train on the first so many images only; 0 for all
    init: str = ""  # weights to start from, a name, folder or Hub id; fresh ones if empty
    keep: float = 0.0  # share of the weights of init in the average that is taken in the end
    favour: str = ""  # what logits of classes to be named more often gain, as fear=1,neutral=0.5
    every: int = 1  # epochs from one test and checkpoint to the next; the last is always tested
    minutes: float = 0.0  # as many epochs as fit into this time, whatever --epochs says

    @property
    def by_votes(self) -> bool:
        """Whether the votes of FER+ are learned from."""
        weights = self.votes_weight or self.votes_correction
        return bool(self.labels == "ferplus" or weights)

    @property
    def categories(self) -> tuple[str, ...]:
        return FERPLUS_CATEGORIES if self.labels == "ferplus" else FER2013_CATEGORIES

    @property
    def gains(self) -> list[float]:
        """What the logit of each class gains in the end."""
        pairs = dict(pair.partition("=")[::2] for pair in self.favour.split(",") if pair)
        if unknown := pairs.keys() - set(self.categories):
            raise SystemExit(f"--favour {self.favour}: there is no class {', '.join(unknown)}")
        found = parse_numbers(",".join(pairs.get(name, "0") for name in self.categories))
        if not found:
            raise SystemExit(f"--favour {self.favour}: give numbers, as fear=1,neutral=0.5")
        return found

    def held(self, faces: Faces) -> npt.NDArray[np.bool_]:
        """Which of the faces, (N,), are kept out."""
        share, number = (1 / 5, int(self.fold[0])) if self.fold else (self.holdout, 1)
        return hold_out(faces, share, number)


DATASET_LICENSE = (
    "FER2013 was published for the ICML 2013 representation learning challenge, its images found "
    "by web search; it may be used for research and not be redistributed. None of its images are "
    "in this repository."
)

_RELEASE: dict[str, Any] = {
    "label_smoothing": 0.1, "votes_weight": 0.5,
    "epochs": 100, "batch_size": 64, "lr": 0.03, "schedule": "cosine", "warmup": 0.1,
    "nesterov": True, "decay_all": False, "clip_value": 0.0, "clip_norm": 1.0,
    "ema": 0.999, "precise_bn": True,
    "crop": False, "rotate": 12.0, "scale": 0.12, "shift": 0.08, "brightness": 0.1,
    "contrast": 0.2, "erase": 0.3,
}  # fmt: skip
_THIN = _RELEASE | {
    "width": 0.375, "votes_weight": 0.2, "label_smoothing": 0.0, "dropout": 0.0,
    "shift": 0.06, "erase": 0.1, "calm": 0.12,
    "epochs": 26, "batch_size": 128, "lr": 0.01, "warmup": 0.05, "ema": 0.998,
}  # fmt: skip
_ROBUST = _THIN | {
    "levels": True, "degrade": 0.5, "teacher_weight": 1.0, "votes_weight": 0.0,
    "rotate": 15.0, "scale": 0.15, "shift": 0.08, "brightness": 0.0, "contrast": 0.0, "calm": 0.0,
    "epochs": 12, "lr": 0.01, "keep": 0.25,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "release": _RELEASE,
    "small": _THIN | {
        "init": "fer2013", "teachers": "fer2013", "teacher_weight": 0.9, "consistent": True,
        "embedding_weight": 30.0, "rounds": 8, "votes_correction": 0.1,
        "calm": 0.05, "epochs": 60, "lr": 0.02,
    },
    "robust": _ROBUST | {"init": "fer2013-small", "teachers": "fer2013-small"},
    "photos": _ROBUST | {
        "init": "fer2013-small", "teachers": "fer2013,fer2013-small,ferplus",
        "teacher_shares": "0.5,0.3,0.2", "votes_correction": 0.1, "epochs": 13, "lr": 0.015,
        "keep": 0.4, "favour": "neutral=1.5,fear=1.4",
    },
    "ferplus": _THIN | {
        "labels": "ferplus", "init": "fer2013-small", "teacher_weight": 0.7, "votes_weight": 0.0,
    },
}  # fmt: skip


def parse(arguments: list[str] | None = None) -> tuple[Config, Path]:
    """The resolved config and the run's folder."""
    config, out = parse_run(
        __doc__, arguments, Config, RECIPES,
        paths=("data", "votes"), weights=("init", "teachers"),
        # The length may change with the time that there is; metrics.jsonl says from when.
        changeable=("epochs", "sizes"),
    )  # fmt: skip
    if config.by_votes and not config.votes:
        raise SystemExit("--votes is needed: FER+'s fer2013new.csv (or --votes-weight 0)")
    if (config.consistent or config.votes_correction) and not config.teachers:
        raise SystemExit("--consistent and --votes-correction are about --teachers: name some")
    if config.teacher_shares and (config.consistent or not config.teachers):
        raise SystemExit("--teacher-shares are those of --teachers that are not --consistent")
    if config.degrade and config.consistent:
        raise SystemExit("--degrade teaches what --teachers say of clean images: not --consistent")
    shares, count = parse_numbers(config.teacher_shares), config.teachers.count(",") + 1
    if config.teacher_shares and (len(shares) != count or min(shares) <= 0):
        raise SystemExit("--teacher-shares needs a number above 0 for each of --teachers")
    if config.embedding_weight and not config.consistent:
        raise SystemExit("--embedding-weight is about --consistent teachers (or give 0)")
    if not 0 <= config.keep < 1 or (config.keep and not config.init):
        raise SystemExit("--keep is the share, from 0 to 1, of the weights of --init: name some")
    if any(config.gains) and (config.hidden_features or config.arch != "improved"):
        raise SystemExit("--favour changes the last layer's bias, where that is the only one")
    if config.every < 1:
        raise SystemExit("--every counts epochs, from 1")
    if not config.epochs and not config.init:
        raise SystemExit("--epochs 0 keeps the network of --init: name one")
    if not 0 <= config.holdout < 1:
        raise SystemExit("--holdout is a share, from 0 to 1")
    if config.holdout and config.fold:
        raise SystemExit("--holdout and --fold both keep images out: give one of them")
    return config, out


def build(config: Config) -> ImprovedVGG19:
    """A freshly initialised network."""
    model = plain_vgg19() if config.arch == "vgg19" else config.network()
    if not config.batch_norm:
        for index, layer in enumerate(model.features):
            if isinstance(layer, nn.BatchNorm2d):
                model.features[index] = nn.Identity()
    if model.categories != config.categories:
        change_categories(model, config.categories)
    return model


def start_from(config: Config, network: ImprovedVGG19, images: Tensor) -> None:
    """Give the network the weights of ``config.init``; if it is thinner, thinned on some of the
    training images (N, 48, 48) uint8."""
    name, weights = config.init, load_init(config.init)
    if config.keep and (weights.categories, weights.width) != (config.categories, network.width):
        raise SystemExit(f"--init {name}: other classes or another width, so nothing to --keep")
    weights.temperature.fill_(1)  # which was fitted to them as they are
    if weights.categories != config.categories:
        change_categories(weights, config.categories)
    alike = network.state_dict().keys() == weights.state_dict().keys()
    if alike and network.width < weights.width:
        generator = torch.Generator().manual_seed(config.seed)
        some = images[torch.randperm(len(images), generator=generator)[:FACES]]
        numbers = torch.rand(len(some), NUMBERS, generator=generator)
        thin(weights, network, augment(some, numbers, config))
        return
    try:
        network.load_state_dict(weights.state_dict())
    except RuntimeError as error:
        remedy = "--arch, --pool, --width, --batch-norm and --hidden-features must be its own"
        raise SystemExit(f"--init {name}: other layers; {remedy}.\n{error}") from error


@torch.no_grad()
def average_with(network: ImprovedVGG19, weights: ImprovedVGG19, share: float) -> None:
    """Move all weights of ``network`` by a ``share`` of the way to others of the same kind.

    Half-way to where a fine-tuned network began, most of what it has learned is there, and what
    it has forgotten is there again (Wortsman et al., "Robust fine-tuning of zero-shot models",
    2022). BatchNorm's statistics go the same way: measured anew, they serve it less.
    """
    of, theirs = network.features, weights.features
    for part, other in ((of, theirs), (network.classifier, weights.classifier)):
        for name, value in other.state_dict().items():
            if value.is_floating_point():
                part.state_dict()[name].lerp_(value.to(network.mean.device), share)


def load_teachers(config: Config, device: torch.device) -> list[ImprovedVGG19]:
    names = config.teachers
    models = [load_init(name, "--teachers").to(device) for name in names.split(",")]
    if any(not set(config.categories) <= set(model.categories or ()) for model in models):
        known = ", ".join(config.categories)
        raise SystemExit(f"--teachers {names}: not all have the categories {known}")
    return models


def taught(config: Config, faces: Faces, device: torch.device) -> Tensor:
    """What the networks say of each face and its mirror, (N, C) float32: their geometric mean, each
    with its share, over the classes that are to be learned."""
    models = load_teachers(config, device)
    shares = parse_numbers(config.teacher_shares) or [1.0] * len(models)
    precision: Precision = "bfloat16" if config.amp == "on" else "float32"
    logits = torch.zeros(len(faces), len(config.categories))
    for model, share in zip(models, shares, strict=True):
        rows = predict(model, faces.images, "flip", "asking teachers", precision)
        columns = [(model.categories or ()).index(name) for name in config.categories]
        logits += share / sum(shares) * rows[:, columns].clamp_min(1e-12).log()
    return logits.softmax(1).to(device)


def consistent_teacher(config: Config, device: torch.device) -> tuple[Teacher, int]:
    """What the networks say of a batch, and how many numbers their embeddings have.

    A teacher that sees the very batch, cut and turned as it is, teaches more than one that saw each
    face once (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent").
    """
    models, compiled, bf16 = load_teachers(config, device), config.compile, config.amp == "on"
    if any(model.categories != config.categories for model in models):
        raise SystemExit(
            f"--teachers {config.teachers}: --consistent ones have the same categories"
        )
    heads = [(model.classifier, model.temperature.clone()) for model in models]
    for model in models:
        model.reset_classifier(0)  # it returns its embedding then; the temperature becomes 1
        if compiled:
            model.compile()
    precision: Precision = "bfloat16" if bf16 else "float32"
    pairs = [(None if compiled else fast_forward(model, precision), model) for model in models]

    @torch.no_grad()
    def ask(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            # Networks with levels have no answer for a plain view, which must not spoil the rest.
            found = [(fast or model)(x).float().nan_to_num() for fast, model in pairs]
        logits = [head(e) / t for (head, t), e in zip(heads, found, strict=True)]
        return torch.stack(logits).softmax(-1).mean(0), torch.cat(found, 1)

    return ask, sum(model.num_features for model in models)


#: What a teacher said of batches, by the sum of their pixels.
Answers: TypeAlias = dict[float, tuple[Tensor, Tensor]]


def remembering(ask: Teacher, answers: Answers) -> Teacher:
    """``ask``, but about a batch only if ``answers`` lacks it."""

    def look_up(x: Tensor) -> tuple[Tensor, Tensor]:
        key = float(x.double().sum())
        if key not in answers:
            answers[key] = ask(x)
        return answers[key]

    return look_up


def trained_on(config: Config, images: int, given: int) -> str:
    """The sentence of the model card, about ``images`` of those ``given``."""
    text = f"{images:,} Training images of FER2013"
    text += f", of {given:,}" * (images < given) + f", {config.epochs} epochs"
    if config.init:
        text += f", from the weights {name_of(config.init)}"
        text += f", with which they are averaged in the end ({config.keep:.0%})" * bool(config.keep)
    if config.teachers:
        text += ", taught by " + " and ".join(map(name_of, config.teachers.split(",")))
    if config.degrade:
        text += f", {config.degrade:.0%} of the images degraded"
    if config.favour:
        text += f"; in the end logits were raised: {config.favour}"
    if config.labels == "ferplus":
        text += ", labelled by the votes of FER+"
    elif config.votes_weight or config.votes_correction:
        text += "; the FER+ votes on the same images were used in training"
    return text + "."


def save_answers(config: Config, model: ImprovedVGG19, faces: Faces, path: Path) -> None:
    """Write what the network of a fold says of all Training and PublicTest images, in the data's
    order, with what tells whether they are the same data and which of them it has not seen.

    ``training`` (N, C) and ``public`` (M, C) float16: the logs of the ten crops' mean
    probabilities; ``fold``, such as "1/5"; ``unseen`` (N,) bool; ``fingerprint``, of the N images.
    """
    training, buffer = faces.split("Training"), io.BytesIO()
    said = [
        (crop_logits(model, part.images, title, "float32") / model.temperature.item())
        .log_softmax(-1).logsumexp(1).sub(math.log(10)).half().numpy()
        for title, part in (("Training", training), ("PublicTest", faces.split("PublicTest")))
    ]  # fmt: skip
    np.savez_compressed(
        buffer, training=said[0], public=said[1], fold=config.fold, unseen=config.held(training),
        fingerprint=training.fingerprint(),
    )  # fmt: skip
    write_atomically(path, buffer.getvalue())
    print(f"What it says of every image is in {path}: copy it to docs/results/folds/")


def fit_epochs(config: Config, done: int, elapsed: float, marks: list[float]) -> Config:
    """``config`` with as many epochs as ``config.minutes`` leave time for, where ``done`` are over
    ``elapsed`` seconds after the start, and this process ended its own at the moments ``marks``.

    The first three, in which a GPU tries its kernels, count only where they take long. One epoch
    more or less is no change, so that the rate falls to zero smoothly.
    """
    total = 60 * config.minutes
    if len(marks) > 3:
        each = (marks[-1] - marks[2]) / (len(marks) - 3)
    elif elapsed > total / 4:
        each = elapsed / done
    else:
        return config
    epochs = done + max(1, int((total - elapsed) / each))
    if done >= config.epochs or abs(epochs - config.epochs) <= 1:
        return config
    return dataclasses.replace(config, epochs=epochs)


def to_device(faces: Faces, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(faces.images, device=device), torch.tensor(faces.labels, device=device)


def make_trainer(
    config: Config, training: Faces, counts: npt.NDArray[np.float32] | None, shares: Tensor | None,
    device: torch.device, resumed: bool, answers: Answers | None = None,
) -> Trainer:  # fmt: skip
    """The trainer of ``training``, with the ``counts`` of its votes (N, 10), if any, and the
    ``shares`` of them that are learned in place of its labels, if they are; of a run that is
    resumed, without what its checkpoint holds."""
    torch.manual_seed(config.seed)
    network = build(config)
    if config.init and not resumed:
        start_from(config, network, torch.from_numpy(training.images))
    if config.levels:
        network.levels.fill_(1)
    votes = odds = None
    teacher: Tensor | Teacher | None = None
    embeddings = 0
    if counts is not None and config.votes_weight:
        # A row of zeros weighs nothing in a cross-entropy.
        parts = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        votes = torch.tensor(parts, device=device)
    if counts is not None and config.votes_correction:
        found = vote_odds(counts, training.labels, network.num_classes)
        odds = torch.tensor(found * config.votes_correction, device=device)
    if config.teachers and config.consistent:
        teacher, embeddings = consistent_teacher(config, device)
        if config.rounds:
            teacher = remembering(teacher, {} if answers is None else answers)
    elif config.teachers and not resumed:
        teacher = taught(config, training, device)
    return Trainer(
        network, config, *to_device(training, device),
        shares=None if shares is None else shares.to(device),
        votes=votes, votes_weight=config.votes_weight,
        teacher=teacher, teacher_weight=config.teacher_weight, odds=odds,
        embeddings=embeddings, embedding_weight=config.embedding_weight,
    )  # fmt: skip


def train(
    config: Config, out: Path, trainer: Trainer, tests: dict[str, Faces], state: dict[str, Any]
) -> Config:
    """All epochs that follow those in ``state``; the config, whose epochs --minutes may change."""
    history = state["history"]
    on_device = {key: to_device(faces, trainer.device) for key, faces in tests.items()}
    marks, drawn, started = list[float](), -math.inf, time.monotonic()
    before = history[-1]["elapsed"] if history and config.minutes else 0.0
    images_an_epoch = trainer.steps_an_epoch * config.batch_size
    with progress(config.epochs * images_an_epoch, len(history) * images_an_epoch) as bar:
        while (epoch := len(history)) < config.epochs:
            line = trainer.train_epoch(epoch, bar)
            due = (epoch + 1) % config.every == 0 or epoch + 1 == config.epochs
            for key, (images, labels) in on_device.items() if due else ():
                line[key] = accuracy(trainer.average, images, labels, config.size(epoch))
            with uninterrupted():
                history.append(line)
                marks.append(time.monotonic())
                if config.minutes:
                    line["elapsed"] = before + marks[-1] - started
                    config = fit_epochs(config, len(history), line["elapsed"], marks)
                    trainer.settings = config
                    bar.total = config.epochs * images_an_epoch
                if due:
                    save_config(out, config)
                    save_checkpoint(out, trainer.tensors(), state)
                    # A drawing takes as long as half an epoch on a large GPU.
                    if time.monotonic() - drawn > 10 or len(history) == config.epochs:
                        plot_curves(history, out / "curves.png")
                        drawn = time.monotonic()
                    bar.write(json.dumps(line))
    return config


@stoppable("the same command")
def main(arguments: list[str] | None = None, answers: Answers | None = None) -> None:
    config, out = parse(arguments)
    device = config.device_of()
    faces = load(config.data)
    training = faces.split("Training")
    if config.limit:
        training = training.where(np.arange(len(training)) < config.limit)
    given, unseen = len(training), config.held(training)
    held, training = training.where(unseen), training.where(~unseen & training.varied())
    fingerprint = training.fingerprint()
    tests = {"public_accuracy": faces.split("PublicTest")}
    if len(held):
        tests["holdout_accuracy"] = held
    shares = None
    counts = load_votes(config.votes, training) if config.by_votes else None
    if counts is not None and config.labels == "ferplus":
        for key, part in tests.items():
            tests[key], _ = relabel(part, load_votes(config.votes, part))
        rows = training.rows
        training, found = relabel(training, counts, least=0)
        counts = counts[np.isin(rows, training.rows)]
        shares = torch.from_numpy(found)

    tensors, state = load_checkpoint(out, fingerprint, config.data)
    state = state or {"fingerprint": fingerprint, "history": []}
    if (done := len(state["history"])) and config.epochs <= done:
        planned = state["history"][-1].get("epochs", config.epochs)
        if config.epochs != planned:
            raise SystemExit(
                f"--epochs {config.epochs}: {done} of {planned} are over. In the last one the rate "
                f"falls to its end, and BatchNorm is measured: give at least {done + 1}"
            )
    if config.minutes and not state["history"]:
        config = dataclasses.replace(config, epochs=100)  # until the first are measured
    # Now, not in the end, when they may be gone, or others by that name, and all work in vain.
    begun = load_init(config.init) if config.keep else None
    config = with_precision(config, device)
    trainer = make_trainer(config, training, counts, shares, device, bool(tensors), answers)
    if tensors:
        trainer.load(tensors)
    with claimed(out), stoppable(f"python tools/train.py --resume {out}"):
        save_config(out, config)
        if not config.epochs and config.precise_bn:  # else train_epoch does it, after the last one
            trainer.measure_batch_norm()
        config = train(config, out, trainer, tests, state)
        if begun:
            average_with(trainer.average, begun, config.keep)
        if any(config.gains):
            bias = trainer.average.classifier.state_dict()["bias"]
            bias += torch.tensor(config.gains, device=device)
        if config.arch == "improved" and config.batch_norm:
            for folder, dtype in (("weights", torch.float16), ("weights-float32", torch.float32)):
                save_pretrained(
                    trainer.average, out / folder, dtype=dtype, dataset_license=DATASET_LICENSE,
                    trained_on=trained_on(config, len(training), given),
                    selected_on="The weights after the last epoch; no epoch was picked.",
                )  # fmt: skip
            print(f"The weights are in {out / 'weights'}: python tools/evaluate.py --weights ...")
        if config.fold:
            save_answers(config, trainer.average, faces, out / "answers.npz")


if __name__ == "__main__":
    main()
