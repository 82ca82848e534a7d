"""The networks that tools/train.py trains, and BatchNorm over several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from torch import Tensor, nn
from torchvision.models import vgg19

from ferfacenet import ImprovedVGG19
from ferfacenet.model import FER2013_CATEGORIES, MEAN, STD, Pool


class PlainVGG19(nn.Module):
    """torchvision's ``vgg19`` on gray images: the paper's baseline, three fully connected
    layers and no BatchNorm. (N, 1, H, W) with H, W >= 32 to logits (N, 7)."""

    mean, std, categories = MEAN, STD, FER2013_CATEGORIES
    num_classes = len(FER2013_CATEGORIES)

    def __init__(self) -> None:
        super().__init__()
        self.network = vgg19(num_classes=self.num_classes)
        self.network.features[0] = nn.Conv2d(1, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes; nn.SyncBatchNorm, which runs on GPUs only,
    for every device."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        sums = torch.cat((x.sum((0, 2, 3)), x.square().sum((0, 2, 3))))
        sums = dist_functional.all_reduce(sums)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean, square = (sums / count).chunk(2)
        variance = square - mean.square()
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = self.momentum
            if share is None:  # a plain mean over all batches
                share = 1 / int(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / (count - 1)), share)
        scale = self.weight / (variance + self.eps).sqrt()
        offset = self.bias - mean * scale
        y: Tensor = x * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
        return y


def build(
    arch: str, pool: Pool, hidden: int, batch_norm: bool, dropout: float, width: float = 1.0
) -> ImprovedVGG19 | PlainVGG19:
    """A freshly initialised network by the settings of tools/train.py's ``Config``."""
    if arch == "vgg19":
        return PlainVGG19()
    model = ImprovedVGG19(dropout=dropout, pool=pool, hidden_features=hidden or None, width=width)
    if not batch_norm:
        for index, layer in enumerate(model.features):
            if isinstance(layer, nn.BatchNorm2d):
                model.features[index] = nn.Identity()
    return model


def share_batch_norm(model: nn.Module) -> None:
    """Turn every BatchNorm2d of ``model`` into ``GlobalBatchNorm2d``, in place."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm2d
