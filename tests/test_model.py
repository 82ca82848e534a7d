"""The network: its layers, other people's weights in it, and it in other people's code."""

from __future__ import annotations

import copy
import doctest
import io
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ferfacenet.model
from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, save_pretrained
from ferfacenet.model import FER2013_CATEGORIES, MEAN, STD

#: The paper's channels, in the order of its 16 convolutions.
WIDTHS = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8


def lively(**settings: object) -> ImprovedVGG19:
    """A network in eval mode whose BatchNorms and classifier are not those of a fresh one."""
    torch.manual_seed(0)
    model = ImprovedVGG19(**settings).eval()  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return model


def sharp(num_classes: int) -> ImprovedVGG19:
    """A lively network whose probabilities show, in the third decimal, that a picture was read
    a little differently; those of random classifiers do not."""
    model = lively(num_classes=num_classes)
    assert isinstance(model.classifier, nn.Linear)
    with torch.no_grad():
        plain = model.forward_features(torch.zeros(1, 1, 44, 44))
        embedding = model.forward_head(plain, pre_logits=True)[0]
        model.classifier.weight.mul_(50)
        model.classifier.bias.copy_(-model.classifier.weight @ embedding)
    return model


@pytest.fixture(scope="module")
def model() -> ImprovedVGG19:
    return lively()


@pytest.fixture(scope="module")
def faces() -> Tensor:
    return torch.randn(3, 1, 44, 44, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits(model: ImprovedVGG19, faces: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(faces)
    assert found.std() > 0.05, "logits this alike would hide a wrong answer"
    return found


# ------------------------------------------------------------------ what the paper asks for


def test_layers_are_the_papers(model: ImprovedVGG19) -> None:
    kinds = [type(layer).__name__ for layer in model.features]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    expected = []
    for depth in (2, 2, 4, 4, 4):
        expected += block * depth + ["MaxPool2d"]
    assert kinds == expected
    convolutions = [layer for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == WIDTHS
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {
        ((3, 3), (1, 1), (1, 1))
    }
    assert isinstance(model.classifier, nn.Linear)
    weights = sum(9 * a * b for a, b in zip([1, *WIDTHS], WIDTHS, strict=False))
    # A bias, and BatchNorm's weight and bias, a channel; then the classifier.
    assert sum(p.numel() for p in model.parameters()) == weights + 3 * sum(WIDTHS) + 512 * 7 + 7


@pytest.mark.parametrize(("height", "width"), [(32, 32), (44, 44), (48, 48), (33, 70), (96, 64)])
def test_shapes(model: ImprovedVGG19, height: int, width: int) -> None:
    x = torch.zeros(2, 1, height, width)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 512, height // 32, width // 32)
        assert model.forward_head(features).shape == (2, 7)
        assert model(x).shape == (2, 7)


def test_no_images_give_no_logits(model: ImprovedVGG19) -> None:
    assert model(torch.zeros(0, 1, 44, 44)).shape == (0, 7)


@pytest.mark.parametrize("size", [(31, 44), (44, 31), (1, 1)])
def test_too_small_an_image_is_refused(model: ImprovedVGG19, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"at least 32x32 .*\(1, 1, {size[0]}, {size[1]}\)"):
        model(torch.zeros(1, 1, *size))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": -1}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"pool": "mean"}, "pool"),
        ({"hidden_features": 0}, "hidden_features"),
        ({"dropout": 1.5}, "dropout"),
        ({"width": 0.0}, "width"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ImprovedVGG19(**settings)  # type: ignore[arg-type]


def test_average_pooling_averages(model: ImprovedVGG19, faces: Tensor, logits: Tensor) -> None:
    other = ImprovedVGG19(pool="avg").eval()
    other.load_state_dict(model.state_dict())  # the same keys: pooling has no weights
    assert [type(m) for m in other.features].count(nn.AvgPool2d) == 5
    x, images = faces, faces
    with torch.no_grad():
        for layer in model.features:
            x = nn.functional.avg_pool2d(x, 2) if isinstance(layer, nn.MaxPool2d) else layer(x)
        assert torch.allclose(other.forward_features(images), x, atol=1e-5)
        assert not torch.allclose(other(images), logits, atol=0.01)


def test_dropout_is_before_the_classifier_and_only_in_training() -> None:
    model = lively(dropout=0.5)
    features = torch.rand(4, 512, 1, 1)
    seen: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.forward_head(features)
    assert torch.equal(seen.pop(), features.flatten(1))
    model.train().forward_head(features)
    share = (seen.pop() == 0).float().mean()
    assert 0.4 < share < 0.6


def test_hidden_layer() -> None:
    model = lively(hidden_features=32, num_classes=5)
    kinds = [type(layer).__name__ for layer in model.classifier.children()]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear"]
    sizes = [m.weight.shape for m in model.classifier.children() if isinstance(m, nn.Linear)]
    assert sizes == [(32, 512), (5, 32)]
    x = torch.zeros(1, 1, 44, 44)
    assert model(x).shape == (1, 5)
    assert torch.equal(model(x), model(x)), "dropout in eval mode"
    model.train()
    features = torch.rand(1, 512, 1, 1)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@pytest.mark.parametrize(
    ("width", "channels"),
    [(0.25, [16, 32, 64, 128, 128]), (0.1, [8, 16, 24, 48, 48]), (1.5, [96, 192, 384, 768, 768])],
)
def test_width_scales_all_channels(width: float, channels: list[int], tmp_path: Path) -> None:
    model = ImprovedVGG19(width=width)
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [
        c for c, depth in zip(channels, (2, 2, 4, 4, 4), strict=True) for _ in range(depth)
    ]
    assert model(torch.zeros(2, 1, 44, 44)).shape == (2, 7)
    assert model.num_features == channels[-1]
    config = save_pretrained(model, tmp_path)
    assert config.model_args["width"] == width
    assert load_pretrained(tmp_path).num_features == channels[-1]
    assert "width" not in save_pretrained(ImprovedVGG19(), tmp_path / "1").model_args


def test_what_a_fresh_model_says_of_itself() -> None:
    model = ImprovedVGG19()
    assert model.categories == FER2013_CATEGORIES
    assert (model.mean, model.std, model.temperature) == (MEAN, STD, 1.0)
    assert ImprovedVGG19(num_classes=3).categories is None
    assert model.training


def test_a_fresh_model_keeps_the_size_of_its_signal() -> None:
    torch.manual_seed(0)
    model = ImprovedVGG19().train()
    with torch.no_grad():
        features = model.forward_features(torch.randn(16, 1, 44, 44))
        logits = model(torch.randn(16, 1, 44, 44))
    assert 0.1 < features.std() < 10
    assert logits.abs().max() < 3, "a fresh network must not be sure of anything"


# ------------------------------------------------------------------------------ other weights


def public_fer_checkpoint(buffers: bool) -> dict[str, Tensor]:
    """The names and shapes of the public 3-channel VGG19 checkpoints for FER2013, and random
    values; those saved by PyTorch before 0.4.1 have no num_batches_tracked."""
    generator = torch.Generator().manual_seed(2)
    state: dict[str, Tensor] = {}
    index, before = 0, 3
    for depth, width in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(depth):
            scale = (2 / (9 * before)) ** 0.5
            weight = torch.randn(width, before, 3, 3, generator=generator) * scale
            state[f"features.{index}.weight"] = weight
            for key in (f"{index}.bias", f"{index + 1}.bias", f"{index + 1}.running_mean"):
                state[f"features.{key}"] = torch.randn(width, generator=generator) * 0.1
            for key in ("weight", "running_var"):
                values = 1 + torch.rand(width, generator=generator)
                state[f"features.{index + 1}.{key}"] = values
            if buffers:
                state[f"features.{index + 1}.num_batches_tracked"] = torch.tensor(7)
            index, before = index + 3, width
        index += 1
    state["classifier.weight"] = torch.randn(7, 512, generator=generator)
    state["classifier.bias"] = torch.randn(7, generator=generator)
    return state


@pytest.mark.parametrize("buffers", [True, False])
def test_public_fer_checkpoints_load(buffers: bool, faces: Tensor) -> None:
    state = public_fer_checkpoint(buffers)
    rgb = ImprovedVGG19(in_channels=3).eval()
    assert str(rgb.load_state_dict(state)) == "<All keys matched successfully>"
    assert torch.equal(rgb.features[49].weight, state["features.49.weight"])
    assert torch.equal(rgb.classifier.weight, state["classifier.weight"])
    gray = ImprovedVGG19().eval()
    summed = state["features.0.weight"].sum(1, keepdim=True)
    gray.load_state_dict({**state, "features.0.weight": summed})
    with torch.no_grad():
        expected = rgb(faces.expand(-1, 3, -1, -1))
        assert torch.allclose(gray(faces), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_torchvision_trunk_is_indexed_alike_and_computes_alike(faces: Tensor) -> None:
    vgg19_bn = pytest.importorskip("torchvision").models.vgg19_bn
    torch.manual_seed(3)
    with torch.device("meta"):  # its 120 million classifier weights are not wanted
        trunk = vgg19_bn(weights=None).features
    trunk.to_empty(device="cpu")
    trunk.load_state_dict(lively(in_channels=3).features.state_dict())
    trunk.eval()
    rgb = lively(in_channels=3)
    ours = rgb.features.state_dict()
    assert {key: value.shape for key, value in trunk.state_dict().items()} == {
        key: value.shape for key, value in ours.items()
    }
    state = trunk.state_dict(prefix="features.")
    assert rgb.load_state_dict(state, strict=False).missing_keys == [
        "classifier.weight",
        "classifier.bias",
    ]
    colour = torch.randn(2, 3, 44, 44)
    with torch.no_grad():
        assert torch.allclose(rgb.forward_features(colour), trunk(colour), atol=1e-5)
        gray = ImprovedVGG19().eval()
        inner = trunk.state_dict()
        inner["0.weight"] = inner["0.weight"].sum(1, keepdim=True)
        gray.features.load_state_dict(inner)
        assert torch.allclose(
            gray.forward_features(faces), trunk(faces.expand(-1, 3, -1, -1)), atol=1e-4
        )


def test_the_lines_in_the_docstring_work(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    build = torchvision.models.vgg19_bn

    def offline(weights: str) -> nn.Module:
        assert torchvision.models.get_model_weights("vgg19_bn")[weights]
        with torch.device("meta"):
            trunk: nn.Module = build(weights=None)
        return trunk.to_empty(device="cpu")

    monkeypatch.setattr(torchvision.models, "vgg19_bn", offline)
    names = {"torchvision": torchvision, "ImprovedVGG19": ImprovedVGG19}
    (test,) = doctest.DocTestFinder(recurse=False).find(
        ImprovedVGG19, "ImprovedVGG19", module=ferfacenet.model, extraglobs=names
    )
    assert len(test.examples) == 3
    output = io.StringIO()
    result = doctest.DocTestRunner().run(test, out=output.write)
    assert result.failed == 0, output.getvalue()


def test_torchvisions_classifier_is_not_taken_for_ours() -> None:
    state = {"classifier.0.weight": torch.zeros(4096, 25088)}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ImprovedVGG19().load_state_dict(state)


# ------------------------------------------------------------------------------------- reuse


def test_embeddings_as_timm_gives_them(model: ImprovedVGG19, faces: Tensor, logits: Tensor) -> None:
    """timm's three ways to the same embedding: pre_logits, reset_classifier(0), pooling."""
    with torch.no_grad():
        features = model.forward_features(faces)
        embedding = model.forward_head(features, pre_logits=True)
        assert embedding.shape == (3, model.num_features) == (3, 512)
        assert torch.equal(embedding, features.mean((2, 3)))
        assert torch.equal(model.forward_head(features), logits)
        headless = copy.deepcopy(model)
        headless.reset_classifier(0)
        assert torch.equal(headless(faces), embedding)
        assert torch.equal(headless.forward_features(faces), features)
    assert (headless.num_classes, headless.categories) == (0, None)
    assert not list(headless.classifier.parameters())
    headless.reset_classifier(4)
    assert headless(faces).shape == (3, 4)


@pytest.mark.parametrize("hidden", [None, 16])
@pytest.mark.parametrize("training", [True, False])
def test_reset_classifier(hidden: int | None, training: bool, faces: Tensor) -> None:
    model = lively(hidden_features=hidden).train(training)
    model.temperature = 2.0
    trunk = copy.deepcopy(model.features.state_dict())
    old = model.classifier
    model.reset_classifier(3)
    assert model.classifier is not old
    assert (model.num_classes, model.categories, model.temperature) == (3, None, 1.0)
    assert all(torch.equal(value, trunk[key]) for key, value in model.features.state_dict().items())
    assert {module.training for module in model.modules()} == {training}
    assert all(p.requires_grad for p in model.classifier.parameters())
    x = faces.repeat(2, 1, 1, 1)
    loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2] * 2))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.classifier.parameters())


def test_reset_classifier_follows_dtype_and_device() -> None:
    model = ImprovedVGG19().to("meta", torch.float16)
    model.reset_classifier(3)
    assert isinstance(model.classifier, nn.Linear)
    assert model.classifier.weight.is_meta
    assert model.classifier.weight.dtype == torch.float16


def test_reset_classifier_refuses_a_negative_number(model: ImprovedVGG19) -> None:
    head = model.classifier
    with pytest.raises(ValueError, match="num_classes must be at least 0, got -1"):
        model.reset_classifier(-1)
    assert model.classifier is head


def test_own_classes_are_saved_and_loaded(tmp_path: Path) -> None:
    model = lively(hidden_features=8)
    model.reset_classifier(3)
    model.categories = ("calm", "tense", "tired")
    x = torch.randn(2, 1, 48, 48)
    save_pretrained(model, tmp_path, dtype=torch.float32)
    loaded = load_pretrained(tmp_path)
    assert loaded.categories == model.categories
    assert torch.equal(predict_proba(loaded, x), predict_proba(model, x))


# ------------------------------------------------------------------- export, compile, copies


def test_state_dict_round_trips(
    model: ImprovedVGG19, faces: Tensor, logits: Tensor, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for assign in (False, True):
        other = ImprovedVGG19().eval()
        other.load_state_dict(state, assign=assign)
        with torch.no_grad():
            assert torch.equal(other(faces), logits)
    with pytest.raises(RuntimeError, match=r"features\.0\.weight"):
        ImprovedVGG19(in_channels=3).load_state_dict(state)
    del state["features.1.running_var"]
    with pytest.raises(RuntimeError, match=r"features\.1\.running_var"):
        ImprovedVGG19().load_state_dict(state)


def same(other: ImprovedVGG19, model: ImprovedVGG19) -> bool:
    names = ("categories", "mean", "std", "temperature", "num_classes", "training")
    return all(getattr(other, name) == getattr(model, name) for name in names)


@pytest.fixture
def tuned(model: ImprovedVGG19) -> ImprovedVGG19:
    """A copy whose attributes are none of the defaults."""
    tuned = copy.deepcopy(model)
    tuned.categories = tuple("abcdefg")
    tuned.mean, tuned.std, tuned.temperature = 0.4, 0.3, 1.7
    return tuned


def test_deepcopy(tuned: ImprovedVGG19, faces: Tensor, logits: Tensor) -> None:
    other = copy.deepcopy(tuned)
    assert same(other, tuned)
    with torch.no_grad():
        assert torch.equal(other(faces), logits)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(tuned(faces), logits), "the copy shares the original's weights"


def test_pickle(tuned: ImprovedVGG19, faces: Tensor, logits: Tensor) -> None:
    other = pickle.loads(pickle.dumps(tuned))
    assert same(other, tuned)
    with torch.no_grad():
        assert torch.equal(other(faces), logits)


def in_worker(model: ImprovedVGG19, faces: np.ndarray) -> tuple[np.ndarray, object]:
    """What a worker process makes of a model that was sent to it."""
    torch.set_num_threads(1)
    x = torch.from_numpy(faces)
    return predict_proba(model, x, precision="float32").numpy(), model.categories


def test_worker_processes(tuned: ImprovedVGG19) -> None:
    """Under spawn, as on Windows and macOS: all a worker has comes out of the pickle."""
    images = torch.randn(2, 1, 48, 48)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, categories = pool.apply(in_worker, (tuned, images.numpy()))
    expected = predict_proba(tuned, images, precision="float32").numpy()
    assert np.allclose(found, expected, atol=1e-5)
    assert categories == tuned.categories


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(
    tuned: ImprovedVGG19, faces: Tensor, logits: Tensor, dtype: torch.dtype
) -> None:
    expected = logits.softmax(1)
    other = tuned.half() if dtype == torch.float16 else tuned.to(dtype)
    assert {p.dtype for p in other.parameters()} == {dtype}
    with torch.no_grad():
        found = other(faces.to(dtype))
    assert found.dtype == dtype
    accuracy = {torch.float16: 0.01, torch.bfloat16: 0.05, torch.float64: 1e-5}[dtype]
    assert torch.allclose(found.float().softmax(1), expected, atol=accuracy)
    rows = predict_proba(other, torch.randn(2, 1, 48, 48), tta=None)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows.sum(1), torch.ones(2))


@pytest.mark.parametrize("device", ["meta", "cuda", "mps"])
def test_other_devices(tuned: ImprovedVGG19, faces: Tensor, logits: Tensor, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "mps" and not torch.backends.mps.is_available():
        pytest.skip("no MPS device")
    other = tuned.to(device)
    assert {t.device.type for t in other.state_dict().values()} == {device}
    with torch.no_grad():
        found = other(faces.to(device))
    assert found.shape == (3, 7)
    assert found.device.type == device
    if device != "meta":
        assert torch.allclose(found.cpu(), logits, atol=0.01)
        rows = predict_proba(other, torch.randn(2, 1, 48, 48))
        assert rows.device.type == "cpu"


def test_channels_last(tuned: ImprovedVGG19, faces: Tensor, logits: Tensor) -> None:
    tuned.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        found = tuned(faces.to(memory_format=torch.channels_last))
    assert torch.allclose(found, logits, atol=1e-4)


def test_torch_export(model: ImprovedVGG19, faces: Tensor, logits: Tensor, tmp_path: Path) -> None:
    """With a dynamic batch, and through a file into another process that has torch only."""
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(model, (faces[:2],), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        for count in (1, 3):
            found = program.module()(faces[:count])
            assert torch.allclose(found, logits[:count], atol=1e-4)
    torch.export.save(program, tmp_path / "program.pt2")
    np.save(tmp_path / "faces.npy", faces.numpy())
    script = (
        "import numpy as np, torch\n"
        "run = torch.export.load('program.pt2').module()\n"
        "np.save('logits.npy', run(torch.from_numpy(np.load('faces.npy'))).detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True)
    assert np.allclose(np.load(tmp_path / "logits.npy"), logits.numpy(), atol=1e-4)


def _cannot_compile() -> str:
    """Why torch.compile cannot build for the CPU here; empty if it can."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "torch.compile needs a C++ compiler"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "torch.compile needs Python's headers"
    return ""


@pytest.mark.skipif(bool(_cannot_compile()), reason=_cannot_compile())
def test_torch_compile(
    model: ImprovedVGG19,
    faces: Tensor,
    logits: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Built by the default backend, once for all batch sizes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    x = faces.clone()
    torch._dynamo.mark_dynamic(x, 0)  # or the second batch size would compile once more
    with torch.no_grad():
        assert torch.allclose(compiled(x), logits, atol=1e-4)
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.allclose(compiled(faces[:2]), logits[:2], atol=1e-4)
    torch.compiler.reset()


def test_training_is_one_graph() -> None:
    """Traced only, not built: the C++ of the backward pass would take a minute."""
    torch.compiler.reset()
    model = lively(dropout=0.0).train()
    expected = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(4, 1, 32, 32)
    compiled(x).square().sum().backward()
    expected(x).square().sum().backward()
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()
