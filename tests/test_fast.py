"""The fast forward pass: equal to the model's own, never stale, and gone when not needed."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fer2013
import pytest
import torch
from test_inference import faces, lively
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet import fast, load_pretrained
from ferfacenet.fast import fast_forward
from ferfacenet.inference import predict_proba
from ferfacenet.model import ImprovedVGG19
from ferfacenet.transforms import normalise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original() -> ImprovedVGG19:
    return lively(ImprovedVGG19()).eval()


@pytest.fixture
def vgg(original: ImprovedVGG19) -> ImprovedVGG19:
    return copy.deepcopy(original)


def plain(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        probabilities: Tensor = torch.softmax(model(x).float(), 1)
    return probabilities


def fastly(model: nn.Module, x: Tensor, precision: fast.Precision = "float32") -> Tensor:
    forward = fast_forward(model, precision)
    assert forward is not None, "the model is not taken for what it is"
    return torch.softmax(forward(x), 1)


# Equal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [44, 48])
@pytest.mark.parametrize("n", [1, 2, 9, 35])
def test_equals_the_model_to_one_in_100000(vgg: ImprovedVGG19, n: int, side: int) -> None:
    x = faces(n)[:, :, :side, :side]
    want = plain(vgg, x)
    torch.testing.assert_close(fastly(vgg, x), want, atol=1e-5, rtol=0)
    assert n == 1 or want.std(0).max() > 0.01, "the images are all alike to the model"


@pytest.mark.parametrize(
    "settings",
    [
        {"pool": "avg"},
        {"hidden_features": 32, "num_classes": 3},
        {"num_classes": 1},
        {"width": 0.25, "pool": "avg"},
    ],
)
def test_equals_every_form_of_the_model(settings: dict[str, Any]) -> None:
    model = lively(ImprovedVGG19(**settings)).train()
    x = faces(9)[:, :, :44, :44]
    got = fastly(model, x)
    assert model.training
    torch.testing.assert_close(got, plain(model.eval(), x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [32, 33, 40, 47, 64, 70])
def test_equals_at_any_size(vgg: ImprovedVGG19, side: int) -> None:
    x = F.interpolate(faces(8), size=(side, side), mode="bilinear")
    torch.testing.assert_close(fastly(vgg, x), plain(vgg, x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_dtype(vgg: ImprovedVGG19, dtype: torch.dtype) -> None:
    x = faces(2)
    vgg.to(dtype)
    got = fastly(vgg, x)
    torch.testing.assert_close(got, plain(vgg.float(), x), atol=1e-5, rtol=0)


def test_a_float64_model_stays_in_float64_unless_told(vgg: ImprovedVGG19) -> None:
    assert fast_forward(vgg.double(), "auto") is None
    x = faces(2)
    want = torch.softmax(vgg(x[:, :, 2:46, 2:46].double()), 1)
    got = predict_proba(vgg, x, tta=None)
    torch.testing.assert_close(got.double(), want.detach(), atol=1e-7, rtol=0)


def test_channels_last_weights(vgg: ImprovedVGG19) -> None:
    x = faces(9)
    want = plain(vgg, x)
    vgg.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fastly(vgg, x), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("outputs", ["all", "even"])
@pytest.mark.parametrize("side", range(2, 14))
def test_winograd_is_as_exact_as_the_direct_sum(side: int, outputs: str) -> None:
    random = torch.Generator().manual_seed(side)
    x = torch.randn(5, 24, side, side, generator=random).relu()
    weight = torch.randn(16, 24, 3, 3, generator=random)
    bias = torch.randn(16, generator=random)
    keep = side if outputs == "all" else side // 2 * 2
    axis = fast._axis(side, keep)
    samples, bias = axis.arrange(weight, bias)
    got = fast._winograd_conv(x.permute(2, 3, 0, 1).contiguous(), samples, bias, axis)
    got = got.permute(2, 3, 0, 1).double()
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
    exact = exact[:, :, :keep, :keep]
    assert got.shape == exact.shape
    assert (got - exact).norm() < 1e-6 * exact.norm()


def test_the_winograd_forms_are_exact_identities() -> None:
    for form, (data, kernel, output) in fast._FORMS.items():
        a, b, c = (torch.tensor(rows, dtype=torch.float64) for rows in (data, kernel, output))
        for tap, place in itertools.product(range(3), range(a.shape[1])):
            x, taps = torch.zeros(a.shape[1]).double(), torch.zeros(3).double()
            x[place], taps[tap] = 1, 1
            padded = F.pad(x, (1, 1)) if form == 1 else x
            want = F.conv1d(padded[None, None], taps[None, None])[0, 0]
            torch.testing.assert_close(c @ ((b @ taps) * (a @ x)), want, atol=1e-15, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_takes_less_processor_time_than_the_model(vgg: ImprovedVGG19, n: int) -> None:
    """One thread's time, the least of several in turn: other work on the machine hardly counts."""
    if not fast._can_prepack(torch.float32):
        pytest.skip("this PyTorch has no prepacked convolution")
    x = faces(n)
    ours, threads = fast_forward(vgg, "float32"), torch.get_num_threads()
    assert ours is not None
    taken: dict[Callable[[Tensor], Any], list[float]] = {partial(plain, vgg): [], ours: []}
    torch.set_num_threads(1)
    try:
        for call in [*taken] * 6:
            start = time.thread_time()
            call(x)
            taken[call].append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    slow, quick = map(min, taken.values())
    assert quick < slow / 1.1


# bfloat16 ------------------------------------------------------------------------------------


def test_bfloat16_is_close(vgg: ImprovedVGG19) -> None:
    x = faces(4)
    got, want = fastly(vgg, x, "bfloat16"), plain(vgg, x)
    assert 0 < (got - want).abs().max() <= 0.03


def test_bfloat16_decides_as_float32_on_public_test(fer2013_csv: Path) -> None:
    model = load_pretrained("fer2013")
    images = fer2013.load(fer2013_csv).split("PublicTest").images[:200]
    x = normalise(torch.tensor(images)[:, None].float() / 255, model.mean, model.std)
    narrow = predict_proba(model, x, tta=None, precision="bfloat16")
    wide = predict_proba(model, x, tta=None, precision="float32")
    assert (narrow - wide).abs().max() <= 0.03
    assert (narrow.argmax(1) == wide.argmax(1)).float().mean() >= 0.995


@pytest.mark.parametrize(
    ("capabilities", "prepacks", "faster"),
    [
        ({"avx2": True, "avx512_f": True}, True, False),
        ({"avx512_bf16": True}, True, False),
        ({"amx_bf16": True}, True, True),
        ({"architecture": "aarch64", "bf16": True}, True, True),
        ({"amx_bf16": True}, False, False),
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_faster(
    vgg: ImprovedVGG19,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, Any],
    prepacks: bool,
    faster: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(fast, "_can_prepack", lambda dtype: prepacks)
    assert fast.prefers_bfloat16(CPU) is faster
    monkeypatch.setattr(fast, "_can_prepack", lambda dtype: prepacks and dtype != torch.bfloat16)
    monkeypatch.setattr(fast, "prefers_bfloat16", lambda device: faster)
    x = faces(1)
    same = "bfloat16" if faster else "float32"
    assert torch.equal(fastly(vgg, x, "auto"), fastly(vgg, x, same))


def test_no_bfloat16_elsewhere() -> None:
    assert not fast.prefers_bfloat16(torch.device("mps"))


# Never stale ---------------------------------------------------------------------------------


def gradients(model: ImprovedVGG19) -> None:
    model.train()
    F.cross_entropy(model(faces(4)), torch.arange(4)).backward()
    model.eval()


def step(make: Callable[..., torch.optim.Optimizer], **settings: Any) -> Callable[..., None]:
    def change(model: ImprovedVGG19) -> None:
        # Momentum and BatchNorm's own statistics are kept out: the step alone must be noticed.
        statistics = {k: v.clone() for k, v in model.named_buffers()}
        gradients(model)
        for name, buffer in model.named_buffers():
            buffer.data.copy_(statistics[name])
        make(model.parameters(), lr=0.01, **settings).step()

    return change


def see_a_batch(model: ImprovedVGG19) -> None:
    model.train()
    with torch.no_grad():
        model(faces(4) * 3)
    model.eval()


def see_a_batch_uncounted(model: ImprovedVGG19) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    fastly(model, faces(2))
    see_a_batch(model)


def swap_data(model: ImprovedVGG19) -> None:
    for p in model.parameters():
        p.data = p.data * 1.1


def scale_data(model: ImprovedVGG19) -> None:
    for p in model.parameters():
        p.data.mul_(1.1)


def scale_one(model: ImprovedVGG19) -> None:
    model.features[40].weight.data.mul_(3)  # type: ignore[union-attr, operator]


def scale_numpy(model: ImprovedVGG19) -> None:
    array = model.features[27].weight.detach().numpy()  # type: ignore[union-attr, operator]
    array *= 2


def one_weight_in_place(model: ImprovedVGG19) -> None:
    with torch.no_grad():
        model.features[0].weight[3, 0, 1, 1] += 2  # type: ignore[union-attr, operator, index]


def load(model: ImprovedVGG19) -> None:
    model.load_state_dict(lively(ImprovedVGG19(), seed=5).state_dict())


def load_assigned(model: ImprovedVGG19) -> None:
    model.load_state_dict(lively(ImprovedVGG19(), seed=5).state_dict(), assign=True)


def new_parameter(model: ImprovedVGG19) -> None:
    layer: Any = model.features[3]
    layer.weight = nn.Parameter(layer.weight.detach() * 1.3)


def new_layer(model: ImprovedVGG19) -> None:
    model.features[0] = nn.Conv2d(1, 64, 3, padding=1)


def new_eps(model: ImprovedVGG19) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3


def new_head(model: ImprovedVGG19) -> None:
    model.reset_classifier(4)
    nn.init.normal_(model.classifier.weight)  # type: ignore[arg-type]


def fewer_digits(model: ImprovedVGG19) -> None:
    model.bfloat16().float()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(step(torch.optim.SGD), id="sgd"),
        pytest.param(step(torch.optim.SGD, foreach=True), id="foreach sgd"),
        pytest.param(step(torch.optim.SGD, fused=True), id="fused sgd"),
        pytest.param(step(torch.optim.AdamW, fused=True), id="fused adamw"),
        see_a_batch, see_a_batch_uncounted, swap_data, scale_data, scale_one, scale_numpy,
        one_weight_in_place, load, load_assigned, new_parameter, new_layer, new_eps, new_head,
        fewer_digits,
    ],
)  # fmt: skip
def test_a_changed_model_is_never_served_from_old_weights(
    vgg: ImprovedVGG19, change: Callable[[ImprovedVGG19], None]
) -> None:
    x = faces(2)[:, :, :44, :44]
    before = fastly(vgg, x)
    change(vgg)
    want, after = plain(vgg, x), fastly(vgg, x)
    torch.testing.assert_close(after, want, atol=2e-5, rtol=0)
    assert before.shape != after.shape or (before - after).abs().max() > 1e-4


def test_data_swapped_there_and_back(vgg: ImprovedVGG19) -> None:
    """As an EMA is shown and taken away again: the first weights come back to their place."""
    x = faces(1)
    own = [p.data for p in vgg.parameters()]
    first = fastly(vgg, x)
    swap_data(vgg)
    assert not torch.allclose(fastly(vgg, x), first, atol=1e-4)
    for p, data in zip(vgg.parameters(), own, strict=True):
        p.data = data
    assert torch.equal(fastly(vgg, x), first)


def test_predict_proba_between_training_steps(vgg: ImprovedVGG19) -> None:
    x = faces(2)
    optimizer = torch.optim.SGD(vgg.parameters(), lr=0.0003)
    answers = []
    for _ in range(3):
        gradients(vgg)
        optimizer.step()
        answers.append(predict_proba(vgg, x, tta=None))
        want = plain(vgg, x[:, :, 2:46, 2:46])
        torch.testing.assert_close(answers[-1], want, atol=2e-5, rtol=0)
    assert not torch.allclose(answers[0], answers[2], atol=1e-3)


# Kept once, kept apart, gone with the model ---------------------------------------------------


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every time that a layer is folded."""
    seen: list[Any] = []
    folded = fast._Layer.folded

    def count(layer: Any) -> Any:
        seen.append(layer)
        return folded(layer)

    monkeypatch.setattr(fast._Layer, "folded", count)
    return seen


def test_weights_are_laid_out_once(vgg: ImprovedVGG19, folds: list[Any]) -> None:
    for _ in range(3):
        predict_proba(vgg, faces(1), tta=None)
    assert len(folds) == 16
    for _ in range(2):
        predict_proba(vgg, faces(1))
    assert len(folds) == 16 + 12, "blocks 1 and 2 for ten views, 3 and 4 in Winograd's form"


def test_equal_layouts_are_held_once(vgg: ImprovedVGG19) -> None:
    for n in range(1, 18):
        fastly(vgg, faces(n)[:, :, :44, :44])
    held = {
        weight.data_ptr() if not weight.is_mkldnn else id(weight): weight.numel() * 4
        for weight, _ in fast._networks[vgg]._layouts.values()
    }
    own = sum(p.numel() * 4 for p in vgg.parameters())
    assert sum(held.values()) < 2.5 * own, "the direct form and Winograd's, each once"


def test_every_number_of_threads_has_its_layout(vgg: ImprovedVGG19) -> None:
    x = faces(2)
    want = plain(vgg, x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for n in (1, 2):
                torch.testing.assert_close(fastly(vgg, x[:n]), want[:n], atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(threads)


def test_sixteen_threads_share_one_layout(vgg: ImprovedVGG19, folds: list[Any]) -> None:
    x = faces(2)
    start = threading.Barrier(16)

    def answer(_: int) -> Tensor:
        start.wait()
        return predict_proba(vgg, x, tta="flip")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(answer, range(16)))
    x = x[..., 2:46, 2:46]
    want = plain(vgg, torch.cat((x, x.flip(3)))).view(2, 2, 7).mean(0)
    for p in answers:
        torch.testing.assert_close(p, want, atol=1e-5, rtol=0)
    assert len(folds) == 16


def test_threads_with_models_of_their_own() -> None:
    models = [lively(ImprovedVGG19(), seed).eval() for seed in range(4)]
    x = faces(1)
    want = [plain(m, x[:, :, 2:46, 2:46]) for m in models]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: predict_proba(models[i % 4], x, tta=None), range(16)))
    for i, p in enumerate(got):
        torch.testing.assert_close(p, want[i % 4], atol=1e-5, rtol=0)


def test_goes_when_the_model_goes(vgg: ImprovedVGG19) -> None:
    model: Any = copy.deepcopy(vgg)
    # Hooks for gradients do not change the answers, but may well hold the model.
    model.features[0].register_full_backward_hook(partial(print, model))
    model.classifier.weight.register_hook(partial(print, model))
    fastly(model, faces(1))
    network, gone = weakref.ref(fast._networks[model]), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and network() is None


def test_the_model_is_copied_and_pickled_as_before(vgg: ImprovedVGG19) -> None:
    keys, attributes = list(vgg.state_dict()), set(vars(vgg))
    want = fastly(vgg, faces(1))
    file = io.BytesIO()
    torch.save(vgg.state_dict(), file)
    assert file.tell() < 1.05 * sum(v.nbytes for v in vgg.state_dict().values())
    for twin in (copy.deepcopy(vgg), pickle.loads(pickle.dumps(vgg))):
        assert torch.equal(fastly(twin, faces(1)), want)
        with torch.no_grad():
            twin.features[0].weight.zero_()
            twin.features[0].bias.zero_()
        assert not torch.equal(fastly(twin, faces(1)), want)
    assert torch.equal(fastly(vgg, faces(1)), want)
    assert list(vgg.state_dict()) == keys and set(vars(vgg)) == attributes


def test_inside_and_outside_of_inference_mode(vgg: ImprovedVGG19) -> None:
    fast._axis.cache_clear()
    x = faces(9)
    with torch.inference_mode():
        inside = fastly(vgg, x)
    outside = fastly(vgg, x)
    assert torch.equal(inside, outside)
    assert not outside.is_inference() and not outside.requires_grad


def test_under_other_default_devices_and_dtypes(vgg: ImprovedVGG19) -> None:
    fast._axis.cache_clear()
    x = faces(9)
    want = plain(vgg, x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = fastly(vgg, x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


# Only where it is right ----------------------------------------------------------------------


class Twice(ImprovedVGG19):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def with_hook(model: ImprovedVGG19) -> nn.Module:
    model.features[7].register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def with_pre_hook(model: ImprovedVGG19) -> nn.Module:
    model.classifier.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return model


def with_own_forward(model: ImprovedVGG19) -> nn.Module:
    forward = model.forward
    model.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    return model


def without_batch_norm(model: ImprovedVGG19) -> nn.Module:
    model.features[1] = nn.Identity()
    return model


def with_other_padding(model: ImprovedVGG19) -> nn.Module:
    model.features[0].padding_mode = "reflect"  # type: ignore[union-attr, assignment]
    model.features[0]._reversed_padding_repeated_twice = [1] * 4  # type: ignore[union-attr, assignment]
    return model


def with_weight_norm(model: ImprovedVGG19) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.features[0])
    return model


def pruned(model: ImprovedVGG19) -> nn.Module:
    from torch.nn.utils import prune

    prune.random_unstructured(model.features[3], "weight", 0.5)
    return model


def wrapped(model: ImprovedVGG19) -> nn.Module:
    return nn.Sequential(model)


def subclassed(model: ImprovedVGG19) -> nn.Module:
    twin = Twice()
    twin.load_state_dict(model.state_dict())
    return twin


def with_other_class(model: ImprovedVGG19) -> nn.Module:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model.features[0].__class__ = Doubled
    return model


def without_statistics(model: ImprovedVGG19) -> nn.Module:
    model.features[1] = nn.BatchNorm2d(64, track_running_stats=False)
    return model


def with_ceil_pooling(model: ImprovedVGG19) -> nn.Module:
    model.features[6].ceil_mode = True  # type: ignore[union-attr, assignment]
    return model


def with_longer_head(model: ImprovedVGG19) -> nn.Module:
    model.classifier = nn.Sequential(nn.Linear(512, 8), nn.Tanh(), nn.Linear(8, 7))
    return model


@pytest.mark.parametrize(
    "alter",
    [
        with_hook, with_pre_hook, with_own_forward, without_batch_norm, with_other_padding,
        with_weight_norm, pruned, wrapped, subclassed, with_other_class, without_statistics,
        with_ceil_pooling, with_longer_head,
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", [False, True])
def test_an_altered_model_speaks_for_itself(
    vgg: ImprovedVGG19, alter: Callable[[ImprovedVGG19], nn.Module], known: bool
) -> None:
    """Also if the model was known, and its weights laid out, before it was altered."""
    x = faces(2)
    if known:
        fastly(vgg, x)
    model = alter(vgg).eval()
    assert fast_forward(model, "float32") is None
    want = plain(model, x[:, :, 2:46, 2:46])
    torch.testing.assert_close(predict_proba(model, x, tta=None), want, atol=1e-6, rtol=0)


def test_a_hook_on_all_modules_is_honoured(vgg: ImprovedVGG19) -> None:
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(type(module))
    )
    try:
        predict_proba(vgg, faces(1), tta=None)
    finally:
        handle.remove()
    assert nn.Conv2d in seen
    assert fast_forward(vgg, "auto") is not None


def test_colour_models_meta_models_and_inference_tensors_are_left_alone() -> None:
    assert fast_forward(ImprovedVGG19(in_channels=3), "auto") is None
    with torch.device("meta"):
        assert fast_forward(ImprovedVGG19(), "auto") is None
    with torch.inference_mode():
        model = ImprovedVGG19()
    assert fast_forward(model, "auto") is None
    assert predict_proba(model, faces(1), tta=None).shape == (1, 7)


def test_a_users_own_module_may_be_unhashable() -> None:
    class Odd(nn.Module):
        __hash__ = None  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :7]

        def modules(self) -> Any:
            return iter([self])

        def parameters(self, recurse: bool = True) -> Any:
            return iter(())

        def eval(self) -> Any:
            return self

    assert predict_proba(Odd(), faces(1)).shape == (1, 7)


# Without PyTorch's private operators ----------------------------------------------------------


def missing(*_: Any) -> Tensor:
    raise AttributeError("no such operator")


def wrong(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize("broken", [missing, wrong])
@pytest.mark.parametrize("n", [1, 9])
def test_without_prepacked_convolution(
    vgg: ImprovedVGG19, monkeypatch: pytest.MonkeyPatch, broken: Any, n: int
) -> None:
    monkeypatch.setattr(fast, "_packed_conv", broken)
    fast._prepacked_agrees.cache_clear()
    try:
        x = faces(n)
        torch.testing.assert_close(fastly(vgg, x), plain(vgg, x), atol=1e-5, rtol=0)
        assert not fast._can_prepack(torch.float32)
    finally:
        fast._prepacked_agrees.cache_clear()


def test_with_onednn_switched_off(vgg: ImprovedVGG19) -> None:
    x = faces(1)
    want = fastly(vgg, x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not fast._can_prepack(torch.float32)
        torch.testing.assert_close(fastly(vgg, x), want, atol=1e-5, rtol=0)


def test_a_gpu_computes_the_same(vgg: ImprovedVGG19) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    x = faces(9)
    want = plain(vgg, x)
    vgg.cuda()
    # PyTorch lets the convolutions of a GPU round what they multiply to TF32.
    torch.testing.assert_close(fastly(vgg, x).cpu(), want, atol=0.01, rtol=0)
    assert (fastly(vgg, x, "bfloat16").cpu() - want).abs().max() <= 0.03
    assert predict_proba(vgg, x).device == CPU
