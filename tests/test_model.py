"""The network: its layers, its calibration, other people's weights in it, and it in their code."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import PHOTO, faces, lively
from torch import Tensor, nn

import ferfacenet.model
from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, preprocess
from ferfacenet.model import CALIBRATION, FER2013_CATEGORIES, MEAN, STD

#: The paper's channels, in the order of its 16 convolutions.
CHANNELS = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
SMALL = 0.25


@pytest.fixture(scope="module")
def model() -> ImprovedVGG19:
    """A small network none of whose calibration values is the default."""
    model = lively(ImprovedVGG19(width=SMALL))
    model.mean, model.std, model.temperature, model.levels = 0.4, 0.3, 1.7, 1
    model.categories = tuple("abcdefg")
    return model


@pytest.fixture(scope="module")
def x() -> Tensor:
    return faces(3)[..., 2:46, 2:46].contiguous()


@pytest.fixture(scope="module")
def logits(model: ImprovedVGG19, x: Tensor) -> Tensor:
    """What the model must say of ``x``, by its layers one after another."""
    with torch.no_grad():
        deviation, mean = torch.std_mean(x, (1, 2, 3), correction=0, keepdim=True)
        embedding = model.features((x - mean) / deviation * 0.21 / 0.3).mean((2, 3))
        found: Tensor = model.classifier(embedding) / 1.7
    assert found.std(0).max() > 0.03, "logits this alike would hide a wrong answer"
    return found


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_layers_are_the_papers() -> None:
    model = ImprovedVGG19()
    kinds = [type(layer).__name__ for layer in model.features]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [k for d in (2, 2, 4, 4, 4) for k in [*block * d, "MaxPool2d"]]
    convolutions = [layer for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == CHANNELS
    for c in convolutions:  # drawn as He et al. draw them
        assert c.weight.std().item() == pytest.approx((2 / 9 / c.out_channels) ** 0.5, rel=0.15)
    average = ImprovedVGG19(pool="avg", width=0.1).features
    assert [isinstance(m, nn.AvgPool2d) for m in average] == [k == "MaxPool2d" for k in kinds]
    assert {(c.kernel_size, c.padding) for c in convolutions} == {((3, 3), (1, 1))}
    weights = sum(9 * a * b for a, b in zip([1, *CHANNELS], CHANNELS, strict=False))
    # A bias, and BatchNorm's weight and bias, a channel; then the one linear layer.
    assert sum(p.numel() for p in model.parameters()) == weights + 3 * sum(CHANNELS) + 512 * 7 + 7
    assert model.training and model.categories == FER2013_CATEGORIES
    assert [*CALIBRATION.values()] == [MEAN, STD, 1, 0]
    assert [getattr(model, name) for name in CALIBRATION] == pytest.approx([MEAN, STD, 1, 0])


def test_shapes_and_bad_inputs(model: ImprovedVGG19) -> None:
    features = model.forward_features(torch.zeros(2, 1, 33, 70))
    assert features.shape == (2, model.num_features, 1, 2)
    assert model.forward_head(features).shape == (2, 7)
    assert model(torch.zeros(0, 1, 44, 44)).shape == (0, 7)
    with pytest.raises(ValueError, match="32x32"):
        model(torch.zeros(1, 1, 44, 31))
    with pytest.raises(TypeError, match="uint8"):
        model(torch.zeros(1, 1, 44, 44, dtype=torch.uint8))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_what_preprocess_makes_is_what_the_model_takes() -> None:
    """In eval mode, however it is exported; in training all 48x48 pixels are seen."""
    model, face = load_pretrained("fer2013-small"), preprocess(PHOTO)[None]
    expected = predict_proba(model, face, tta=None, precision="float32")
    for own in (model, torch.jit.trace(model, face), export(model, face.expand(2, -1, -1, -1))):
        assert torch.allclose(own(face).softmax(1), expected, atol=1e-4)
    embedding = model.forward_head(model.forward_features(face), pre_logits=True)
    assert close(embedding, model.forward_features(face[..., 2:46, 2:46]).mean((2, 3)))
    model.dropout.p = 0.0
    whole = model.features(model.normalise(face)).mean((2, 3))
    assert not close(whole, embedding)
    for layer in model.modules():
        layer.training = layer is model  # BatchNorm stays as it is
    assert close(model.forward_features(face).mean((2, 3)), whole)


def test_every_layer_takes_a_full_backward_hook(x: Tensor) -> None:
    """As Grad-CAM and captum use them."""
    model, seen = lively(ImprovedVGG19(width=SMALL, hidden_features=8)), set()
    for name, layer in model.named_modules():
        layer.register_full_backward_hook(lambda *_, name=name: seen.add(name))
    model(x.clone().requires_grad_()).sum().backward()
    assert seen == {name for name, _ in model.named_modules()}


def test_a_bad_setting_is_named() -> None:
    for setting, value in (
        ("num_classes", 0), ("in_channels", 0), ("pool", "mean"), ("hidden_features", 0),
        ("dropout", 1.5), ("width", 0.0), ("width", 17.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=setting):
            ImprovedVGG19(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "channels"), [(0.1, [8, 16, 24, 48, 48]), (1.5, [96, 192, 384, 768, 768])]
)
def test_width_scales_all_channels_in_eights(width: float, channels: list[int]) -> None:
    with torch.device("meta"):
        model = ImprovedVGG19(width=width)
    found = [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)]
    assert found == [c for c, d in zip(channels, (2, 2, 4, 4, 4), strict=True) for _ in range(d)]
    assert model.num_features == channels[-1]


def test_dropout_is_before_each_linear_layer_and_only_in_training() -> None:
    model = ImprovedVGG19(hidden_features=32, num_classes=5, width=SMALL)
    first, last = (m for m in model.classifier.modules() if isinstance(m, nn.Linear))
    zeros: list[Tensor] = []
    for layer in (first, last):
        layer.register_forward_pre_hook(lambda _, x: zeros.append((x[0] == 0).float().mean()))
    for mode in (True, False):
        model.train(mode).forward_head(torch.rand(64, 128, 1, 1))
    assert 0.4 < zeros[0] < 0.6 and zeros[2] == 0
    assert zeros[1] > zeros[3] + 0.1  # ReLU's zeros and dropout's against ReLU's alone


def fill(model: ImprovedVGG19) -> ImprovedVGG19:
    other = ImprovedVGG19(width=SMALL).eval()
    other.load_state_dict(model.state_dict())
    return other


def export(model: ImprovedVGG19, x: Tensor) -> Any:
    """Through a file, for any number of images."""
    batch = {"x": {0: torch.export.Dim("batch", max=512)}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x[:2],), dynamic_shapes=batch), file)
    file.seek(0)
    return torch.export.load(file).module()


#: The ways in which a model becomes something else that must answer as it does.
WAYS: dict[str, Callable[[ImprovedVGG19, Tensor], Callable[[Tensor], Tensor]]] = {
    "itself": lambda model, x: model,
    "pickle": lambda model, x: pickle.loads(pickle.dumps(model)),
    "state_dict": lambda model, x: fill(model),
    "export": export,
    "trace": lambda model, x: torch.jit.trace(model, x[:2]),
    "compile": lambda model, x: torch.compile(model, fullgraph=True, dynamic=True, backend="eager"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_the_same_answer(way: str, model: ImprovedVGG19, x: Tensor, logits: Tensor) -> None:
    other = WAYS[way](model, x)
    assert close(other(x), logits) and close(other(x[:1]), logits[:1])
    assert close(other(0.05 * x), logits) and close(other(0.3 * x + 0.2), logits)
    assert other(torch.cat([x[:1], torch.full_like(x[:1], 0.9)])).isnan().all(1).tolist() == [0, 1]
    if way == "pickle":
        assert isinstance(other, ImprovedVGG19) and other.categories == model.categories


def test_levels_are_of_the_view_and_once_is_enough(model: ImprovedVGG19, x: Tensor) -> None:
    seen = model.normalise(x)
    level = seen * model.std + model.mean
    assert torch.allclose(level.mean((1, 2, 3)), model.mean)
    assert torch.allclose(level.std((1, 2, 3), correction=0), torch.tensor(0.21))
    assert torch.allclose(model.normalise(level), seen, atol=1e-5)
    colour = torch.cat([x[:1], 0.1 * x[1:2], 0.5 * x[2:]], 1)  # whose channels keep their ratios
    before, after = (of.std((2, 3)) for of in (colour, model.normalise(colour)))
    assert torch.allclose(after / after[:, :1], before / before[:, :1])


def test_a_view_of_one_plain_colour_has_no_answer() -> None:
    """Though its channels differ; and contrast counts alike in any colour."""
    model = lively(ImprovedVGG19(in_channels=3, width=SMALL))
    model.levels.fill_(1)
    red = torch.tensor([0.9, 0.1, 0.2]).view(1, 3, 1, 1).expand(-1, -1, 44, 44)
    assert model(red).isnan().all()
    pattern = 0.1 * torch.rand(1, 1, 44, 44, generator=torch.Generator().manual_seed(0))
    tinted, gray = (model.normalise(pattern + of).std((2, 3)) for of in (red / 2, 0.3))
    assert torch.allclose(tinted, gray, rtol=1e-4)


@pytest.mark.parametrize("levels", [0, 1])
def test_a_plain_view_spoils_nothing_beside_it(levels: int, x: Tensor) -> None:
    """Not the others of its batch in training, nor a gradient where levels have no say."""
    model = lively(ImprovedVGG19(width=SMALL)).train(bool(levels))
    model.levels = levels
    x = torch.cat([x, torch.full_like(x[:1], 0.9)]).requires_grad_()
    logits = model(x)
    logits.square().sum().backward()
    assert logits.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_other_dtypes(model: ImprovedVGG19, x: Tensor, logits: Tensor) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = copy.deepcopy(model).to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        assert torch.allclose(found.float().softmax(1), logits.softmax(1), atol=0.02)


def test_a_plain_number_fills_the_buffer() -> None:
    model = ImprovedVGG19(width=0.1)
    buffers = {name: getattr(model, name) for name in CALIBRATION}
    model.mean, model.std, model.temperature, model.levels = 0.25, 0.5, 2, True
    assert [float(model.state_dict()[name]) for name in CALIBRATION] == [0.25, 0.5, 2, 1]
    assert all(getattr(model, name) is buffer for name, buffer in buffers.items())


def test_public_checkpoints_load_and_leave_the_calibration(x: Tensor) -> None:
    """VGG19's for FER2013, of 3 channels; PyTorch before 0.4.1 had no num_batches_tracked."""
    whole = lively(ImprovedVGG19(in_channels=3), seed=2).state_dict()
    state = {k: v for k, v in whole.items() if k not in CALIBRATION and "tracked" not in k}
    given = dict(state)
    rgb, gray = ImprovedVGG19(in_channels=3).eval(), ImprovedVGG19().eval()
    for model in (rgb, gray):
        model.mean, model.std, model.temperature = 0.0, 1.0, 2.0
    assert str(rgb.load_state_dict(given)) == "<All keys matched successfully>"
    assert given.keys() == state.keys(), "the caller's own dict was changed"
    gray.load_state_dict({**state, "features.0.weight": state["features.0.weight"].sum(1, True)})
    assert [float(gray.state_dict()[name]) for name in CALIBRATION] == [0, 1, 2, 0]
    assert close(gray(x), rgb(x.expand(-1, 3, -1, -1)))
    for change in ({"features.1.running_var": None}, {"classifier.0.weight": x}):
        wrong = {key: value for key, value in (state | change).items() if value is not None}
        with pytest.raises(RuntimeError, match=next(iter(change))):
            rgb.load_state_dict(wrong)


def test_torchvisions_trunk_loads_as_the_docstring_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines run, but for the download, and then ours computes as torchvision's does."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):  # its 120 million classifier weights are not wanted
        theirs = torchvision.models.vgg19_bn(weights=None).eval()
    theirs.features.to_empty(device="cpu")
    theirs.features.load_state_dict(lively(ImprovedVGG19(in_channels=3)).features.state_dict())
    monkeypatch.setattr(torchvision.models, "vgg19_bn", lambda weights: theirs)
    names = {"torchvision": torchvision, "ImprovedVGG19": ImprovedVGG19}
    (test,) = doctest.DocTestFinder(recurse=False).find(
        ImprovedVGG19, "ImprovedVGG19", module=ferfacenet.model, extraglobs=names
    )
    result = doctest.DocTestRunner().run(test, clear_globs=False)
    assert (result.failed, result.attempted) == (0, 3)
    gray = ImprovedVGG19().eval()
    gray.features.load_state_dict(test.globs["trunk"])
    x = torch.rand(2, 1, 44, 44)
    expected = theirs.features(((x - MEAN) / STD).expand(-1, 3, -1, -1))
    assert close(gray.forward_features(x), expected)


def test_embeddings_as_timm_gives_them(model: ImprovedVGG19, x: Tensor) -> None:
    """timm's three ways to the same embedding: pre_logits, reset_classifier(0), pooling."""
    features = model.forward_features(x)
    embedding = model.forward_head(features, pre_logits=True)
    assert torch.equal(embedding, features.mean((2, 3)))
    headless = copy.deepcopy(model)
    headless.reset_classifier(0)
    assert (headless.num_classes, headless.categories) == (0, ())
    assert torch.equal(headless(x), embedding)
    headless.reset_classifier(7)
    assert headless(x).shape == (3, 7) and headless.categories == FER2013_CATEGORIES
    with pytest.raises(ValueError, match="num_classes"):
        headless.reset_classifier(-1)


@pytest.mark.parametrize(("hidden", "training"), [(None, True), (16, False)])
def test_reset_classifier(hidden: int | None, training: bool) -> None:
    model = ImprovedVGG19(hidden_features=hidden, width=SMALL).to(torch.float64).train(training)
    model.temperature = 2.0
    model.reset_classifier(3)
    assert (model.num_classes, model.categories, float(model.temperature)) == (3, (), 1)
    assert {module.training for module in model.modules()} == {training}
    logits = model(faces(6).double())
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2] * 2)).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.classifier.parameters())
