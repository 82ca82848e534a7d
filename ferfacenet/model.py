"""The paper's network: VGG19's convolutions with BatchNorm, dropout and one linear layer."""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import ferfacenet.threads  # noqa: F401  # a process that has a network may fork

#: FER2013's label order; also the order of the output columns.
FER2013_CATEGORIES = (
    "anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral",
)  # fmt: skip

#: Mean and standard deviation of the FER2013 Training pixels, in [0, 1]
#: (printed by ``python tools/data_facts.py --data fer2013.csv``).
MEAN, STD = 0.5077, 0.2550

#: The standard deviation within one such image; and what that of a view of one plain colour may be
#: by rounding.
DEVIATION, PLAIN = 0.21, 1e-5

#: The buffers that ``config.json`` keeps, not ``model.safetensors``, and what they are at first.
CALIBRATION = {"mean": MEAN, "std": STD, "temperature": 1.0, "levels": 0.0}

#: What ``fast.py`` derives from a model's weights and keeps. ``train`` and ``eval`` drop it, since
#: a fused optimizer changes weights without a trace, but hardly without a call of these.
derived: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

_BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))

Pool = Literal["max", "avg"]


def cut_centre(x: Tensor) -> Tensor:
    """The centre 44x44 of prepared faces (..., 48, 48); views of any other size as they are."""
    height, width = x.shape[-2:]
    # Not "if", of which torch.jit.trace would keep one branch for all sizes.
    edge = 2 * ((height == 48) & (width == 48))
    return x[..., edge : height - edge, edge : width - edge]


class ImprovedVGG19(nn.Module):
    """VGG19 as the paper improves it for 44x44 gray faces (its section II-A).

    Five blocks of (2, 2, 4, 4, 4) times 3x3 convolution, BatchNorm and ReLU with 64, 128,
    256, 512 and 512 channels, each block closed by 2x2 pooling; then average pooling to
    1x1, dropout, and one linear layer in place of VGG19's three. ``features`` is indexed as
    torchvision's ``vgg19_bn().features`` is, so checkpoints of either load into the other;
    those for RGB images serve gray ones with their first convolution summed over the colours:

    >>> trunk = torchvision.models.vgg19_bn(weights="DEFAULT").features.state_dict()
    >>> trunk["0.weight"] = trunk["0.weight"].sum(1, keepdim=True)
    >>> ImprovedVGG19().features.load_state_dict(trunk)
    <All keys matched successfully>

    The public 3-channel VGG19 checkpoints for FER2013 hold the whole model: sum their
    "features.0.weight" and load them with ``model.load_state_dict``; where they were trained
    on pixels in [0, 1] as they are, set ``model.mean, model.std = 0.0, 1.0``.

    Pixels are normalised and logits are divided by the temperature in ``forward``, so that
    ``model(x).softmax(1)`` is calibrated, and traces, exports and replicas are too.

    Args:
        num_classes: number of output classes, at least 1.
        in_channels: channels of the input images; 1 for gray.
        dropout: probability in [0, 1] of zeroing a feature before each linear layer.
        pool: ``"max"`` or ``"avg"``, the 2x2 pooling after each block.
        hidden_features: width of one more fully connected layer (with ReLU and dropout)
            before the last, the paper's text read the other way; None for no such layer.
        width: all channels are multiplied by this and rounded to a multiple of 8; 1 is the paper's.

    Shape:
        (N, in_channels, H, W) float, pixels in [0, 1], H, W >= 32, to logits (N, num_classes). In
        eval mode what ``preprocess`` makes, 48x48, is cut to its centre, on views of whose 44x44
        the network is trained (IV-C): ``model(preprocess(p)[None])`` is the whole job.

    Attributes:
        categories: names of the output classes, empty if the model was not given any;
            ``load_pretrained`` sets it, like the next four.
        mean, std: buffers; the normalisation the weights were trained with. A plain number can be
            assigned, here and to the next two; a state dict without them leaves them as they are.
        temperature: a buffer; what the logits are divided by.
        levels: a buffer; 1: each view is first brought to one mean and standard deviation, so that
            neither brightness nor contrast matters, but for what is clipped, and a view of one
            plain colour is answered by NaN; 0: pixels are taken as they are.

    Raises:
        ValueError: a setting is out of range, or an input is smaller than 32x32.
        TypeError: the input is not of floats.
    """

    categories: tuple[str, ...]
    mean: Tensor
    std: Tensor
    temperature: Tensor
    levels: Tensor

    def __init__(
        self,
        num_classes: int = 7,
        in_channels: int = 1,
        dropout: float = 0.5,
        pool: Pool = "max",
        hidden_features: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if hidden_features is not None and hidden_features < 1:
            raise ValueError(f"hidden_features must be at least 1 or None, got {hidden_features}")
        if not 0 < width <= 16:
            raise ValueError(f"width must be above 0 and at most 16, got {width}")
        if pool not in ("max", "avg"):
            raise ValueError(f"pool must be 'max' or 'avg', got {pool!r}")
        layers: list[nn.Module] = []
        channels = in_channels
        for depth, whole in _BLOCKS:
            wide = max(8, round(whole * width / 8) * 8)
            for _ in range(depth):
                convolution = nn.Conv2d(channels, wide, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(wide), nn.ReLU()]
                channels = wide
            layers.append(nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2))
        self.num_features = channels
        self.hidden_features = hidden_features
        self.width = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        for module in self.features:
            # On the meta device PyTorch imports 900 modules for a normal draw that draws nothing.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for name, number in CALIBRATION.items():
            self.register_buffer(name, torch.tensor(number, dtype=torch.float32))
        self.reset_classifier(num_classes)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CALIBRATION and isinstance(value, (int, float)):
            getattr(self, name).fill_(value)
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in CALIBRATION:  # which public checkpoints lack
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def train(self, mode: bool = True) -> ImprovedVGG19:
        """Set training mode, or with False eval mode, of the model and all its parts."""
        super().train(mode)
        derived.pop(self, None)  # afterwards, or another thread might keep it anew in between
        return self

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one for ``num_classes`` classes, as timm does.

        With 0 classes the classifier goes, and the model returns its embeddings. New
        layers are on the device, in the dtype and in the mode of the model; ``categories``
        becomes FER2013's for 7 classes and empty otherwise, ``temperature`` 1.

        Raises:
            ValueError: ``num_classes`` is negative.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        first = self.features[0].weight
        assert isinstance(first, Tensor)
        width = self.num_features
        layers: list[nn.Module] = []
        if self.hidden_features is not None and num_classes:
            hidden = nn.Linear(width, self.hidden_features)
            layers = [hidden, nn.ReLU(), nn.Dropout(self.dropout.p)]
            width = self.hidden_features
        layers.append(nn.Linear(width, num_classes) if num_classes else nn.Identity())
        for layer in layers:
            if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        # A lone Linear keeps the key names of the public VGG19 FER checkpoints.
        head = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
        self.classifier = head.to(first.device, first.dtype).train(self.training)
        self.num_classes = num_classes
        self.temperature.fill_(1)
        self.categories = FER2013_CATEGORIES if num_classes == 7 else ()

    def forward_features(self, x: Tensor) -> Tensor:
        """Pixels (N, in_channels, H, W) to the last feature map, (N, C, H // 32, W // 32) with C
        of 512 times ``width``."""
        if x.shape[-1] < 32 or x.shape[-2] < 32:
            raise ValueError(
                f"ImprovedVGG19 needs images of at least 32x32 pixels, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"ImprovedVGG19 needs float pixels in [0, 1], got {x.dtype}")
        x = x if self.training else cut_centre(x)
        # In training, NaN of a plain view would reach the whole batch by way of BatchNorm.
        plain = torch.inf if self.training else torch.nan
        features: Tensor = self.features(self.normalise(x, plain))
        return features

    def normalise(self, x: Tensor, plain: float = torch.nan) -> Tensor:
        """Views (N, in_channels, H, W), pixels in [0, 1], as the convolutions see them; with
        ``levels``, ``plain`` is the standard deviation of those of one plain colour, which have
        no expression: NaN makes NaN of them, infinity zeros."""
        colour = x.mean((2, 3), keepdim=True)  # torch.var_mean warns of a batch of none
        variance = (x - colour).square().mean((1, 2, 3), keepdim=True)
        deviation = variance.masked_fill(variance <= PLAIN**2, plain).sqrt()
        # Not "if", of which a trace or export would keep one branch for all.
        levelled = self.levels > 0
        centre = torch.where(levelled, colour.mean(1, keepdim=True), self.mean)
        return (x - centre) / torch.where(levelled, deviation * (self.std / DEVIATION), self.std)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, C, h, w) to logits (N, num_classes), divided by the temperature; with
        ``pre_logits``, to the embedding that the classifier sees, (N, C)."""
        x = self.avgpool(x).flatten(1)
        if pre_logits:
            return x
        logits: Tensor = self.classifier(self.dropout(x)) / self.temperature
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def unwrap(model: nn.Module) -> nn.Module:
    """What is in ``DataParallel``, ``DistributedDataParallel`` or ``AveragedModel``, and the
    ImprovedVGG19 that was given to ``torch.compile``; any other module as it is."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        return unwrap(model.module)
    inner = getattr(model, "_orig_mod", model)
    inner = inner if inner is model else unwrap(inner)
    return inner if isinstance(inner, ImprovedVGG19) else model
