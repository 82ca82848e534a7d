"""Writes the model card of weights, registers them, and puts them on the Hugging Face Hub.

  python tools/publish.py card ferfacenet/weights/fer2013 runs/eval/evaluation.json
  python tools/publish.py register ferfacenet/weights/fer2013
  python tools/publish.py upload fer2013 --dry-run

``card`` writes README.md from config.json and from what tools/evaluate.py measured.
``register`` prints the entry for the registry in ferfacenet/hub.py. ``upload`` creates the
repository, uploads the folder of a registered name in one commit, tags it and prints the commit
to pin; --dry-run shows what it would do and asks no network. It uses the token of
``hf auth login`` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import ferfacenet
from ferfacenet import list_pretrained, load_pretrained
from ferfacenet.hub import CONFIG_FILE, WEIGHTS_FILE, WeightsConfig, repo_id, write_atomically

CARD_FILE = "README.md"
WEIGHTS = Path(ferfacenet.__file__).with_name("weights")

#: By registered name: what people call the data set, and what the Hub does.
DATASETS = {
    "fer2013": ("FER2013", "fer2013"),
    "fer2013-small": ("FER2013", "fer2013"),
    "ckplus": ("CK+", "ckplus"),
}

TTAS = {
    "ten_crop": "ten crops (the default)",
    "flip": "centre crop and its mirror",
    "single": "one centre crop",
}

_BODY = """
# Improved VGG19 for {dataset}

Reads the expression on a face: probabilities of {categories}. The network is VGG19's
convolutions with BatchNorm, dropout and one linear layer, for gray faces of 48x48 pixels.

```python
import ferfacenet

model = ferfacenet.load_pretrained("{repo}")
probabilities = ferfacenet.predict_proba(model, "photo.jpg")  # columns as in model.categories
```

Only `config.json` and `model.safetensors` are read; nothing is unpickled.

## Training

{trained_on}

Data licence: {dataset_license}

## How these weights were chosen

{selected_on}

## Figures

{figures}## Limits

The labels are what some people thought that other people's faces show, and they are noisy. The
figures hold for pictures like those of {dataset}; on other cameras, poses, ages or skin tones
they may be lower, and nobody has measured how much. An expression is not an emotion: how somebody
looks does not tell how they feel.

## What it must not be used for

Inferring the emotions of people at work or in places of education is prohibited in the European
Union (AI Act, Regulation (EU) 2024/1689, Art. 5(1)(f)), except for medical or safety reasons.
Other emotion recognition is a high-risk use there, with the duties that brings. Do not use it to
hire, grade, police, insure, diagnose or watch anybody.

## Licence

{license}
"""


_FIGURES = """{split}, {images}, temperature {temperature}, measured by

```sh
{command}
```

{accuracies}

Per class, ten crops (macro F1 {macro_f1}):

| Class | Recall | Precision | F1 | Images |
|---|---|---|---|---|
{classes}

"""


def figures(dataset: tuple[str, str], evaluation: dict[str, Any]) -> tuple[list[Any], str]:
    """What the Hub lists of an evaluation, and the paragraphs of the card about it."""
    from huggingface_hub import EvalResult

    def result(kind: str, title: str, value: float, tta: str) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type=dataset[1],
            dataset_name=dataset[0],
            dataset_split=evaluation["split"],
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 5),
            metric_args={"tta": tta},
        )

    # Folds have no duplicates to leave out: they hold each image once.
    fresh: dict[str, float] = evaluation.get("accuracy_deduplicated", {})
    shown = [tta for tta in TTAS if tta in evaluation["accuracy"]]
    results = []
    for tta in shown:
        whole = evaluation["accuracy"][tta]
        results.append(result("accuracy", f"Accuracy ({tta})", whole, tta))
        if fresh:
            title = f"Accuracy ({tta}, without duplicates)"
            results.append(result("accuracy", title, fresh[tta], tta))
    results.append(result("f1", "Macro F1 (ten_crop)", evaluation["macro_f1"], "ten_crop"))
    images, columns = f"{evaluation['images']:,} images", ["Views", "Accuracy"]
    if fresh:
        images += (
            f" ({evaluation['images_deduplicated']:,} whose pixels do not also occur in the "
            "training\nimages)"
        )
        columns.append("Without duplicates")
    columns.append("Calibration error")
    accuracies = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for tta in shown:
        row = [TTAS[tta], f"{evaluation['accuracy'][tta]:.2%}"]
        row += [f"{fresh[tta]:.2%}"] if fresh else []
        row.append(f"{evaluation['ece'][tta]:.3f}")
        accuracies.append(f"| {' | '.join(row)} |")
    classes = [
        f"| {category} | {of['recall']:.1%} | {of['precision']:.1%} | {of['f1']:.1%} | "
        f"{of['support']} |"
        for category, of in evaluation["per_class"].items()
    ]
    return results, _FIGURES.format(
        split=evaluation["split"],
        images=images,
        temperature=evaluation["temperature"],
        command=evaluation["command"],
        accuracies="\n".join(accuracies),
        macro_f1=f"{evaluation['macro_f1']:.1%}",
        classes="\n".join(classes),
    )


def model_card(name: str, config: WeightsConfig, *evaluations: dict[str, Any]) -> str:
    """The text of the card for the registered ``name``, its figures from ``evaluations``.

    Args:
        name: decides the data set and the repository that the card names.
        config: the weights' config.
        evaluations: what tools/evaluate.py writes as evaluation.json, or
            tools/ckplus_kfold.py as result.json; one for each split.

    Raises:
        ValueError: the config does not say what the weights were trained on, how they were
            chosen or how the data is licensed, or an evaluation is of other weights.
    """
    from huggingface_hub import ModelCardData

    for key in ("trained_on", "selected_on", "dataset_license"):
        if not getattr(config, key).strip():
            raise ValueError(f"{key} in {CONFIG_FILE} is empty, and the card has to say it")
    for evaluation in evaluations:
        if evaluation["temperature"] != config.temperature:
            raise ValueError(
                f"the evaluation was made at temperature {evaluation['temperature']}, and "
                f"{CONFIG_FILE} says {config.temperature}: evaluate again"
            )
        if list(evaluation["per_class"]) != list(config.categories):
            raise ValueError(f"the classes of the evaluation are not those of {CONFIG_FILE}")
    if name not in DATASETS:
        raise ValueError(f"{name!r} is none of {', '.join(DATASETS)}; add it to DATASETS")
    dataset, repo = DATASETS[name], repo_id(name)
    found = [figures(dataset, evaluation) for evaluation in evaluations]
    data = ModelCardData(
        library_name="ferfacenet",
        license=config.license,
        pipeline_tag="image-classification",
        tags=["facial-expression-recognition", "pytorch"],
        datasets=[dataset[1]],
        metrics=["accuracy", "f1"],
        model_name=repo.rpartition("/")[2],
        eval_results=[result for results, _ in found for result in results],
    )
    body = _BODY.format(
        dataset=dataset[0],
        categories=", ".join(config.categories[:-1]) + " and " + config.categories[-1],
        repo=repo,
        trained_on=config.trained_on,
        selected_on=config.selected_on,
        dataset_license=config.dataset_license,
        license=config.license,
        figures="".join(text for _, text in found),
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def write_card(folder: Path, evaluations: list[Path]) -> None:
    """Write the folder's README.md; the folder's name is the registered one."""
    config = WeightsConfig.from_json((folder / CONFIG_FILE).read_bytes())
    found = [json.loads(path.read_text()) for path in evaluations]
    text = model_card(folder.name, config, *found)
    write_atomically(folder / CARD_FILE, text.encode())
    print(f"wrote {folder / CARD_FILE}")


def registration(folder: Path) -> str:
    """The lines that register the folder's files in ferfacenet/hub.py."""
    weights, config = (folder / WEIGHTS_FILE).read_bytes(), (folder / CONFIG_FILE).read_bytes()
    return (
        f'    "{folder.name}": _Registered(\n'
        f'        sha256="{hashlib.sha256(weights).hexdigest()}",\n'
        f"        size={len(weights)},\n"
        f'        config_sha256="{hashlib.sha256(config).hexdigest()}",\n'
        f"    ),"
    )


def check_card(folder: Path) -> None:
    """Raises ValueError if the card lacks what the Hub shows, or is not of these weights."""
    from huggingface_hub import ModelCard

    path = folder / CARD_FILE
    data = ModelCard.load(path).data
    for key in ("library_name", "license", "pipeline_tag", "datasets", "metrics", "eval_results"):
        if not getattr(data, key):
            raise ValueError(f"{path} has no {key}; write it with: tools/publish.py card")
    config = WeightsConfig.from_json((folder / CONFIG_FILE).read_bytes())
    shown = {
        f"{result.dataset_split} {result.metric_args['tta']} accuracy": result.metric_value
        for result in data.eval_results
        if "duplicates" not in result.metric_name and result.metric_type == "accuracy"
    }
    for name, value in config.metrics.items():
        if shown.get(name, value) != value:
            raise ValueError(
                f"{path} has {shown[name]} as {name}, and {CONFIG_FILE} has {value}; "
                "write it again with: tools/publish.py card"
            )


def upload(name: str, tag: str, dry_run: bool) -> None:
    """Put the folder of the registered ``name`` on the Hub; prints what is done.

    Raises:
        ValueError: the folder is not fit to be published, or the tag is taken.
        WeightsError: its files are not those that are registered.
    """
    from huggingface_hub import HfApi, constants

    if name not in list_pretrained():
        raise ValueError(f"{name!r} is not registered; register it first")
    folder, repo = WEIGHTS / name, repo_id(name)
    load_pretrained(name)  # checks both files against the registry
    files = sorted(path.name for path in folder.iterdir())
    if files != sorted([CARD_FILE, CONFIG_FILE, WEIGHTS_FILE]):
        raise ValueError(
            f"{folder} holds {', '.join(files)}; it has to hold {CARD_FILE}, {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, and nothing else"
        )
    check_card(folder)
    message = f"ferfacenet {ferfacenet.__version__}"
    print(f'{repo} on {constants.ENDPOINT}, commit "{message}", tag {tag}:')
    for file in files:
        data = (folder / file).read_bytes()
        print(f"  {file:<20} {len(data):>12,} bytes  sha256 {hashlib.sha256(data).hexdigest()}")
    if dry_run:
        print("dry run: nothing was sent")
        return
    hub = HfApi()
    hub.create_repo(repo, exist_ok=True)
    if any(ref.name == tag for ref in hub.list_repo_refs(repo).tags):
        raise ValueError(f"{repo} has a tag {tag} already; name another with --tag")
    commit = hub.upload_folder(
        repo_id=repo, folder_path=folder, allow_patterns=files, commit_message=message
    ).oid
    hub.create_tag(repo, tag=tag, revision=commit)
    print(f"published as {commit}; pin it by adding this line to the entry in ferfacenet/hub.py:")
    print(f'        revision="{commit}",')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    card = commands.add_parser("card", help="write README.md of a weights folder")
    card.add_argument("folder", type=Path)
    card.add_argument(
        "evaluations", type=Path, nargs="+", help="evaluation.json of each split, or result.json"
    )
    register = commands.add_parser("register", help="print the entry for ferfacenet/hub.py")
    register.add_argument("folder", type=Path)
    send = commands.add_parser("upload", help="put registered weights on the Hub")
    send.add_argument("name", help="registered name")
    send.add_argument("--tag", default=f"v{ferfacenet.__version__}", help="default: %(default)s")
    send.add_argument("--dry-run", action="store_true", help="only show what would be sent")
    options = parser.parse_args(arguments)
    try:
        if options.command == "card":
            write_card(options.folder.resolve(), options.evaluations)
        elif options.command == "register":
            print(registration(options.folder.resolve()))
        else:
            upload(options.name, options.tag, options.dry_run)
    except (ValueError, RuntimeError, OSError) as error:  # the client's own are of these
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        sys.exit(f"publish.py: {error}{cause}")


if __name__ == "__main__":
    main()
