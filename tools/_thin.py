"""Begins a thin network from a trained one, without any training.

Of each convolution those channels are kept from which all follow best, and they are fitted by
least squares to what they are in the trained network, from what is left of the layer before (after
He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ferfacenet import ImprovedVGG19

FACES = 5000  # that suffice to fit a layer; their maps take 8 GB
POSITIONS = 24  # of a map, at random, or all of a small one
RIDGE = 1e-3  # in units of the inputs' mean square


def choose(values: Tensor, weights: Tensor, count: int) -> list[int]:
    """The ``count`` columns of ``values`` (R, C) that explain most of the variance of them all as
    linear combinations, a column's variance counting as its entry of ``weights`` (C,) says. Each
    is the best beside those before it (Farahat et al., "Efficient Greedy Feature Selection for
    Unsupervised Learning", 2013)."""
    values = (values - values.mean(0)) * weights.sqrt()
    rest = (values.mT @ values).double()
    least = 1e-7 * rest.diagonal().max()
    chosen: list[int] = []
    for _ in range(count):
        explained = rest.square().sum(0) / rest.diagonal().clamp_min(least)
        explained[chosen] = -1
        chosen.append(best := int(explained.argmax()))
        rest -= torch.outer(rest[best], rest[best]) / rest[best, best].clamp_min(least)
    return sorted(chosen)


def fit(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of the linear layer that comes nearest to ``outputs`` (R, C)
    from ``inputs`` (R, D)."""
    inputs = F.pad(inputs, (0, 1), value=1.0)
    products = (inputs.mT @ inputs).double()
    squares = products.diagonal()[:-1]
    squares += RIDGE * squares.mean()
    solution = torch.linalg.solve(products, (inputs.mT @ outputs).double()).float().mT
    return solution[:, :-1], solution[:, -1]


def patches(maps: Tensor, positions: Tensor, size: int) -> Tensor:
    """What a convolution of ``size`` sees of ``maps`` (N, C, H, W) at the ``positions`` (P,), that
    are counted along the rows: (P * N, C * size * size)."""
    padded = F.pad(maps, (size // 2,) * 4)
    corners = [divmod(int(position), maps.shape[3]) for position in positions]
    return torch.cat([padded[:, :, y : y + size, x : x + size].flatten(1) for y, x in corners])


def apply(layer: nn.Module, maps: Tensor) -> Tensor:
    return torch.cat([layer(part) for part in maps.split(256)])


@torch.no_grad()
def thin(trained: ImprovedVGG19, model: ImprovedVGG19, faces: Tensor) -> None:
    """Let ``model``, a thinner network of the same kind, say of ``faces`` (N, 1, S, S) nearly what
    ``trained`` says, as far as its width allows."""
    # Any: PyTorch's own types do not know what a Sequential holds.
    old: Any = trained.features
    new: Any = model.eval().features
    classifiers: Any = trained.classifier, model.classifier
    starts = [i for i, layer in enumerate(old) if isinstance(layer, nn.Conv2d)]
    ends = [*starts[1:], len(old)]
    layers = [fuse_conv_bn_eval(*old[i : i + 2]) for i in starts]
    generator = torch.Generator().manual_seed(0)
    for name in ("mean", "std", "levels"):
        getattr(model, name).copy_(getattr(trained, name))

    def sample(maps: Tensor) -> Tensor:
        return torch.randperm(maps.shape[2] * maps.shape[3], generator=generator)[:POSITIONS]

    # In either network, layer after layer; a plain face must not spoil the others.
    whole = left = trained.normalise(faces, plain=torch.inf)
    for layer, user, start, end in zip(
        layers, [*layers[1:], classifiers[0]], starts, ends, strict=True
    ):
        conv, norm = new[start : start + 2]
        following = old[start + 2 : end]  # ReLU and, where a block ends, pooling
        whole = apply(layer, whole)
        wanted = patches(whole, places := sample(whole), 1)
        whole = apply(following, whole)
        importance = user.weight.square().transpose(0, 1).flatten(1).sum(1)
        kept = choose(patches(whole, sample(whole), 1), importance, conv.out_channels)
        weight, bias = fit(patches(left, places, 3), wanted[:, kept])
        # Filters as long as the trained ones are what the learning rate suits; BatchNorm has the
        # rest of their length.
        lengths = (of.flatten(1).norm(dim=1) for of in (weight, old[start].weight[kept]))
        length = torch.div(*(of.clamp_min(1e-6) for of in lengths))  # a filter may have died
        conv.weight.copy_((weight / length[:, None]).view_as(conv.weight))
        conv.bias.zero_()
        left = apply(conv, left)
        variance, mean = torch.var_mean(left, (0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(length * (variance + norm.eps).sqrt())
        norm.bias.copy_(bias + length * mean)
        left = apply(following, apply(norm, left))
    logits = classifiers[0](trained.forward_head(whole, pre_logits=True))
    weight, bias = fit(model.forward_head(left, pre_logits=True), logits)
    classifiers[1].weight.copy_(weight)
    classifiers[1].bias.copy_(bias)
