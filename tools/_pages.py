"""What the documents say of measured figures, written from docs/results/*.json.

A page has a block between ``<!-- name -->`` and ``<!-- /name -->``; ``render`` puts there what the
function of that name in ``BLOCKS`` returns.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _fer2013 import FERPLUS_CATEGORIES

from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.weights import WeightsConfig, build_empty

ROOT = Path(__file__).parents[1]
VIEWS = {"flip": "centre and mirror", "ten_crop": "ten crops", "none": "centre"}
SPLITS = {"public": "PublicTest", "private": "PrivateTest"}
#: What the paper reports, in %, named and spelt as there: Table II, by split, then III and IV.
PAPER = {"VGG19": (68.821, 70.995), "improved VGG19": (70.911, 73.029)}
TABLE_III = {
    "RBM": "71.161", "Unsupervised": "69.267", "Maxim Milakov": "68.821",
    "Radu+Marius+Cristi": "67.483", "Lor.Voldy": "65.254", "Ryank": "65.087",
    "Eric Cartman": "64.474", "Xavler Bouthller": "64.224", "AlehandroDubrovsky": "63.109",
    "Sayit": "62.190", "DNNRL": "70.60", "CPC": "71.36", "improved VGG19": "73.029",
}  # fmt: skip
TABLE_IV = {
    "Shan et al.": "89.1", "Jeni et al.": "96", "Kahou et al.": "91.3", "improved VGG19": "93.939",
}  # fmt: skip
#: Ten folds of CK+ by protocol: the runs of ours, and of the paper's recipe from scratch.
CKPLUS = {
    "public": ("ckplus-public", "ckplus-public-scratch"),
    "subject": ("ckplus-subject", ""),
    "random": ("ckplus-random", "ckplus-scratch"),
}
#: What the public VGG19 code reports of its folds, pooled, by the epoch that each test liked best.
PUBLIC_CKPLUS = "94.646"


def read(path: str) -> Any:
    """A JSON file of docs/results."""
    return json.loads((ROOT / "docs" / "results" / path).read_text())


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}"


def table(*rows: tuple[Any, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def read_configs() -> dict[str, WeightsConfig]:
    """The registered weights' configs by name."""
    folder = ROOT / "ferfacenet" / "weights"
    return {
        name: WeightsConfig.from_json((folder / name / "config.json").read_bytes())
        for name in read_registry()["pretrained"]
    }


def read_registry() -> dict[str, Any]:
    return dict(json.loads((ROOT / "ferfacenet" / "weights" / "registry.json").read_text()))


def dataset_of(config: WeightsConfig) -> str:
    """Whose labels the weights give."""
    return {FER2013_CATEGORIES: "FER2013", FERPLUS_CATEGORIES: "FER+"}.get(config.categories, "CK+")


def evaluated(dataset: str = "FER2013") -> dict[str, dict[str, Any]]:
    """What was measured of each set of weights with a dataset's labels, by name and split."""
    found = {
        name: {split: read(f"{name}/{split}.json") for split in SPLITS if has(name, split)}
        for name, config in read_configs().items()
        if dataset_of(config) == dataset
    }
    return {name: of for name, of in found.items() if of}


def has(name: str, split: str) -> bool:
    return (ROOT / "docs" / "results" / name / f"{split}.json").is_file()


def last(name: str, dataset: str = "FER2013") -> Mapping[str, Any]:
    """What was measured of weights on PrivateTest, or without it on PublicTest."""
    found: Mapping[str, Any] = list(evaluated(dataset)[name].values())[-1]
    return found


def results() -> str:
    published: list[tuple[Any, ...]] = [
        (f"the paper's {name} (published), ten crops", public, "", private, "")
        for name, (public, private) in PAPER.items()
    ]
    return accuracies("FER2013", "accuracy in %", published)


def ferplus() -> str:
    full = read("ferplus-full/evaluation.json")
    keys = ("accuracy", "accuracy_deduplicated")
    others: list[tuple[Any, ...]] = [
        ("VGG13 of FER+'s authors (published)", "", "", 84.99, ""),
        ("the full network, ten crops", *(percent(full[key]["ten_crop"]) for key in keys), "", ""),
    ]
    return accuracies("FER+", "accuracy in %, FER+'s labels", others)


def accuracies(dataset: str, title: str, others: list[tuple[Any, ...]]) -> str:
    head = (title, *(f"{s}{d}" for s in SPLITS.values() for d in ("", ", no duplicates")))
    rows: list[tuple[Any, ...]] = [head, *others]
    for name, found in evaluated(dataset).items():
        for views in ("ten_crop", "flip"):
            cells = [
                percent(found[split][key][views]) if split in found else ""
                for split in SPLITS
                for key in ("accuracy", "accuracy_deduplicated")
            ]
            rows.append((f"`{name}`, {VIEWS[views]}", *cells))
    return table(*rows)


def weights() -> str:
    rows: list[tuple[Any, ...]] = [("name", "reads", "parameters", "MB", "accuracy in %")]
    registry = read_registry()["pretrained"]
    for name, config in read_configs().items():
        dataset = dataset_of(config)
        if name in evaluated(dataset):
            of = last(name, dataset)
            figure = f"{percent(of['accuracy']['flip'])} on {dataset}'s {of['split']}"
        else:
            figure = f"{folds('subject')[0]} on persons of CK+ that it has not seen, ten crops"
        count = sum(p.numel() for p in build_empty(config.model_args).parameters())
        others = sorted({"neutral", "contempt"} & set(config.categories))
        megabytes = f"{registry[name]['size'] / 1e6:.1f}"
        reads = f"{', '.join(['six expressions', *others[:-1]])} and {others[-1]}"
        rows.append((f"`{name}`", reads, f"{count / 1e6:.1f} M", megabytes, figure))
    return table(*rows)


def views() -> str:
    rows: list[tuple[Any, ...]] = [
        ("", "views", *(f"{s}, {what}" for s in SPLITS.values() for what in ("%", "ECE")))
    ]
    for name, found in evaluated().items():
        for key, title in VIEWS.items():
            cells = []
            for of in map(found.get, SPLITS):
                cells += [percent(of["accuracy"][key]), f"{of['ece'][key]:.3f}"] if of else ["", ""]
            rows.append((f"`{name}`", title, *cells))
    fitted = ", ".join(
        f"`{name}` {of['public']['ece_cross_fitted']:.3f}" for name, of in evaluated().items()
    )
    return f"{table(*rows)}\n\nECE, each half of PublicTest fitted on the other: {fitted}."


def classes(found: Mapping[str, Any] | None = None) -> str:
    found = found or last("fer2013")
    rows: list[tuple[Any, ...]] = [("class", "recall, %", "precision, %", "F1, %", "images")]
    for name, of in found["per_class"].items():
        cells = (percent(of[key], 1) for key in ("recall", "precision", "f1"))
        rows.append((name, *cells, of["support"]))
    return table(*rows)


def confusion() -> str:
    found = last("fer2013")
    counts = np.array(found["confusion"])
    names = list(found["per_class"])
    shares = 100 * counts / counts.sum(1, keepdims=True)
    return table(
        ("true, taken for", *names),
        *((name, *(f"{v:.1f}" for v in row)) for name, row in zip(names, shares, strict=True)),
    )


def folds(protocol: str, scratch: bool = False) -> tuple[str, str]:
    """The accuracy in %, by ten crops, of all folds of one of ``CKPLUS`` and of the best."""
    if not (run := CKPLUS[protocol][scratch]):
        return "", ""
    found = read(f"{run}/result.json")
    return percent(found["accuracy"]["ten_crop"]), percent(max(found["accuracy_by_fold"]))


def neighbour(protocol: str) -> tuple[str, str]:
    """The same of the nearest neighbour by pixels."""
    found = read(f"{CKPLUS[protocol][0]}/result.json")["nearest_neighbour"]
    return percent(found["accuracy"]), percent(max(found["accuracy_by_fold"]))


def ckplus() -> str:
    titles = {"public": "public folds", "subject": "over persons", "random": "over frames"}
    start = read("ckplus-subject/result.json")["init"]
    unknown = [""] * 4

    def row(title: str, cells: Callable[[str], tuple[str, str]]) -> tuple[str, ...]:
        return (title, *(cell for protocol in titles for cell in cells(protocol)))

    return table(
        ("ten folds of CK+, accuracy in %",
         *(f"{title}, {what}" for title in titles.values() for what in ("pooled", "best"))),
        ("the paper's improved VGG19 (published)", "", TABLE_IV["improved VGG19"], *unknown),
        ("the public VGG19 code (published), best epoch of each test", PUBLIC_CKPLUS, "", *unknown),
        row("the paper's recipe, from scratch, last epoch", lambda of: folds(of, scratch=True)),
        row(f"ours, from `{start}`, last epoch", folds),
        row("nearest neighbour by pixels", neighbour),
    )  # fmt: skip


def tables() -> str:
    found = evaluated()["fer2013"]
    cells = [percent(of["accuracy"]["ten_crop"]) for of in found.values()]
    ours, scratch = folds("public"), folds("public", scratch=True)
    return "\n\n".join((
        table(
            ("Table II, FER2013, ten crops, %", *(of["split"] for of in found.values())),
            *((f"the paper's {name}", *of[: len(found)]) for name, of in PAPER.items()),
            ("ours, `fer2013`", *cells),
        ),
        table(
            ("Table III, FER2013, %", "PrivateTest"), *TABLE_III.items(),
            ("ours, `fer2013`", cells[1] if "private" in found else ""),
        ),
        table(
            ("Table IV, CK+, %", "ten folds"), *TABLE_IV.items(),
            ("ours, the paper's recipe, public folds, best", scratch[1]),
            ("the same, pooled", scratch[0]),
            ("ours, from `ferplus`, public folds, best", ours[1]),
            ("the same, pooled", ours[0]),
            ("the same over persons, pooled", folds("subject")[0]),
        ),
    ))  # fmt: skip


def faces() -> str:
    found = read("faces.json")
    pasted, turned = found["pasted"], found["expressions_at_roll"]
    rows: list[tuple[Any, ...]] = [
        ("pasted faces, turned by up to 30 degrees: found, %", percent(pasted["found"], 1)),
        ("the same, error of the roll in degrees: mean", f"{pasted['roll_error_mean']:.1f}"),
        (
            "enlarged crops of FER2013 taken as they are, %",
            percent(found["enlarged_crops_taken_as_they_are"], 1),
        ),
    ]
    for roll, of in turned.items():
        for what, key in (("the crop itself", "of_crops"), ("found again", "through_detect_faces")):
            figure = percent(of[f"accuracy_{key}"], 1)
            rows.append((f"read right, turned by {roll} degrees, {what}, %", figure))
    return table(("", ""), *rows)


def photos() -> str:
    of = read("faces.json")
    turned, small = of["photos"]["quarter_turns"], of["photos"]["small"]
    rows: list[tuple[Any, ...]] = [("", "")]
    for what in ("found", "label_kept"):
        shares = turned[f"{what}_at_90_180_270"]
        what = what.replace("_", " ")
        title = f"{turned['faces']} faces, turned by 90, 180, 270 degrees: {what}, %"
        rows.append((title, ", ".join(percent(share, 1) for share in shares)))
    for times, square in of["photos"]["squares"].items():
        title = f"{square['squares']} squares of {times} times the box: label kept, %"
        rows.append((title, percent(square["label_kept"], 1)))
    sizes = small["found_by_size"]
    title = f"{small['heads']} faces of {', '.join(sizes)} pixels in 640x480: found, %"
    rows.append((title, ", ".join(percent(share, 1) for share in sizes.values())))
    for size, found in small["found_of_17_in_12000x1500"].items():
        title = f"17 faces of {size} pixels in 12,000x1,500: found, and with `min_size` 0.6 of that"
        rows.append((title, f"{found['default']}, {found['with_min_size']}"))
    mosaics = of["mosaics_of_25"]
    rows.append((f"{len(mosaics)} mosaics of 25 faces of CK+: found", ", ".join(map(str, mosaics))))
    nobody = of["without_people"]
    scores = ", ".join(f"{score:.2f}" for score in nobody["scores_of_faces"]) or "none"
    rows.append((f"{nobody['photos']} photos without people: scores of faces", scores))
    (speed,) = read("benchmark.json")["detector"]
    title = "YuNet at 640x480 on a CPU: ms, and by OpenCV"
    rows.append((title, f"{speed['ms']:.1f}, {speed['opencv_ms']:.1f}"))
    return table(*rows)


def readings() -> str:
    return (ROOT / "docs" / "results" / "ablations" / "table.md").read_text().strip()


def tried() -> str:
    rows = []
    for path in sorted((ROOT / "docs" / "results").glob("*/config.json")):
        run, config = path.parent, json.loads(path.read_text())
        scores = [run / name for name in ("public.json", "evaluation.json")]
        measured = next((score for score in scores if score.is_file()), None)
        if measured and config.get("labels") != "ferplus":
            found = json.loads(measured.read_text())
            rows.append((
                f"[{run.name}](results/{run.name}/config.json)", config["epochs"],
                config.get("init") or "scratch", config.get("teachers", "").replace(",", ", "),
                config.get("width", 1.0), config.get("mixup", 0.0) or "",
                percent(found["accuracy"]["ten_crop"]),
            ))  # fmt: skip
    return table(
        ("run", "epochs", "from", "taught by", "width", "mixup", "PublicTest, ten crops, %"),
        *sorted(rows, key=lambda row: float(row[-1])),
    )


def widths() -> str:
    measured = read("widths/widths.json")
    full = measured["rows"][0]
    rows: list[tuple[Any, ...]] = [
        ("", "parameters", "MB in float16", "one crop, %", "ten crops, %",
         "the same, no duplicates", "time of one crop", "of 128")
    ]  # fmt: skip
    for of in measured["rows"]:
        times = (f"{of[key] / full[key]:.3f}" for key in ("ms_1", "ms_128"))
        size, crops = ("", ""), ("", "")
        if "width" in of:
            size = f"{of['parameters'] / 1e6:.2f} M", f"{2 * of['parameters'] / 1e6:.1f}"
            crops = percent(of["ten_crop"]), percent(of["ten_crop_deduplicated"])
        rows.append((of["package"], *size, percent(of["accuracy"]), *crops, *times))
    return f"{table(*rows)}\n\nTimes as shares of the full network's. {machine(measured)}."


def peers() -> str:
    columns = {
        "crop": "the crop", "enlarged": "own detector: right / found",
        "margin": "with a margin: right / found",
    }  # fmt: skip
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for of in read("peers/peers.json")["rows"]:
        found = f" / {percent(of['answered'], 0)}" if of["pictures"] != "crop" else ""
        row = cells.setdefault((f"`{of['package']}` {of['version']}", of["called"]), {})
        row[of["pictures"]] = percent(of["accuracy"], 1) + found
    return table(
        ("PublicTest, right in %", "by", *columns.values()),
        *((*key, *(row.get(kind, "") for kind in columns)) for key, row in cells.items()),
    )


def browsers() -> str:
    found = read("peers/pages.json")
    rows = [
        (f"`{of['package']}` {of['version']}", of["called"], f"{of['frames_a_second']:.1f}")
        for of in found["rows"]
    ]
    return table((found["browser"], "by", "pictures a second"), *rows)


def embedded() -> str:
    found = read("embedded/embedded.json")
    names = list(found["rows"][0]["ms"])
    rows: list[tuple[Any, ...]] = [
        ("package / folder", "MB", "PublicTest, two views", "same label, %",
         *(f"{name}, ms" for name in names))
    ]  # fmt: skip
    for of in found["rows"]:
        public = of["publictest"]
        right = f"{percent(public['float32'])} / {percent(public['folder'])}"
        times = [
            " / ".join(f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}" for ms in of["ms"][name].values())
            for name in names
        ]
        name, size = f"`{of['weights']}`", f"{of['megabytes']:.1f}"
        rows.append((name, size, right, percent(public["same_label"], 1), *times))
    of = found["rows"][0]["photos"]
    photos: list[tuple[Any, ...]] = [
        (f"`{found['rows'][0]['weights']}` on {of['photos']} photos", ""),
        ("faces of the package / of the folder", f"{of['faces']} / {of['faces_of_the_folder']}"),
        ("the same face", of["found_again"]),
        ("its box within a pixel, or 1 % of its side", of["boxes_alike"]),
        ("its label the same", of["same_label"]),
        ("its probabilities' difference, median", f"{of['difference_median']:.3f}"),
    ]
    return f"{table(*rows)}\n\n{table(*photos, ('measured on', machine(found)))}"


def embedding() -> str:
    found, pages = (read(f"{name}.json") for name in ("embedded/embedded", "peers/pages"))
    of = found["rows"][0]
    times = {name: [f"{ms / 1000:.2g}" for ms in by.values()] for name, by in of["ms"].items()}
    photo = next(name for name in times if name.endswith(".jpg"))
    frames = {row["package"]: row["frames_a_second"] for row in reversed(pages["rows"])}
    return table(
        ("", "the package", "[a folder](train.md#onnx)", "[a page](examples/browser/build.py)"),
        ("computes by", "PyTorch, also on GPUs", "onnxruntime", "the visitor's browser"),
        ("installed, MB", "700 to 5,000", f"{found['environment_megabytes']:.0f}", "none"),
        ("its own, MB", "", f"{of['megabytes']:.1f}", f"{pages['visit_megabytes']:.0f} a visit"),
        (f"first answer, {photo}, s", *times["first answer"], ""),
        ("the next, s", *times[photo], f"{frames['ferfacenet']:.0f} webcam pictures a second"),
        ("reads", "photos, lists of them, videos, cameras", "photos", "photos, the webcam"),
        ("lacks", "", "16 bits, lists, videos", "the same, HEIC, turned WebP, faces in panoramas"),
    )


def compare() -> str:
    titles = {
        "fer2013": "right by FER2013's labels", "ferplus": "by FER+'s",
        "neutral_as_anger_or_sadness": "neutral taken for anger or sadness", "fear": "fear found",
        "ckplus": "right on CK+", "ckplus_as_neutral": "CK+ taken for neutral",
        "ckplus_of_six": "right on CK+, of six",
    }  # fmt: skip
    rows: list[tuple[Any, ...]] = [("in %", *titles.values(), "degraded")]
    spoilt = read("robustness.json")
    for of in read("compare/compare.json")["rows"]:
        name = of["weights"]
        mean = percent(spoilt[name]["mean"]["accuracy"], 1) if name in spoilt else ""
        rows.append((f"`{name}`", *(percent(of[key], 1) for key in titles), mean))
    return table(*rows)


def robustness() -> str:
    found = read("robustness.json")
    names = [name for name in dict.fromkeys((*read_configs(), *found)) if name in found]
    columns = [describe_robustness(found[name]) for name in names]
    return table(
        ("right, in %", *(f"`{name}`" for name in names)),
        *((title, *(of[title] for of in columns)) for title in columns[0]),
    )


def sure() -> str:
    """What share of faces is sure from 0.5 on, and right of those."""
    rows: list[tuple[Any, ...]] = [
        ("PublicTest, in %", "sure as it is", "right of these", "sure degraded", "right of these")
    ]
    for name, of in read("robustness.json").items():
        rows.append((f"`{name}`", *sure_shares(of["untouched"], 0), *sure_shares(of["mean"], 0)))
    return table(*rows)


def sure_shares(of: Mapping[str, float], digits: int) -> tuple[str, str]:
    """How many answers are sure, and of these how many are right."""
    right = of["sure_and_right"] / max(of["sure"], 1e-9)
    return percent(of["sure"], digits), percent(right, digits)


def describe_robustness(of: Mapping[str, Any]) -> dict[str, str]:
    """A column of the table, by the titles of its rows."""
    clean, mean, again = of["untouched"], of["mean"], of["found_again"]
    cells = {"images": f"{of['images']:,}", "untouched": percent(clean["accuracy"], 1)}
    for kind, found in of["kinds"].items():
        shares = [percent(one["accuracy"], 1) for one in found.values()]
        cells[f"{kind}: {' / '.join(found)}"] = " / ".join(shares)
    cells["mean of these 45"] = percent(mean["accuracy"], 1)
    titles = {
        "mean confidence": "confidence", "calibration error (ECE)": "ece",
        "ECE if its probabilities were true": "ece_if_calibrated",
    }  # fmt: skip
    for title, key in titles.items():
        figures = [f"{part[key]:.3f}" if key in part else "" for part in (clean, mean)]
        cells[f"{title}, untouched / mean"] = " / ".join(figures)
    cells["of the 45, those sure from 0.5 on / right of those, %"] = " / ".join(
        sure_shares(mean, 1)
    )
    for roll, one in again.items():
        shares = [
            percent(one[f"accuracy_{key}"], 1) for key in ("of_crops", "through_detect_faces")
        ]
        cells[f"pasted, turned by {roll} degrees: the crop / found again"] = " / ".join(shares)
    return cells


def machine(found: Mapping[str, Any]) -> str:
    return f"{found['machine']}, {found['threads']} threads, PyTorch {found['torch']}"


def speed() -> str:
    found = read("benchmark.json")
    rows: list[tuple[Any, ...]] = [("", "views at once", "plain, ms", "fast, ms", "times")]
    for of in found["forward"]:
        plain, fast = of["plain_ms"], of["fast_ms"]
        cells = f"{plain:.1f}", f"{fast:.1f}", f"{plain / fast:.2f}"
        rows.append((f"`{of['weights']}`", of["views"], *cells))
    return f"{table(*rows)}\n\n{machine(found)}, {found['precision']}."


def speed_line() -> str:
    found = read("benchmark.json")
    rates = [
        f"{of['images_per_second']:.0f} with `{of['weights']}`"
        for of in found["throughput"]
        if of["tta"] == "flip" and of["images"] == "tensors"
    ]
    frames = [f"{of['frames_per_second']:.0f} with `{of['weights']}`" for of in found["video"]]
    times = " and ".join(f"{of['times_decoding']:.0f}" for of in found["video"])
    return (
        f"On {found['threads']} threads of {found['machine']}, faces a second, two views each: "
        f"{', '.join(rates)}. Frames a second of a 640x480 video with one face: "
        f"{', '.join(frames)} ({times} times as long as decoding alone)."
    )


def photo_speed() -> str:
    def times(of: dict[str, Any]) -> str:
        memory = f", {of['peak_mib']} MiB" if "peak_mib" in of else ""
        return f"{of['ms']:.0f} ({of['cpu_ms']:.0f}){memory}"

    found = read("photos.json")
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for of in found.get("photos", []):
        cases.setdefault(of["case"], {})[of["package"]] = of
    others = [name for name in next(iter(cases.values()), {}) if name == "fer"]  # no revisions
    heads = [head for name in others for head in (f"{name}, ms", "ours to that")]
    rows: list[tuple[Any, ...]] = [
        ("wall clock (CPU time)", "`fer2013-small`, ms", *heads,
         "% decoding, search, framing, reading")
    ]  # fmt: skip
    for case, by in cases.items():
        ours = by["ferfacenet"]
        cells = [times(ours)]
        for of in map(by.__getitem__, others):
            cells += [times(of), f"{of['ratio']:.2f} ({of['cpu_ratio']:.2f})"]
        shares = ", ".join(percent(share, 0) for share in ours.get("shares", {}).values())
        rows.append((case, *cells, shares))
    return f"{table(*rows)}\n\n{machine(found)}."


def data(found: Mapping[str, Any] | None = None) -> str:
    """What tools/data_facts.py found, each fact with what follows from it."""
    found = found or read("data/data.json")
    parts = {
        "fer2013": ("FER2013", fer2013_facts),
        "ferplus": ("FER+", ferplus_facts),
        "ckplus": ("CK+48", ckplus_facts),
    }
    return "\n\n".join(
        table((title, "", "what follows"), *facts(found[key]))
        for key, (title, facts) in parts.items()
        if key in found
    )


def list_counts(counts: Mapping[str, int]) -> str:
    """What is there at all, the most first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in ordered if count)


def fer2013_facts(of: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    sizes = {split: sum(of["labels"][split].values()) for split in of["labels"]}
    tests = [split for split in SPLITS.values() if sizes[split]]
    common = max(of["labels"]["Training"], key=of["labels"]["Training"].__getitem__)
    always = [of["labels"][split][common] / sizes[split] for split in tests]
    known = [of["labelled_as_in_training"][s] / max(of["in_training"][s], 1) for s in tests]
    pairs = np.array(of["labels_of_twins"])
    odd = np.triu(pairs, 1)
    one, other = (FER2013_CATEGORIES[i] for i in np.unravel_index(odd.argmax(), odd.shape))
    both = " / ".join(tests)

    def in_tests(key: str) -> str:
        return " / ".join(f"{of[key][split]:,}" for split in tests)

    return [
        ("labels of Training", list_counts(of["labels"]["Training"]),
         "recall by class says what accuracy hides"),
        (f"{common} in {both}, %", " / ".join(percent(share, 1) for share in always),
         "a network that always says so is right so often"),
        ("pixels of Training, in [0, 1]: mean, standard deviation",
         f"{of['pixels']['mean']:.4f}, {of['pixels']['std']:.4f}",
         "the weights have them and normalise by themselves"),
        ("images of one gray", list_counts(of["blank"]) or "none",
         "nobody can read them: `predict_proba` refuses them, `evaluate.py` counts them wrong"),
        ("Training images that equal another", f"{of['training_twins']:,}",
         "a part held out at random flatters; `--holdout` keeps twins on one side"),
        ("those in groups of twins with several labels", f"{of['training_twins_at_odds']:,}",
         "no network can be right on all of Training"),
        ("pairs of twins with one label, %", percent(np.trace(pairs) / max(pairs.sum(), 1), 1),
         f"labels of one picture differ too{f', {one} and {other} most' if odd.any() else ''}"),
        (f"of {both} in Training", in_tests("in_training"),
         "accuracy is given without these too"),
        ("these have the label of most twins there (of a tie the first in FER2013's order), %",
         " / ".join(percent(share, 1) for share in known),
         "memory alone is right on these so often, so they raise any accuracy"),
        ("of PrivateTest in PublicTest", f"{of['in_public']['PrivateTest']:,}",
         "what is chosen on PublicTest has seen these"),
        (f"of {both} near an image of Training, and equal to none", in_tests("only_near_training"),
         "the figures without duplicates still have these"),
        ("near twins, and twins or near ones mirrored, in pairs",
         f"{of['near_twins']:,}, {of['mirrored_twins']:,}",
         "mirroring in training never makes an image that is there already"),
    ]  # fmt: skip


def ferplus_facts(of: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rules = {
        "majority": ("more than half of the votes, single ones dropped",
                     "the authors' rule \"majority\", and ours"),
        "probability": ("up to three classes, single votes dropped",
                        "the authors' rule \"probability\""),
        "plurality": ("most votes, of a tie the first in FER+'s order",
                      "as many papers count"),
    }  # fmt: skip
    rare, least = min(of["labels"].items(), key=lambda item: item[1] or math.inf)
    facts = [
        ("images with other than ten votes, or none", f"{len(of['odd_totals']):,}",
         "divide by the sum of the votes, not by ten"),
        ("images with no votes, or with votes for \"not a face\" alone", f"{of['not_a_face']:,}",
         "they have no label. In `fer2013new.csv` most of them have no name, and four other names "
         "stand twice: counted by its rows, not by names, a few more images keep a label"),
        *((f"images with a label in {' / '.join(of['kept'][rule])}: {what}",
           " / ".join(f"{count:,}" for count in of["kept"][rule].values()), follows)
          for rule, (what, follows) in rules.items()),
        ("labels of PrivateTest by majority", list_counts(of["labels"]),
         f"one image of {rare} is {percent(1 / max(least, 1), 0)} points of its recall"),
        ("labels by majority that are FER2013's too, %",
         percent(of["agrees_with_fer2013"], 1),
         "weights for one set of labels are wrong by the other"),
        ("groups of twins, those with the same votes",
         f"{of['groups_of_twins']:,}, {of['groups_of_one_vote']:,}",
         "twins are no second opinion. The `label.csv` that the authors' own reader takes has "
         "other votes for many images: say which file it was"),
    ]  # fmt: skip
    if "accuracy" in of:
        cells = [percent(of["accuracy"][rule]) for rule in rules]
        facts.append((
            f"`{of['weights']}` on PrivateTest by these three, centre and mirror, %",
            " / ".join(cells), "the answers are the same: figures by two of them do not compare",
        ))  # fmt: skip
    return facts


def ckplus_facts(of: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    frames = sum(of["labels"].values())
    counts = f"{frames:,}, {of['sequences']:,}, {of['persons']:,}"
    return [
        ("frames, sequences, persons", counts,
         f"with {' or '.join(map(str, of['frames_of_a_sequence']))} frames a sequence, folds over "
         "frames ask about what they have all but seen"),
        ("labels", list_counts(of["labels"]), "no plain faces: they are taken for something"),
        ("frames whose person has another sequence, %",
         percent(of["of_other_sequences"] / frames, 1),
         "only folds over persons ask about somebody new"),
        ("twins, frames that have a near one", f"{of['twins']:,}, {of['in_near_twins']:,}",
         "looking for duplicates does not find what frames share"),
    ]  # fmt: skip


BLOCKS: dict[str, Callable[[], str]] = {
    "results": results, "ferplus": ferplus, "compare": compare, "weights": weights,
    "views": views, "classes": classes, "confusion": confusion, "ckplus": ckplus,
    "tables": tables, "faces": faces, "photos": photos, "readings": readings, "tried": tried,
    "widths": widths, "peers": peers, "browsers": browsers, "embedded": embedded,
    "embedding": embedding, "speed": speed,
    "speed-line": speed_line, "data": data, "photo-speed": photo_speed, "robustness": robustness,
    "sure": sure,
}  # fmt: skip


def render(page: str) -> str:
    """The page with every block written anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- /\1 -->", block, page, flags=re.DOTALL)


def pages() -> list[Path]:
    """The documents that may have blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
