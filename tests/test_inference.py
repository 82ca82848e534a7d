"""predict_proba: what goes in, what comes out, and what it leaves alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ferfacenet.inference import predict_proba
from ferfacenet.model import ImprovedVGG19
from ferfacenet.transforms import preprocess


def lively(model: ImprovedVGG19, seed: int = 0) -> ImprovedVGG19:
    """The model with BatchNorm statistics and a head that make its answers differ."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
                module.weight.uniform_(0.7, 1.5, generator=random)
                module.bias.normal_(0, 0.2, generator=random)
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=random)
                assert module.bias is not None
                module.bias.normal_(0, 0.1, generator=random)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.02, generator=random)
                module.bias.normal_(0, 0.1, generator=random)
    return model


def faces(n: int, seed: int = 0) -> Tensor:
    """Prepared images (n, 1, 48, 48) that are smooth, as faces are."""
    coarse = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic")


@pytest.fixture(scope="module")
def vgg() -> ImprovedVGG19:
    return lively(ImprovedVGG19()).eval()


class Tiny(nn.Module):
    """A small network of a user's own, which notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(16, 7)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        pooled = nn.functional.adaptive_avg_pool2d(self.norm(x), 4)
        logits: Tensor = self.head(pooled.flatten(1) * 5)
        return logits


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def pictures(n: int) -> list[np.ndarray]:
    """Gray 48x48 images, which ``preprocess`` takes as they are, without looking for a face."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (48, 48), dtype=np.uint8) for _ in range(n)]


@pytest.mark.parametrize("tta", ["ten_crop", "flip", None])
def test_rows_are_probabilities(vgg: ImprovedVGG19, tta: Any) -> None:
    p = predict_proba(vgg, faces(5), tta=tta)
    assert p.shape == (5, 7) and p.dtype == torch.float32 and p.device.type == "cpu"
    assert not p.requires_grad
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(5), atol=1e-6, rtol=0)
    assert p.std(0).max() > 0.01, "the test's images are all alike to the model"


def test_ten_crop_is_the_average_over_crops_cut_by_hand(vgg: ImprovedVGG19) -> None:
    x = faces(3)
    vgg.temperature = 1.7
    try:
        got = predict_proba(vgg, x, tta="ten_crop")
    finally:
        vgg.temperature = 1.0
    want = torch.zeros(3, 7)
    with torch.no_grad():
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
            crop = x[:, :, top : top + 44, left : left + 44]
            for view in (crop, crop.flip(3)):
                want += torch.softmax(vgg(view) / 1.7, 1) / 10
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_flip_and_single_view_by_hand(vgg: ImprovedVGG19) -> None:
    x = faces(3)
    with torch.no_grad():
        crop = x[:, :, 2:46, 2:46]
        centre = torch.softmax(vgg(crop), 1)
        flip = (centre + torch.softmax(vgg(crop.flip(3)), 1)) / 2
    torch.testing.assert_close(predict_proba(vgg, x, tta="flip"), flip, atol=1e-5, rtol=0)
    torch.testing.assert_close(predict_proba(vgg, x, tta=None), centre, atol=1e-5, rtol=0)


def test_a_mirrored_image_has_the_same_ten_crop_answer(vgg: ImprovedVGG19) -> None:
    x = faces(2)
    torch.testing.assert_close(
        predict_proba(vgg, x), predict_proba(vgg, x.flip(3)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("tta", ["ten_crop", "flip", None])
def test_a_batch_equals_its_items_one_by_one(vgg: ImprovedVGG19, tta: Any) -> None:
    images = pictures(5)
    together = predict_proba(vgg, images, tta=tta, batch_size=30)
    alone = torch.cat([predict_proba(vgg, image, tta=tta) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_every_kind_of_image_gives_the_same_answer(tiny: Tiny, tmp_path: Path) -> None:
    array = pictures(1)[0]
    path = tmp_path / "face.png"
    Image.fromarray(array).save(path)
    want = predict_proba(tiny, preprocess(path, align=False)[None])
    content = path.read_bytes()
    for image in (
        array, array[..., None], torch.from_numpy(array)[None], Image.fromarray(array),
        str(path), path, content, io.BytesIO(content),
    ):  # fmt: skip
        torch.testing.assert_close(predict_proba(tiny, image), want, atol=1e-5, rtol=0)
    with path.open("rb") as file:
        torch.testing.assert_close(predict_proba(tiny, file), want, atol=1e-5, rtol=0)


def test_four_dimensional_arrays_are_sequences_of_images(tiny: Tiny) -> None:
    array = np.stack(pictures(3))[..., None]
    want = torch.cat([predict_proba(tiny, item) for item in array])
    channels_first = torch.from_numpy(array).permute(0, 3, 1, 2)
    colour = channels_first.float().expand(-1, 3, -1, -1) / 255  # with one channel: prepared
    for many in (array, channels_first, colour, list(array)):
        torch.testing.assert_close(predict_proba(tiny, many), want, atol=1e-5, rtol=0)


def test_prepared_tensors_of_any_float_dtype_are_not_prepared_again(tiny: Tiny) -> None:
    x = faces(4).requires_grad_()
    want = predict_proba(tiny, x)
    torch.testing.assert_close(predict_proba(tiny, x.detach().double()), want, atol=1e-6, rtol=0)
    torch.testing.assert_close(predict_proba(tiny, x.detach().half()), want, atol=1e-2, rtol=0)
    uint8 = torch.randint(256, (2, 1, 48, 48), dtype=torch.uint8)
    by_hand = torch.stack([preprocess(image) for image in uint8])
    torch.testing.assert_close(predict_proba(tiny, uint8), predict_proba(tiny, by_hand))


def test_the_models_own_normalisation_is_used(tiny: Tiny) -> None:
    image = pictures(1)[0]
    want = predict_proba(tiny, preprocess(image, mean=0.2, std=0.7)[None])
    tiny.mean, tiny.std = 0.2, 0.7  # type: ignore[assignment]
    torch.testing.assert_close(predict_proba(tiny, image), want)


@pytest.mark.parametrize(("tta", "views"), [("ten_crop", 10), ("flip", 2), (None, 1)])
def test_a_thousand_images_are_never_all_held(tiny: Tiny, tta: Any, views: int) -> None:
    given = 0
    ahead = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal given, ahead
        for image in pictures(1) * 1000:
            given += 1
            ahead = max(ahead, given - sum(shape[0] for shape in tiny.seen) // views)
            yield image

    assert predict_proba(tiny, source(), tta=tta, batch_size=64).shape == (1000, 7)
    assert max(shape[0] for shape in tiny.seen) <= 64
    assert sum(shape[0] for shape in tiny.seen) == 1000 * views
    assert ahead <= 2 * 64, "the iterable is read far ahead of the model"


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 25, 1000])
def test_batch_size_bounds_the_input_and_does_not_change_the_answer(
    tiny: Tiny, batch_size: int
) -> None:
    x = faces(7)
    want = predict_proba(tiny, x)
    tiny.seen.clear()
    got = predict_proba(tiny, x, batch_size=batch_size)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert max(shape[0] for shape in tiny.seen) <= batch_size


@pytest.mark.parametrize("empty", [[], (), iter([]), torch.empty(0, 1, 48, 48)])
def test_no_images_give_no_rows(tiny: Tiny, empty: Any) -> None:
    p = predict_proba(tiny, empty)
    assert p.shape == (0, 7) and p.dtype == torch.float32 and not p.requires_grad


def test_an_empty_list_to_the_real_network() -> None:
    assert predict_proba(ImprovedVGG19(num_classes=5), []).shape == (0, 5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tta", "tencrop"), ("tta", False), ("batch_size", 0), ("batch_size", -1),
        ("batch_size", 2.5), ("batch_size", True), ("precision", "float16"), ("precision", None),
    ],
)  # fmt: skip
def test_bad_settings_are_named(tiny: Tiny, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        predict_proba(tiny, faces(1), **{setting: value})
    assert not tiny.seen


def test_a_bad_model_or_image_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        predict_proba("fer2013", faces(1))  # type: ignore[arg-type]
    for wrong in (None, 3.5, [None], [[1, 2], [3, 4]]):
        with pytest.raises(TypeError):
            predict_proba(tiny, wrong)  # type: ignore[arg-type]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        predict_proba(tiny, [pictures(1)[0], broken])


class Interrupted(Exception):
    pass


def test_errors_of_the_callers_iterable_arrive_as_they_are(tiny: Tiny) -> None:
    def source() -> Iterator[np.ndarray]:
        yield pictures(1)[0]
        raise Interrupted

    with pytest.raises(Interrupted):
        predict_proba(tiny, source())


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_model_and_modes_are_left_as_they_were(fails: bool, grad: bool) -> None:
    model = lively(ImprovedVGG19()).train()
    model.features[1].eval()
    model.features[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    model.classifier.register_forward_hook(raise_interrupted if fails else print_nothing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [(id(p), p.data_ptr(), p.requires_grad, p.dtype) for p in model.parameters()]
    was = modes(model)
    with torch.set_grad_enabled(grad):
        if fails:
            with pytest.raises(Interrupted):
                predict_proba(model, faces(1), tta=None)
        else:
            predict_proba(model, faces(1), tta=None)
        assert torch.is_grad_enabled() is grad
        assert not torch.is_inference_mode_enabled()
    assert modes(model) == was
    assert parameters == [
        (id(p), p.data_ptr(), p.requires_grad, p.dtype) for p in model.parameters()
    ]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def raise_interrupted(*_: Any) -> None:
    raise Interrupted


def print_nothing(*_: Any) -> None:
    return None


def test_a_model_in_train_mode_answers_as_in_eval_mode(vgg: ImprovedVGG19) -> None:
    x = faces(2)
    want = predict_proba(vgg, x, tta="flip")
    vgg.train()
    try:
        torch.testing.assert_close(predict_proba(vgg, x, tta="flip"), want, atol=1e-5, rtol=0)
    finally:
        vgg.eval()


def test_the_answer_can_be_a_training_target(tiny: Tiny) -> None:
    target = predict_proba(tiny, faces(4))
    logits = tiny(faces(4)[..., 2:46, 2:46])
    nn.functional.cross_entropy(logits, target).backward()
    assert tiny.head.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_in_another_dtype_keeps_it(tiny: Tiny, dtype: torch.dtype) -> None:
    want = predict_proba(tiny, faces(3))
    tiny.to(dtype)
    p = predict_proba(tiny, faces(3))
    assert p.dtype == torch.float32 and tiny.head.weight.dtype == dtype
    torch.testing.assert_close(p, want, atol=0.02, rtol=0)


def test_the_callers_autocast_changes_nothing(tiny: Tiny) -> None:
    want = predict_proba(tiny, faces(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(predict_proba(tiny, faces(3)), want, atol=1e-6, rtol=0)


def test_threads_share_a_model_in_train_mode(tiny: Tiny) -> None:
    want = predict_proba(tiny, faces(20))
    statistics = tiny.norm.running_mean.clone()  # type: ignore[union-attr]
    tiny.train()

    def answer(_: int) -> Tensor:
        return predict_proba(tiny, faces(20), batch_size=20)

    with ThreadPoolExecutor(16) as pool:
        for p in pool.map(answer, range(64)):
            torch.testing.assert_close(p, want, atol=1e-6, rtol=0)
    assert all(modes(tiny))
    assert torch.equal(tiny.norm.running_mean, statistics)  # type: ignore[arg-type]
