"""The model cards of the bundled weights: README.md of their folders and Hub repositories."""

from __future__ import annotations

from _pages import VIEWS, classes, dataset_of, evaluated, percent, read, read_configs, table
from huggingface_hub import EvalResult, ModelCardData

from ferfacenet.hub import repo_id

_CARD = """
# Improved VGG19 for {dataset}

Reads the expression on a face: probabilities of {categories}. The network is VGG19's
convolutions with BatchNorm, dropout and one linear layer, for gray faces of 48x48 pixels.

```python
import ferfacenet

model = ferfacenet.load_pretrained("{repo}")
for face in ferfacenet.predict_faces(model, "photo.jpg"):
    print(face.box, face.label, face.probabilities)
```

The network takes pixels in [0, 1] and divides its logits by its temperature, {temperature}. Only
`config.json` and `model.safetensors` are read; nothing is unpickled.{levels}

## Training

{trained_on}

Data licence: {dataset_license}

## How these weights were chosen

{selected_on}

## Figures

{figures}

## Limits

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

_LEVELS = """
The network brings each view to one mean and standard deviation first, so that neither brightness
nor contrast matters, but for what is clipped; a view of one plain colour is answered by NaN."""


def card(name: str) -> str:
    """The card of registered weights, from their config and what was measured.

    Raises:
        ValueError: the config does not say how they came about, or the figures are of others.
    """
    config, repo = read_configs()[name], repo_id(name)
    for key in ("trained_on", "selected_on", "dataset_license"):
        if not getattr(config, key).strip():
            raise ValueError(f"{name}: {key} in config.json is empty, and the card has to say it")
    dataset = dataset_of(config)
    short = dataset.lower().replace("+", "plus")
    folds = {"folds": read("ckplus-subject/result.json")}
    results, sections = [], []
    for of in evaluated(dataset).get(name, folds).values():
        if of["temperature"] != config.temperature:
            raise ValueError(f"{name}: measured at temperature {of['temperature']}; evaluate again")
        fresh = of.get("accuracy_deduplicated", {})
        rows = []
        for views, share in of["accuracy"].items():
            title = f"Accuracy ({VIEWS[views]})"
            result = EvalResult(
                "image-classification", short, dataset, "accuracy", round(share, 5),
                metric_name=title, dataset_split=of["split"],
            )  # fmt: skip
            results.append(result)
            unseen = percent(fresh[views]) if fresh else ""
            rows.append((VIEWS[views], percent(share), unseen, f"{of['ece'][views]:.3f}"))
        head = ("views", "accuracy, %", "without duplicates, %", "calibration error")
        count = f"{of['split']}, {of['images']:,} images"
        if fresh:
            count += f" ({of['images_deduplicated']:,} that do not also occur in Training)"
        sections.append(f"{count}:\n\n{table(head, *rows)}\n\n{classes(of)}")
    data = ModelCardData(
        library_name="ferfacenet",
        license=config.license,
        pipeline_tag="image-classification",
        tags=["facial-expression-recognition", "pytorch"],
        datasets=[short],
        metrics=["accuracy"],
        model_name=repo.rpartition("/")[2],
        eval_results=results,
    )
    body = _CARD.format(
        dataset=dataset,
        categories=", ".join(config.categories[:-1]) + " and " + config.categories[-1],
        repo=repo,
        temperature=config.temperature,
        levels=_LEVELS if config.levels else "",
        trained_on=config.trained_on,
        selected_on=config.selected_on,
        dataset_license=config.dataset_license,
        license=config.license,
        figures="\n\n".join(sections),
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"
