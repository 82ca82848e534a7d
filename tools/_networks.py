"""The paper's baseline, other classes and other convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import vgg19

from ferfacenet import ImprovedVGG19


def plain_vgg19() -> ImprovedVGG19:
    """torchvision's ``vgg19`` on gray images, the paper's baseline: three fully connected layers
    and no BatchNorm."""
    model = ImprovedVGG19(dropout=0.0)
    plain = vgg19(num_classes=model.num_classes)
    plain.features[0] = nn.Conv2d(1, 64, 3, padding=1)
    model.features, model.avgpool = plain.features, plain.avgpool
    model.classifier, model.num_features = plain.classifier, plain.classifier[0].in_features
    return model


def change_convolutions(model: nn.Module, kind: type[nn.Conv2d]) -> None:
    """Make the 3x3 convolutions of ``model`` ones of a ``kind`` that differs in ``forward`` alone:
    parameters and their names stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and (module.kernel_size, module.padding) == (
            (3, 3),
            (1, 1),
        ):
            module.__class__ = kind


def change_categories(model: ImprovedVGG19, categories: tuple[str, ...]) -> None:
    """Give ``model`` a classifier for ``categories``, which keeps the rows of those it knew."""
    old, known = model.classifier, model.categories or ()
    model.reset_classifier(len(categories))
    model.categories = categories
    if isinstance(old, nn.Linear):
        rows = [row for row, name in enumerate(categories) if name in known]
        same = [known.index(categories[row]) for row in rows]
        with torch.no_grad():
            for new, kept in zip(model.classifier.parameters(), old.parameters(), strict=True):
                new[rows] = kept[same]
