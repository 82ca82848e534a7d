"""The fast forward pass: the model's own answers, never old ones, and gone with the model."""

from __future__ import annotations

import copy
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from conftest import faces, lively
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet import ImprovedVGG19, fast
from ferfacenet.fast import Precision, fast_forward, prefers_bfloat16
from ferfacenet.model import derived


def make(width: float = 0.25, seed: int = 0, **settings: Any) -> ImprovedVGG19:
    """A network in eval mode of which neither mean, std nor temperature is the default."""
    model = lively(ImprovedVGG19(width=width, **settings), seed)
    model.mean.fill_(0.4), model.std.fill_(0.3), model.temperature.fill_(0.7)
    return model


@pytest.fixture
def model() -> Any:
    return make()


def views(n: int, size: int = 44) -> Tensor:
    return F.interpolate(faces(n), size=(size, size), mode="bilinear")


def plain(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def fastly(model: nn.Module, x: Tensor, precision: Precision = "float32") -> Tensor:
    forward = fast_forward(model, precision)
    assert forward is not None, "the model is not taken for what it is"
    return forward(x)


def assert_equal(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert found.dtype == torch.float32 and not found.requires_grad
    tolerance *= max(1, expected.abs().sum(1).max())
    torch.testing.assert_close(found, expected, atol=float(tolerance), rtol=0)


@pytest.mark.parametrize(
    ("settings", "sizes", "most"),
    [
        ({"width": 1.0}, (44,), 10),
        ({}, (44, 47), 129),
        ({"pool": "avg"}, (32, 44, 47, 48), 10),
        ({"hidden_features": 32, "num_classes": 3}, (44, 64, 70), 10),
    ],
)
def test_equals_the_model(settings: dict[str, Any], sizes: tuple[int, ...], most: int) -> None:
    model = make(**settings)
    for size in sizes:
        x = views(most, size)
        expected = plain(model, x)
        assert expected.std(0).max() > 0.03, "logits this alike would hide a wrong answer"
        for n in {1, 2, 10, most}:
            assert_equal(fastly(model, x[:n]), expected[:n])
    assert fastly(model, x[:0]).shape == (0, model.num_classes)


def test_the_models_mode_has_no_say() -> None:
    model, x = make(hidden_features=32), torch.cat([views(8), torch.ones(1, 1, 44, 44)])
    model.levels = 1
    assert fastly(model.train(), x).isnan().all(1).tolist() == [False] * 8 + [True]
    model.levels = 0
    expected = plain(model.eval(), views(9))
    assert_equal(fastly(model.train(), views(9)), expected)
    model.features[1].eval()
    assert_equal(fastly(model, views(9)), expected)


def test_decides_as_the_model_does_in_bfloat16_too() -> None:
    model, x = make(1.0), views(24)
    expected = plain(model, x).softmax(1)
    exact, narrow = (fastly(model, x, p).softmax(1) for p in ("float32", "bfloat16"))
    assert torch.equal(exact.argmax(1), expected.argmax(1))
    assert 1e-4 < (narrow - expected).abs().max() < 0.03
    best, second = expected.topk(2).values.T
    clear = best - second > 0.03
    assert clear.any() and torch.equal(narrow.argmax(1)[clear], expected.argmax(1)[clear])


def test_equals_the_model_on_oblong_pictures_in_colour() -> None:
    model, x = make(in_channels=3), torch.rand(4, 3, 44, 60)
    assert_equal(fastly(model, x), plain(model, x))
    model.levels = 1
    assert_equal(fastly(model, 0.3 * x + 0.2), plain(model, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_equals_a_model_of_another_dtype(model: ImprovedVGG19, dtype: torch.dtype) -> None:
    found = fastly(model.to(dtype), views(9))
    assert_equal(found, plain(model.float(), views(9)), max(2e-5, torch.finfo(dtype).eps))


def test_in_whatever_mode_the_caller_is(model: ImprovedVGG19) -> None:
    x = views(9)
    expected = plain(model, x)
    fast._make_winograd.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        inside = fastly(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(fastly(model, x), expected)
    assert_equal(inside, expected)


def test_equals_the_model_on_a_gpu(model: ImprovedVGG19) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x = views(40)
    expected = plain(model, x)
    model.cuda()
    # PyTorch lets a GPU's convolutions round what they multiply to TF32.
    assert_equal(fastly(model, x).cpu(), expected, 0.01)
    assert_equal(fastly(model, x, "bfloat16").cpu(), expected, 0.03)


def test_takes_less_processor_time_than_the_model() -> None:
    """One thread's time, the least of several in turn: other work on the machine hardly counts.
    Of few views it would be the memory's, which the weights are read from, and where the chip
    multiplies fast, that of turning them into another form."""
    model, x, threads = make(1.0), views(128), torch.get_num_threads()
    taken: dict[Callable[..., Any], list[float]] = {plain: [], fastly: []}
    torch.set_num_threads(1)
    try:
        for call in [*taken] * 3:
            start = time.thread_time()
            call(model, x)
            taken[call].append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(taken[fastly]) < min(taken[plain])


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_takes_bfloat16_where_the_chip_is_made_for_it(
    model: ImprovedVGG19, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    devices = [torch.device(kind) for kind in ("cpu", "cuda", "mps")]
    assert [*map(prefers_bfloat16, devices)] == [name != "avx512_bf16", True, False]
    same: Precision = "float32" if name == "avx512_bf16" else "bfloat16"
    for count, taken in ((2, "float32"), (10, same)):  # of few views it would be no faster
        found, wanted = (fastly(model, views(count), p) for p in ("auto", taken))  # type: ignore[arg-type]
        assert torch.equal(found, wanted)


def take_fused_step(model: ImprovedVGG19) -> None:
    """Between two answers in training mode, which is what a validation in between is."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # so that nothing but the step is there to be noticed
    before = fastly(model, views(2))
    F.cross_entropy(model(views(4)), torch.arange(4)).backward()
    torch.optim.SGD(model.parameters(), lr=0.01, fused=True).step()
    assert (fastly(model, views(2)) - before).abs().max() > 1e-3
    model.eval()


def put(index: int, module: nn.Module) -> Callable[[Any], None]:
    return lambda model: model.features.__setitem__(index, module.eval())


CHANGES: dict[str, Callable[[Any], Any]] = {
    "fused step": take_fused_step,
    "batch seen": lambda model: (plain(model.train(), views(4) * 3), model.eval()),
    "in place in data": lambda model: (model.features[3].weight.data.mul_(2), model.eval()),
    "new parameter": lambda model: setattr(model.features[3], "bias", nn.Parameter(torch.ones(16))),
    "new data": lambda model: setattr(model.features[3].bias, "data", torch.ones(16)),
    "loaded": lambda model: model.load_state_dict(make(seed=5).state_dict()),
    "new layer": put(0, nn.Conv2d(1, 16, 3, padding=1)),
    "new head": lambda model: (model.reset_classifier(4), nn.init.normal_(model.classifier.weight)),
    "eps": lambda model: setattr(model.features[1], "eps", 0.5),
    "calibration": lambda model: (model.mean.fill_(0.3), model.temperature.fill_(2)),
    "levels": lambda model: model.levels.fill_(1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_never_gets_its_old_answers(
    model: ImprovedVGG19, change: Callable[[Any], Any]
) -> None:
    before = fastly(model, views(2))
    change(model)
    after = fastly(model, views(2))
    assert_equal(after, plain(model, views(2)))
    assert before.shape != after.shape or (before - after).abs().max() > 1e-3


def test_threads_share_one_copy(model: ImprovedVGG19, monkeypatch: pytest.MonkeyPatch) -> None:
    folds, fold, x, start = [], fast._fold, views(2), threading.Barrier(8)
    monkeypatch.setattr(fast, "_fold", lambda *layer: folds.append(layer) or fold(*layer))

    def answer(_: int) -> Tensor:
        start.wait()
        return fastly(model, x)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(8)))
    assert_equal(answers[0], plain(model, x))
    assert all(torch.equal(found, answers[0]) for found in answers)
    assert len(folds) == 16
    for _ in range(2):
        fastly(model, views(10))
    assert len(folds) == 16 + 4, "many views have a form of their own in the fourth block alone"


def test_goes_when_the_model_goes(model: ImprovedVGG19) -> None:
    twin: Any = copy.deepcopy(model)
    attributes = set(vars(twin))
    # Hooks for gradients do not change the answers, but may well hold the model.
    twin.features[0].register_full_backward_hook(partial(print, twin))
    twin.features[0].weight.register_hook(partial(print, twin))
    fastly(twin, views(2))
    assert set(vars(twin)) == attributes
    gone, kept = weakref.ref(twin), len(derived)
    del twin
    gc.collect()
    assert gone() is None and len(derived) < kept  # other tests' models may go with it


ALTERATIONS: dict[str, Callable[[Any], Any]] = {
    "hook": lambda model: model.features[7].register_forward_hook(print),
    "pre-hook": lambda model: model.classifier.register_forward_pre_hook(print),
    "own forward": lambda model: setattr(model, "forward", print),
    "padding": lambda model: setattr(model.features[0], "padding_mode", "reflect"),
    "no BatchNorm": put(1, nn.Identity()),
    "no statistics": put(1, nn.BatchNorm2d(16, track_running_stats=False)),
    "no bias": put(0, nn.Conv2d(1, 16, 3, padding=1, bias=False)),
    "another class": put(3, type("Other", (nn.Conv2d,), {})(16, 16, 3, padding=1)),
    "another container": lambda model: setattr(
        model, "features", type("Other", (nn.Sequential,), {})(*model.features).eval()
    ),
    "another pooling": lambda model: setattr(model, "avgpool", nn.AdaptiveMaxPool2d(1)),
    "another head": lambda model: setattr(
        model, "classifier", nn.Sequential(nn.Linear(128, 9), nn.Tanh(), nn.Linear(9, 7))
    ),
    "layers in layers": lambda model: setattr(
        model, "features", nn.Sequential(model.features[:7], *model.features[7:])
    ),
    "meta": lambda model: model.to("meta"),
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS)
def test_an_altered_model_speaks_for_itself(
    model: ImprovedVGG19, alter: Callable[[Any], None]
) -> None:
    fastly(model, views(1))
    alter(model)
    assert fast_forward(model, "auto") is None


def test_other_models_speak_for_themselves(model: ImprovedVGG19) -> None:
    subclass = type("Subclass", (ImprovedVGG19,), {})
    with torch.inference_mode():
        unwatchable = make()
    for other in (nn.Sequential(model), subclass(width=0.25).eval(), unwatchable):
        assert fast_forward(other, "auto") is None
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert fast_forward(model, "auto") is None
    assert fast_forward(model, "auto") is not None
