"""The paper's baseline, other classes and convolutions, and BatchNorm over several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
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


class _Gather(torch.autograd.Function):
    """The batches of all processes, one after the other; every process learns from each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        dist.all_reduce(gradient := gradient.contiguous())
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes on CPUs, where nn.SyncBatchNorm cannot run."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        start = dist.get_rank() * len(x)
        return super().forward(_Gather.apply(x.contiguous()))[start : start + len(x)]


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm2d of ``model`` see the batches of all processes, in place."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm2d
