"""predict_proba and predict_faces: what goes in, what comes out, and what they leave alone."""

from __future__ import annotations

import copy
import gc
import io
import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from conftest import PHOTO, PORTRAITS, faces, lively
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Subset

from ferfacenet import (
    Face,
    FaceTracker,
    ImprovedVGG19,
    detect_faces,
    load_pretrained,
    predict_faces,
    predict_proba,
    preprocess,
)
from ferfacenet.transforms import BLANK

TTA = ("flip", "ten_crop", None)


class Tiny(nn.Module):
    """A small network of a user's own, which notes what it was given and how it computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(16, 7)
        self.sizes: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        pooled = nn.functional.adaptive_avg_pool2d(self.norm(x), 4)
        logits: Tensor = self.head(pooled.flatten(1) * 5)
        self.dtypes.add(logits.dtype)
        return logits


@pytest.fixture
def tiny() -> Tiny:
    return Tiny().eval()


@pytest.fixture(scope="module")
def vgg() -> ImprovedVGG19:
    model = lively(ImprovedVGG19(width=0.25))
    model.mean, model.std, model.temperature = 0.4, 0.3, 0.6
    return model


def pictures(n: int) -> list[np.ndarray]:
    """Gray 48x48 images, which ``preprocess`` takes as they are, without looking for a face."""
    return [(image * 255).to(torch.uint8).numpy() for image in faces(8, seed=1)[:n, 0]]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{index}.png" for index in range(5)]
    for path, array in zip(found, pictures(5), strict=True):
        Image.fromarray(array).save(path)
    return found


def same(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("tta", TTA)
def test_the_average_over_views_cut_by_hand(vgg: ImprovedVGG19, tta: Any) -> None:
    x = faces(5)
    places = {"ten_crop": [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]}.get(tta, [(2, 2)])
    crops = [x[:, :, top : top + 44, left : left + 44] for top, left in places]
    crops += [crop.flip(3) for crop in crops] if tta else []
    with torch.no_grad():
        expected = sum(vgg(crop).softmax(1) for crop in crops) / len(crops)
    assert expected.std(0).max() > 0.01, "the images are all alike to the model"
    found = predict_proba(vgg, x, tta=tta, precision="float32")
    same(found, expected)
    same(found.sum(1), torch.ones(5), atol=1e-6)
    assert found.dtype == torch.float32 and found.device.type == "cpu"
    assert not found.requires_grad and not found.is_inference() and (found >= 0).all()


def test_flip_is_the_default_and_a_mirrored_image_has_the_same_answer(vgg: ImprovedVGG19) -> None:
    x = faces(2)
    expected = predict_proba(vgg, x, tta="flip")
    assert torch.equal(predict_proba(vgg, x), expected)
    same(predict_proba(vgg, x.flip(3)), expected)


def test_stacked_listed_or_one_by_one(vgg: ImprovedVGG19) -> None:
    crops, read = list(faces(4)), partial(predict_proba, vgg, precision="float32")
    listed = read(crops)
    stacked = torch.stack(crops).requires_grad_()
    assert torch.equal(read(stacked), listed)
    same(read(stacked.detach().double()), listed)
    same(torch.cat([read(crop) for crop in crops]), listed)


def test_any_module_gets_pixels(tiny: Tiny) -> None:
    seen: list[Tensor] = []
    tiny.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    predict_proba(tiny, np.uint8(255) * np.eye(48, dtype=np.uint8), tta=None)
    assert torch.equal(seen[0][0, 0], torch.eye(44))


def test_every_kind_of_image_gives_the_same_answer(tiny: Tiny, paths: list[Path]) -> None:
    array, content = pictures(1)[0], paths[0].read_bytes()
    expected = predict_proba(tiny, preprocess(paths[0])[None])
    for image in (
        array, array[..., None], torch.from_numpy(array)[None], Image.fromarray(array),
        str(paths[0]), paths[0], content, bytearray(content), io.BytesIO(content),
    ):  # fmt: skip
        same(predict_proba(tiny, image), expected)
        same(predict_proba(tiny, [image]), expected)


def test_one_kind_of_tensor_whatever_it_comes_from(vgg: ImprovedVGG19, paths: list[Path]) -> None:
    """All kinds in one list, photos beside crops that were cut before, one by one and stacked."""
    cut = [face.crop for face in detect_faces(PORTRAITS)]
    array, photo = pictures(1)[0], np.array(Image.open(PHOTO))
    many = [
        *cut, paths[1], paths[1].read_bytes(), Image.open(paths[1]), array, torch.from_numpy(array),
        PHOTO, photo, torch.from_numpy(photo).permute(2, 0, 1), photo.astype(np.uint16) * 257,
        photo.astype(np.float32) / 255,
    ]  # fmt: skip
    read = partial(predict_proba, vgg, precision="float32")
    listed = read(many)
    same(torch.cat([read(image) for image in many]), listed)
    same(read(torch.stack(cut)), listed[:2])
    same(listed[2:4], listed[3:5])
    same(listed[8:], listed[7:8].expand(4, -1), atol=1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [("https://example.org/a.jpg", r"a URL: download it first, or .*urlopen"),
     ("data:image/png;base64,iVBO", r"a URL: .*urlopen"),
     ("iVBORw0K/" * 900, r"base64: give base64\.b64decode")],
)  # fmt: skip
def test_a_url_or_base64_is_refused_in_one_short_line(tiny: Tiny, text: str, said: str) -> None:
    for images in (text, [text]):
        with pytest.raises(TypeError, match=f"an image must be a path, not {said}") as caught:
            predict_proba(tiny, images)
        assert text[-9:] not in str(caught.value) and len(str(caught.value)) < 130
        assert predict_proba(tiny, images, errors="coerce").isnan().all()


def test_a_picture_without_a_face_is_refused_or_a_row_of_nan(tiny: Tiny, tmp_path: Path) -> None:
    wall = tmp_path / "wall.png"
    Image.new("RGB", (200, 160), (200, 180, 160)).save(wall)
    with pytest.raises(ValueError, match=r"^images\[1\]: .*wall\.png: no face found; align=False"):
        predict_proba(tiny, [PHOTO, wall])
    found = predict_proba(tiny, [PHOTO, wall], errors="coerce")
    assert found.isnan().any(1).tolist() == [False, True]


@pytest.fixture(scope="module")
def levelled(vgg: ImprovedVGG19) -> ImprovedVGG19:
    model = copy.deepcopy(vgg)
    model.levels = 1
    return model


def test_one_plain_colour_has_no_expression(vgg: ImprovedVGG19, levelled: ImprovedVGG19) -> None:
    """FER2013 has twelve black images, eight of them labelled anger."""
    x, black = faces(3), np.zeros((48, 48), np.uint8)
    edged = x[1].clone()
    edged[:, 4:44, 4:44] = 0.5  # of which some views are plain, and which levels would make NaN
    for model in (vgg, levelled):
        expected = predict_proba(model, x)
        for blank in (black, np.full((90, 70, 3), 7, np.uint8), torch.zeros(1, 48, 48), edged):
            images = [x[0], blank, x[2]]
            with pytest.raises(ValueError, match=r"^images\[1\]: .*(alike|no face)"):
                predict_proba(model, iter(images))
            found = predict_proba(model, images, errors="coerce")
            assert found[1].isnan().all()
            same(found[[0, 2]], expected[[0, 2]])
    with pytest.raises(ValueError, match=r"^images\[1\]: .*alike"):
        predict_proba(vgg, torch.stack([x[0], edged]))
    edged[:] = 0.5
    edged[0, 4, 43] += 1.01 * BLANK  # the least that is answered
    assert predict_proba(levelled, edged[None], tta="ten_crop").isfinite().all()


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_with_levels_light_has_no_say(
    vgg: ImprovedVGG19, levelled: ImprovedVGG19, precision: Any, error: float
) -> None:
    x, read = faces(5), partial(predict_proba, precision=precision, align=False)
    hooked = copy.deepcopy(levelled)
    hooked.classifier.register_forward_hook(lambda *_: None)
    for bright in (x, list(x.numpy()[:, 0])):
        dark: Any = 0.3 * x + 0.2 if bright is x else [0.3 * one + 0.2 for one in bright]
        assert (read(vgg, dark) - read(vgg, bright)).abs().max() > 0.1
        for model in (levelled, hooked):
            same(read(model, dark), read(model, bright), error)


def test_predict_faces_reads_every_face(vgg: ImprovedVGG19) -> None:
    found, plain = predict_faces(vgg, PORTRAITS, tta="ten_crop"), detect_faces(PORTRAITS)
    rows = predict_proba(vgg, torch.stack([face.crop for face in plain]), tta="ten_crop")
    assert len(found) == 2
    for face, bare, row in zip(found, plain, rows, strict=True):
        assert (face.box, face.score) == (bare.box, bare.score)
        assert face.probabilities is not None
        assert list(face.probabilities) == list(vgg.categories)
        assert list(face.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-6)
        assert face.label == vgg.categories[int(row.argmax())]
        assert face.confidence == face.probabilities[face.label]
    assert len(predict_faces(vgg, PORTRAITS, max_faces=1)) == 1
    assert predict_faces(vgg, PORTRAITS, min_size=200) == predict_faces(vgg, np.zeros((9, 9))) == []
    with pytest.raises(ValueError, match="bytes"):
        predict_faces(vgg, b"no picture")


class Gone:
    """A download that fails, by an OSError that is made from more than a message."""

    def read(self, size: int = -1) -> bytes:
        raise HTTPError("https://example.org", 404, "gone", Message(), None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One face, two and none, in several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    made = [folder / f"{index:02}.png" for index in range(20)]
    for index, path in enumerate(made):
        if index % 5 == 3:
            Image.new("RGB", (90 + index, 70), "teal").save(path)
            continue
        with Image.open((PHOTO, PORTRAITS)[index % 2]) as photo:
            photo.resize((220 + 20 * (index % 4), 190)).save(path)
    return made


@pytest.fixture(scope="module")
def expected(vgg: ImprovedVGG19, photos: list[Path]) -> list[list[Face]]:
    """What is read in each of ``photos`` alone."""
    found = [predict_faces(vgg, photo, precision="float32") for photo in photos]
    assert {len(some) for some in found} == {0, 1, 2}
    return found


def alike(found: Any, expected: Any) -> None:
    """Whether the same faces of as many photos are read the same."""
    for some, others in zip(found, expected, strict=True):
        for face, other in zip(some, others, strict=True):
            assert face.label == other.label and face.box == pytest.approx(other.box, abs=0.1)
            assert face.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_many_photos_are_read_as_one_by_one(
    vgg: ImprovedVGG19, photos: list[Path], expected: list[list[Face]]
) -> None:
    read = partial(predict_faces, vgg, precision="float32")
    alike(read(photos), expected)
    alike(read(iter(photos[:1])), expected[:1])
    alike(read(photos, max_faces=1), [found[:1] for found in expected])
    for errors in ("raise", "coerce"):
        assert list(predict_faces(vgg, [], errors=errors)) == []  # type: ignore[call-overload]


def test_all_that_is_many_to_predict_proba_is_many_photos(
    vgg: ImprovedVGG19, photos: list[Path], expected: list[list[Face]]
) -> None:
    read = partial(predict_faces, vgg, precision="float32")
    two = photos[:5:4]  # of one size
    arrays = np.stack([np.asarray(Image.open(path)) for path in two])
    for many in (
        np.array(list(map(str, two))), Column(two), Subset(photos, [0, 4]), arrays,
        torch.from_numpy(arrays).permute(0, 3, 1, 2), [path.open("rb") for path in two],
    ):  # fmt: skip
        alike(read(many), expected[:5:4])


def test_many_photos_are_read_a_few_ahead_and_no_further(
    vgg: ImprovedVGG19, photos: list[Path], expected: list[list[Face]]
) -> None:
    given = 0

    def source() -> Iterator[Path]:
        nonlocal given
        while True:
            given += 1
            yield photos[(given - 1) % 20]

    before = threading.active_count()
    found = predict_faces(vgg, source(), precision="float32")
    assert given == 0 and threading.active_count() == before
    alike([next(found)], expected[:1])
    assert given <= 64
    alike([next(found) for _ in range(9)], expected[1:10])
    assert given <= 10 + 9 * 8 and threading.active_count() > before
    found.close()
    assert threading.active_count() == before


#: What cannot be used, by what error, and what that names.
BAD: list[tuple[Any, type[Exception], str]] = [
    (b"no picture", ValueError, "image of 10 bytes"),
    ("absent.png", FileNotFoundError, "absent.png"),
    (None, TypeError, "NoneType"),
    (Gone(), OSError, "404"),
]


@pytest.mark.parametrize(("place", "index"), [(0, 0), (3, 1), (8, 2), (9, 3)])
def test_an_error_comes_after_the_photos_before_it(
    vgg: ImprovedVGG19, photos: list[Path], expected: list[list[Face]],
    place: int, index: int,
) -> None:  # fmt: skip
    bad, kind, named = BAD[index]
    images: list[Any] = [*photos[:place], bad, *photos[place:10]]
    read = partial(predict_faces, vgg, precision="float32")
    found, before = read(iter(images)), list[Any]()
    with pytest.raises(kind, match=rf"^images\[{place}\]: .*{named}"):
        before.extend(found)  # which keeps what came before the error
    alike(before, expected[:place])
    some = list(read(images, errors="coerce"))
    assert some.pop(place) is None
    alike(some, expected[:10])
    with pytest.raises(kind, match=rf"^(?!images).*{named}"):
        read(bad)
    assert read(bad, errors="coerce") is None


def test_images_that_cannot_be_read_are_let_go_at_once(vgg: ImprovedVGG19) -> None:
    """An error holds what its functions had, and with decoded pictures that is much to wait for
    Python's collector."""
    gc.disable()
    try:
        for read in (predict_proba, lambda *given, **more: list(predict_faces(*given, **more))):
            bad = io.BytesIO(b"no picture")
            held = weakref.ref(bad)
            read(vgg, [bad], errors="coerce")  # type: ignore[operator]
            del bad
            assert held() is None
    finally:
        gc.enable()


def test_what_the_caller_does_between_two_photos_has_no_say(
    vgg: ImprovedVGG19, photos: list[Path], expected: list[list[Face]]
) -> None:
    found, read = predict_faces(vgg, photos[:3] * 9, precision="float32"), []
    for mode in (torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        with mode:
            read += [next(found) for _ in range(9)]
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert torch.empty(0).device.type == "cpu"
    alike(read, expected[:3] * 9)


def test_a_face_as_plain_data(vgg: ImprovedVGG19) -> None:
    for found in predict_faces(vgg, [PORTRAITS]):
        rows = json.loads(json.dumps([face.to_dict() for face in found]))
        assert [row["label"] for row in rows] == [face.label for face in found]
        assert [*rows[0]] == ["box", "score", "label", "confidence", "probabilities"]


def test_predict_faces_of_a_users_own_module(tiny: Tiny) -> None:
    for nameless in (tiny.train(), ImprovedVGG19(3, width=0.1)):
        (face,) = predict_faces(nameless, PHOTO)
        assert list(face.probabilities) == list("0123456")[: len(face.probabilities)]
    assert tiny.training


def test_the_bundled_network_reads_the_portraits() -> None:
    faces = predict_faces(load_pretrained(), PORTRAITS)
    assert [face.label for face in faces] == ["neutral", "happiness"]


def test_a_wrapped_model_keeps_its_names(vgg: ImprovedVGG19) -> None:
    expected = predict_faces(vgg, PHOTO)[0].probabilities
    assert expected is not None and list(expected) == list(vgg.categories)
    parallel, average = nn.DataParallel(vgg), AveragedModel(vgg)
    for wrapped in (
        parallel, average, torch.compile(vgg), nn.DataParallel(average), torch.compile(parallel),
    ):  # fmt: skip
        assert predict_faces(wrapped, PHOTO)[0].probabilities == expected  # type: ignore[arg-type]
        assert FaceTracker(wrapped).update(PHOTO, 0)[0].raw == expected  # type: ignore[arg-type]


def test_what_has_too_few_names_or_no_values_is_refused_with_a_remedy(vgg: ImprovedVGG19) -> None:
    changed, exported = copy.deepcopy(vgg), copy.deepcopy(vgg)
    changed.classifier = nn.Linear(changed.num_features, 3)
    program = torch.export.export(exported, (faces(2),)).module()
    for model, words in (
        (changed, r"categories is .* 3 outputs"),
        (copy.deepcopy(vgg).to("meta"), "'meta'.*load_pretrained"), (program, "exported"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            predict_faces(model, PHOTO)


class Column(list[Path]):
    """Like a pandas Series: with dimensions, and its items are not found by position."""

    ndim = 1

    def __getitem__(self, index: Any) -> Any:
        raise KeyError(index)


def test_every_kind_of_many_gives_the_same_answer(tiny: Tiny, paths: list[Path]) -> None:
    expected = torch.cat([predict_proba(tiny, path) for path in paths])
    arrays = np.stack(pictures(5))[..., None]
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    pandas = pytest.importorskip("pandas", reason="ray brings it")
    for many in (
        paths, iter(paths), np.array(list(map(str, paths))), pandas.DataFrame({"a": paths})["a"],
        pandas.Series(map(str, paths), index=range(7, 12)),
        np.array(paths, dtype=object), Column(paths), Subset(paths, range(5)), dict.fromkeys(paths),
        arrays, tensors, tensors / 255, tensors.expand(-1, 3, -1, -1), list(arrays),
    ):  # fmt: skip
        same(predict_proba(tiny, many, batch_size=4), expected)


@pytest.mark.parametrize("empty", [[], (), iter([]), np.array([], str), torch.empty(0, 1, 48, 48)])
def test_no_images_give_no_rows(tiny: Tiny, vgg: ImprovedVGG19, empty: Any) -> None:
    for model in (tiny, vgg):
        found = predict_proba(model, empty)
        assert found.shape == (0, 7) and found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize(("tta", "views"), [("ten_crop", 10), ("flip", 2), (None, 1)])
def test_a_thousand_images_are_never_all_held(tiny: Tiny, tta: Any, views: int) -> None:
    given = ahead = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal given, ahead
        for image in pictures(1) * 1000:
            given += 1
            ahead = max(ahead, given - sum(tiny.sizes) // views)
            yield image

    assert predict_proba(tiny, source(), tta=tta, batch_size=64).shape == (1000, 7)
    assert max(tiny.sizes) <= 64 and sum(tiny.sizes) == 1000 * views
    assert ahead <= 2 * 64, "the iterable is read far ahead of the model"


def test_batch_size_bounds_the_input_and_leaves_the_answer(tiny: Tiny) -> None:
    expected = predict_proba(tiny, faces(7), tta="ten_crop")
    for batch_size in (1, 10, 25):
        tiny.sizes.clear()
        same(predict_proba(tiny, faces(7), tta="ten_crop", batch_size=batch_size), expected)
        assert max(tiny.sizes) <= batch_size


def test_bad_settings_are_named_before_an_image_is_asked_for(tiny: Tiny) -> None:
    both: dict[str, Any] = {"tta": "tencrop", "precision": "float16", "errors": "ignore"}
    mine: dict[str, Any] = {"batch_size": 0, "align": "maybe"}
    theirs: dict[str, Any] = {"min_score": 2, "max_faces": 0}
    for read, settings in ((predict_proba, both | mine), (predict_faces, both | theirs)):
        for setting, value in settings.items():
            for images in (PHOTO, iter([PHOTO])):
                with pytest.raises(ValueError, match=f"^{setting}"):
                    read(tiny, images, **{setting: value})  # type: ignore[operator]
    for batch_size in (2.5, True):
        with pytest.raises(ValueError, match="^batch_size"):
            predict_proba(tiny, PHOTO, batch_size=batch_size)  # type: ignore[arg-type]
    assert not tiny.sizes


def test_a_bad_model_is_named(tiny: Tiny) -> None:
    with pytest.raises(TypeError, match="got str"):
        predict_proba("fer2013", faces(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got str"):
        predict_faces("fer2013", PORTRAITS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4-D"):
        predict_proba(nn.Identity(), faces(1))


@pytest.mark.parametrize(
    ("bad", "kind", "named"),
    [
        *BAD,
        (np.full((48, 48), 7.0), ValueError, "7"),
        (torch.full((1, 1, 48, 48), 255.0)[0], ValueError, "255"),
        ([1, 2], TypeError, "list"),
    ],
)
def test_an_error_names_its_position_or_is_a_row_of_nan(
    tiny: Tiny, bad: Any, kind: type[Exception], named: str
) -> None:
    images = pictures(5)
    expected = predict_proba(tiny, images)
    images[3] = bad
    with pytest.raises(kind, match=rf"^images\[3\]: .*{named}"):
        predict_proba(tiny, (image for image in images), batch_size=2)
    for batch_size in (2, 128):
        found = predict_proba(tiny, images, errors="coerce", batch_size=batch_size)
        assert found.isnan().all(1).nonzero().tolist() == [[3]]
        same(found[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])
    if not isinstance(bad, list):  # which is itself several images
        with pytest.raises(kind, match=rf"^(?!images\[).*{named}"):
            predict_proba(tiny, bad)
        assert predict_proba(tiny, bad, errors="coerce").isnan().all()


def test_a_row_of_nan_from_the_real_network(vgg: ImprovedVGG19) -> None:
    x = faces(4)
    expected = predict_proba(vgg, x)
    x[1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=r"^images\[1\]: .*\[0, 1\]"):
        predict_proba(vgg, x)
    found = predict_proba(vgg, x, errors="coerce")
    assert found[1].isnan().all()
    same(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_an_error_of_the_callers_own_iterable_comes_after_what_was_before_it(tiny: Tiny) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from pictures(5)
        raise ZeroDivisionError("mine")

    before: list[Any] = []
    with pytest.raises(ZeroDivisionError, match="^mine$"):
        predict_proba(tiny, source(), errors="coerce", batch_size=4)
    with pytest.raises(ZeroDivisionError, match="^mine$"):
        before.extend(predict_faces(tiny, source(), errors="coerce"))
    assert len(before) == 5


@pytest.mark.parametrize(("fails", "grad"), [(False, True), (True, False)])
def test_model_and_modes_are_left_as_they_were(fails: bool, grad: bool) -> None:
    model = lively(ImprovedVGG19(width=0.1)).train()
    model.features[1].eval()
    model.classifier.weight.requires_grad_(False)
    if fails:
        model.classifier.register_forward_hook(lambda *_: 1 // 0)

    def modes() -> list[object]:
        parameters = [(id(p), p.requires_grad, p.dtype, p.grad) for p in model.parameters()]
        return [parameters, [module.training for module in model.modules()]]

    before, values = modes(), copy.deepcopy(model.state_dict())
    with torch.set_grad_enabled(grad):
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            predict_proba(model, faces(1))
        assert torch.is_grad_enabled() is grad
    assert modes() == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_in_another_dtype_keeps_it(tiny: Tiny, dtype: torch.dtype) -> None:
    expected = predict_proba(tiny, faces(3))
    tiny.to(dtype)
    found = predict_proba(tiny, faces(3))
    assert found.dtype == torch.float32 and tiny.head.weight.dtype == dtype
    same(found, expected, atol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_decides_and_not_the_callers_autocast(tiny: Tiny, precision: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "float32"):
        predict_proba(tiny, faces(2), precision=precision)
    assert tiny.dtypes == {getattr(torch, precision)}


def test_neither_the_default_device_nor_dtype_has_a_say(vgg: ImprovedVGG19) -> None:
    images = [*pictures(2), b"no picture"]
    expected = predict_proba(vgg, images, errors="coerce")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = predict_proba(vgg, images, errors="coerce")
            assert predict_proba(vgg, []).shape == (0, 7)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, equal_nan=True)
