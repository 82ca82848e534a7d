"""Bundles weights: measures them, and writes all that speaks of them.

  python tools/release.py runs/mine --name fer2013 --data fer2013.csv   # new weights
  python tools/release.py runs/plus --name ferplus --data fer2013.csv --votes fer2013new.csv
  python tools/release.py runs/subject --name ckplus-subject            # folds of CK+
  python tools/release.py runs/ckplus --name ckplus                     # weights of all its frames
  python tools/release.py                                               # write the documents anew
  python tools/release.py --check                                       # is anything stale?

The first two take a run of tools/train.py, or a folder of weights. They fit the temperature on
PublicTest, score PrivateTest once where the file has it, copy the weights into
ferfacenet/weights/NAME with their config and model card, and write weights/registry.json,
docs/results/NAME, the golden values of the tests, the pictures, and (unless --quick) the figures
of faces and speed. Runs of tools/ckplus_kfold.py are taken as they are, folds first. After new
weights the blocks of README.md and docs/*.md are written from docs/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import _pages
import torch
from _cards import card
from _fer2013 import SPLITS, load
from _settings import make_parser, name_of
from evaluate import (
    choose,
    crop_logits,
    draw,
    evaluate,
    measured_by,
    read_json,
    votes_for,
    write_json,
)
from PIL import Image

from ferfacenet import load_pretrained, preprocess
from ferfacenet.command.cli import main as command
from ferfacenet.transforms import views
from ferfacenet.weights import CONFIG_FILE, WEIGHTS_FILE, WeightsConfig, write_atomically

#: The astronaut's face as FER2013 would frame it, in pixels of docs/photos/astronaut.jpg.
FACE = (172, 67, 277, 172)
_FITTED = " The temperature was fitted on PublicTest"
_SCORED = "; PrivateTest was scored once, when they had been chosen."


def measure(
    source: Path, name: str, data: Path, votes: Path | None, device: str, config: WeightsConfig
) -> WeightsConfig:
    """Write docs/results/NAME; the config with its temperature and accuracies."""
    model, faces = load_pretrained(source, device=device), load(data)
    votes = votes_for(model, votes)
    out = _pages.ROOT / "docs" / "results" / name
    metrics: dict[str, float] = {}
    for key, split in _pages.SPLITS.items():
        if not (faces.splits == SPLITS.index(split)).any():
            print(f"{data.name} has no {split}: it is not scored", file=sys.stderr)
            (out / f"{key}.json").unlink(missing_ok=True)  # of other weights
            continue
        part, fresh = choose(faces, split, votes=votes)
        logits = crop_logits(model, part.images, split)
        result = {"split": split} | evaluate(part, fresh, model, logits, fit=key == "public")
        metrics |= {f"{split} {tta} accuracy": round(v, 5) for tta, v in result["accuracy"].items()}
        write_json(out / f"{key}.json", result | measured_by())
        draw(result, part, logits, out)
    chosen = config.selected_on.partition(_FITTED)[0] + _FITTED
    chosen += _SCORED if any(key.startswith("PrivateTest") for key in metrics) else "."
    temperature = round(model.temperature.item(), 4)
    return dataclasses.replace(config, temperature=temperature, metrics=metrics, selected_on=chosen)


def bundle(source: Path, name: str, config: WeightsConfig) -> None:
    """Put the weights into the package, and into its registry."""
    home = _pages.ROOT / "ferfacenet" / "weights"
    (home / name).mkdir(parents=True, exist_ok=True)
    if source.resolve() != (home / name).resolve():
        shutil.copyfile(source / WEIGHTS_FILE, home / name / WEIGHTS_FILE)
    write_atomically(home / name / CONFIG_FILE, config.to_json())
    registry, entry = _pages.read_registry(), registry_entry(home / name)
    kept = registry["pretrained"].get(name, {})
    if not kept.items() >= entry.items():  # or it stays, with the Hub's commit
        registry["pretrained"][name] = entry
    write_json(home / "registry.json", registry)


def keep_run(run: Path, name: str) -> None:
    """Put a run's settings, with files by their names alone, its history and, of folds, their
    result and predictions into docs/results."""
    out = _pages.ROOT / "docs" / "results" / name
    config = json.loads((run / CONFIG_FILE).read_text())
    for key in {"data", "votes", "result"} & config.keys():
        config[key] = Path(config[key]).name
    for key in {"init", "teachers"} & config.keys():
        config[key] = ",".join(name_of(weights) for weights in config[key].split(",") if weights)
    write_json(out / CONFIG_FILE, config)
    for file in ("metrics.jsonl", "result.json", "predictions.csv"):
        if (run / file).is_file():
            shutil.copyfile(run / file, out / file)


def registry_entry(folder: Path) -> dict[str, Any]:
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest()
    return {"config_sha256": digest, "size": (folder / WEIGHTS_FILE).stat().st_size}


@torch.no_grad()
def golden(name: str) -> dict[str, Any]:
    """What weights say of the photo's face by PyTorch's own layers, for the tests to hold other
    ways to."""
    folder = _pages.ROOT / "ferfacenet" / "weights" / name
    model = load_pretrained(folder)
    with Image.open(_pages.ROOT / "docs" / "photos" / "astronaut.jpg") as photo:
        face = preprocess(photo.crop(FACE), align=False)[None]
    row = torch.stack([model(view).softmax(1) for view in views(face, "flip")]).mean((0, 1))
    config = WeightsConfig.from_json((folder / CONFIG_FILE).read_bytes())
    values = {c: round(p, 6) for c, p in zip(config.categories, row.tolist(), strict=True)}
    return {"config_sha256": registry_entry(folder)["config_sha256"], "probabilities": values}


def is_golden(name: str, known: dict[str, Any]) -> bool:
    """Whether the golden values of ``name`` are of the weights that are there now."""
    folder = _pages.ROOT / "ferfacenet" / "weights" / name
    digest = registry_entry(folder)["config_sha256"]
    return bool(known.get(name, {}).get("config_sha256") == digest)


def render_all() -> dict[Path, bytes]:
    """Everything that is written from docs/results and the bundled configs, by file."""
    texts = {page: _pages.render(page.read_text()) for page in _pages.pages()}
    weights = _pages.ROOT / "ferfacenet" / "weights"
    texts |= {weights / name / "README.md": card(name) for name in _pages.read_configs()}
    return {path: text.encode() for path, text in texts.items()}


def find_stale() -> list[str]:
    """The files that are not what this script would write."""
    written = render_all().items()
    stale = [str(p) for p, data in written if not p.is_file() or p.read_bytes() != data]
    weights, configs = _pages.ROOT / "ferfacenet" / "weights", _pages.read_configs()
    known = read_json(_pages.ROOT / "tests" / "golden.json")
    spoilt = _pages.read("robustness.json")
    for name, entry in _pages.read_registry()["pretrained"].items():
        if not entry.items() >= registry_entry(weights / name).items():
            stale.append(f"{weights / 'registry.json'} ({name})")
        digest = hashlib.sha256((weights / name / WEIGHTS_FILE).read_bytes()).hexdigest()
        if digest != configs[name].weights_sha256:
            stale.append(str(weights / name / WEIGHTS_FILE))
        if spoilt.get(name, entry)["config_sha256"] != entry["config_sha256"]:
            stale.append(f"docs/results/robustness.json ({name}): run tools/robustness.py")
        if not is_golden(name, known):
            stale.append(f"tests/golden.json ({name})")
    return stale


def call(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True)


def take(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Bundle the weights of a run, or of a folder, as the ``options`` say."""
    run, tools = options.run, Path(__file__).parent
    inner = run / "weights"
    source = inner if inner.is_dir() else run
    if not (source / WEIGHTS_FILE).is_file():
        parser.error(f"{run} holds no weights: no {source / WEIGHTS_FILE}")
    config = WeightsConfig.from_json((source / CONFIG_FILE).read_bytes())
    if _pages.dataset_of(config) != "CK+":
        if not options.data:
            parser.error("RUN needs --data: fer2013.csv or the folder")
        config = measure(source, options.name, options.data, options.votes, options.device, config)
    bundle(source, options.name, config)
    if source == inner:
        keep_run(run, options.name)
    if options.name == "fer2013":
        photo = _pages.ROOT / "docs" / "photos" / "portraits.jpg"
        command([str(photo), "--plot", str(photo.with_name("portraits-plot.png"))])
    if not options.quick:
        if options.name == "fer2013":
            call(str(tools / "evaluate_faces.py"), "--data", str(options.data.resolve()))
        call(str(tools / "benchmark.py"))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, (), ("data", "votes"))
    add = parser.add_argument
    add("run", type=Path, nargs="?", metavar="RUN", help="run of tools/train.py, or weights folder")
    add("--name", help="the name to bundle them by")
    add("--device", default="cpu", help="(%(default)s)")
    add("--quick", action="store_true", help="leave the figures of faces and speed as they are")
    add("--check", action="store_true", help="write nothing; exit 1 if anything is stale")
    options = parser.parse_args(arguments)
    if options.check:
        stale = find_stale()
        sys.exit("".join(f"stale: {path}\n" for path in stale) if stale else 0)
    if options.run and not options.name:
        parser.error("RUN needs --name")
    if options.run and (options.run / "result.json").is_file():
        keep_run(options.run, options.name)
        return  # the card of the old weights would not agree with it
    if options.run:
        take(options, parser)
    values, path = {}, _pages.ROOT / "tests" / "golden.json"
    known = read_json(path)
    for name in _pages.read_configs():  # what still holds is kept: the last digit is the machine's
        values[name] = known[name] if is_golden(name, known) else golden(name)
    write_json(path, values)
    for path, data in render_all().items():
        if not path.exists() or path.read_bytes() != data:
            write_atomically(path, data)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
