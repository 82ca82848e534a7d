"""Counts what is in FER2013, FER+ and CK+, from the user's own files.

  python tools/data_facts.py --data fer2013.csv --votes fer2013new.csv --ckplus CK+48

writes data.json and twins.png, the labels of byte-identical images as a matrix, into --out, and
prints what docs/data.md says of them: each fact with what follows from it. Facts of files that are
not given are left out. With --weights ferplus these weights are measured on PrivateTest, centre
and mirror, by the three ways to count its votes. No fact hangs on the order of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _ckplus
import _pages
import numpy as np
import numpy.typing as npt
from _fer2013 import FERPLUS_CATEGORIES, SPLITS, Faces, load, load_votes, relabel
from _figures import plot_confusion
from _settings import load_init, make_parser, name_of
from evaluate import predict, record_command, votes_for, write_json
from scipy.spatial import cKDTree

from ferfacenet import ImprovedVGG19
from ferfacenet.model import FER2013_CATEGORIES

#: The root mean square of two images' difference, of 255 grays, below which they are near twins.
NEAR = 4.0
Ints = npt.NDArray[np.int64]
Votes = npt.NDArray[np.float32]


def count(names: Sequence[str], indices: Ints) -> dict[str, int]:
    return dict(zip(names, np.bincount(indices, minlength=len(names)).tolist(), strict=True))


def group_twins(images: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """The first image of each group of byte-identical ones, (G,), and each image's group, (N,)."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    keys = flat.view(f"V{flat.shape[1]}")[:, 0]
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first, group


def find_near(images: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """The pairs of (N, 48, 48) images that are near twins, (P, 2), and those of which one is a twin
    or a near one of the other's mirror image, (M, 2)."""
    n, both = len(images), np.concatenate([images, images[:, :, ::-1]])
    # Means of blocks differ by no more than the pixels do, so that no near twin is missed.
    blocks = both.reshape(-1, 4, 12, 4, 12).mean((2, 4)).reshape(-1, 16)
    pairs = cKDTree(blocks).query_pairs(NEAR * 16**0.5, output_type="ndarray")
    pairs = pairs[(pairs[:, 0] < n) & (pairs[:, 1] - pairs[:, 0] != n)]  # not with its own mirror
    apart = (both[pairs[:, 0]].astype(np.float32) - both[pairs[:, 1]]) ** 2
    pairs = pairs[apart.mean((1, 2)) < NEAR**2]
    mirrored = np.sort(pairs[pairs[:, 1] >= n] % n, 1)
    return pairs[pairs[:, 1] < n], np.unique(mirrored, axis=0)


def describe_fer2013(faces: Faces) -> dict[str, Any]:
    """The facts of FER2013, of images by split; ``labels_of_twins``, (7, 7), counts for each label
    those of its images' twins, blank images aside."""
    first, group = group_twins(faces.images)
    table = np.zeros((len(first), len(SPLITS), len(FER2013_CATEGORIES)), np.int64)
    np.add.at(table, (group, faces.splits, faces.labels), 1)
    training, varied = table[:, 0], faces.varied()
    size, shown = training.sum(1), table.sum(1)[varied[first]]
    guess = training.argmax(1)  # of a tie, the first label
    near, mirrored = find_near(faces.images[first])
    either = np.concatenate([near, near[:, ::-1]])
    beside = either[(size[either[:, 0]] == 0) & (size[either[:, 1]] > 0), 0]
    pixels = faces.images[faces.splits == 0] / 255

    def images_of(chosen: Any) -> dict[str, int]:
        return count(SPLITS, faces.splits[chosen[group]])

    return {
        "labels": {
            name: count(FER2013_CATEGORIES, faces.labels[faces.splits == index])
            for index, name in enumerate(SPLITS)
        },
        "pixels": {"mean": round(pixels.mean(), 6), "std": round(pixels.std(), 6)},
        "blank": count(FER2013_CATEGORIES, faces.labels[~varied]),
        "twins": images_of(table.sum((1, 2)) > 1),
        "training_twins": int(size[size > 1].sum()),
        "training_twins_at_odds": int(size[(training > 0).sum(1) > 1].sum()),
        "in_training": images_of(size > 0),
        "in_public": images_of(table[:, 1].any(1)),
        "labelled_as_in_training": count(
            SPLITS, faces.splits[(size > 0)[group] & (guess[group] == faces.labels)]
        ),
        "labels_of_twins": (shown.T @ shown - np.diag(shown.sum(0))).tolist(),
        "near_twins": len(near),
        "mirrored_twins": len(mirrored),
        "only_near_training": images_of(np.isin(np.arange(len(first)), beside)),
    }


def keep_several(votes: Votes) -> npt.NDArray[np.bool_]:
    """Which of (N, 10) ``votes`` give a label in the "probability" mode of FER+'s authors: single
    votes dropped, the classes with most votes are taken, ties together, until there are three,
    three quarters of the votes are theirs, or it is the turn of "unknown" or "not a face"; at most
    three then have to have more than half of the votes."""
    kept, classes = [], len(FERPLUS_CATEGORIES)
    for row in np.where(votes > 1, votes, 0):
        taken: list[int] = []
        for most in np.unique(row[row > 0])[::-1]:
            best = np.flatnonzero(row == most).tolist()
            taken += [index for index in best if index < classes]
            if best[-1] >= classes or len(taken) > 2 or row[taken].sum() >= 0.75 * row.sum():
                break
        kept.append(len(taken) < 4 and row[taken].sum() > 0.5 * row.sum())
    return np.array(kept)


def describe_ferplus(
    faces: Faces, votes: Votes, model: ImprovedVGG19 | None = None
) -> dict[str, Any]:
    """The facts of FER+; ``kept`` has the images with a label, by the way to count ``votes``, and
    ``accuracy`` what ``model`` has on those of PrivateTest."""
    total, names = votes.sum(1), np.array(FERPLUS_CATEGORIES)
    agreed, _ = relabel(faces, votes)
    majority = np.isin(faces.rows, agreed.rows)
    plurality = (votes.argmax(1) < len(names)) & (total > 0)
    kept = {"majority": majority, "probability": keep_several(votes), "plurality": plurality}
    same = names[agreed.labels] == np.array(FER2013_CATEGORIES)[faces.labels[majority]]
    _, group = group_twins(faces.images[total > 0])
    panels = np.unique(np.column_stack([group, votes[total > 0]]), axis=0)[:, 0].astype(np.int64)
    twins = np.bincount(group) > 1
    found: dict[str, Any] = {
        "odd_totals": [int(n) for n in total if n not in (0, 10)],
        "not_a_face": int((~votes[:, :9].any(1)).sum()),
        "kept": {rule: count(SPLITS, faces.splits[mask]) for rule, mask in kept.items()},
        "labels": count(FERPLUS_CATEGORIES, agreed.labels[agreed.splits == 2]),
        "agrees_with_fer2013": float(same.mean()),
        "groups_of_twins": int(twins.sum()),
        "groups_of_one_vote": int((np.bincount(panels) == 1)[twins].sum()),
    }
    if model:
        private, right = faces.splits == 2, np.zeros(len(faces), bool)  # as one of one gray is not
        asked = private & faces.varied()
        read = predict(model, faces.images[asked], "flip", "PrivateTest").argmax(1).numpy()
        right[asked] = read == votes[asked].argmax(1)  # which is also the majority, if there is one
        found["accuracy"] = {
            rule: float(right[mask & private].mean()) for rule, mask in kept.items()
        }
    return found


def describe_ckplus(frames: _ckplus.Frames) -> dict[str, Any]:
    """The facts of CK+48; ``of_other_sequences`` counts frames whose person has another one."""
    sequences = [Path(name).name.rpartition("_")[0] for name in frames.names]
    per_sequence = Counter(sequences)
    persons = Counter(sequence.partition("_")[0] for sequence in per_sequence)
    near, _ = find_near(frames.images)
    return {
        "labels": count(_ckplus.CATEGORIES, frames.labels),
        "persons": len(persons),
        "sequences": len(per_sequence),
        "frames_of_a_sequence": sorted(set(per_sequence.values())),
        "of_other_sequences": sum(persons[person] > 1 for person in frames.subjects),
        "twins": len(frames.images) - len(group_twins(frames.images)[0]),
        "in_near_twins": len(np.unique(near)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",), ("votes", "ckplus"))
    add = parser.add_argument
    add("--weights", help="name, folder or Hub id, with FER+'s classes, to measure; needs --votes")
    out = _pages.ROOT / "docs" / "results" / "data"
    add("--out", type=Path, default=out, help="(%(default)s)")
    options = parser.parse_args(arguments)
    model = load_init(options.weights, "--weights") if options.weights else None
    if model and not votes_for(model, options.votes):
        parser.error("--weights need FER+'s classes")
    faces = load(options.data)
    result: dict[str, Any] = {"fer2013": describe_fer2013(faces)}
    if options.votes:
        votes = load_votes(options.votes, faces)
        weights = {"weights": name_of(options.weights)} if model else {}
        result["ferplus"] = weights | describe_ferplus(faces, votes, model)
    if options.ckplus:
        result["ckplus"] = describe_ckplus(_ckplus.load(options.ckplus))
    result["command"] = record_command("data_facts.py", arguments)
    write_json(options.out / "data.json", result)
    plot_confusion(
        np.array(result["fer2013"]["labels_of_twins"]), FER2013_CATEGORIES,
        options.out / "twins.png", ("a twin's label", "an image's label"),
    )  # fmt: skip
    print(_pages.data(result))


if __name__ == "__main__":
    main()
