"""Weights in a folder: written, read again, and refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import PEAK, assert_whole, full_disk, run
from safetensors import safe_open
from torch import Tensor, distributed, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from ferfacenet import ImprovedVGG19, WeightsError, load_pretrained, save_pretrained
from ferfacenet.model import CALIBRATION, FER2013_CATEGORIES, unwrap
from ferfacenet.weights import CONFIG_FILE, WEIGHTS_FILE, WeightsConfig

METRICS = {"PublicTest flip accuracy": 0.7}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small weights."""
    folder = tmp_path_factory.mktemp("saved")
    model = ImprovedVGG19(width=0.125)
    model.temperature.fill_(1.25)
    save_pretrained(model, folder, metrics=METRICS, trained_on="noise")
    return folder


@pytest.fixture
def whole(saved: Path) -> dict[str, Tensor]:
    return load_pretrained(saved).state_dict()


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of ``saved`` to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json, or of model_args in it; a value of Ellipsis removes the key."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    for key, value in changes.items():
        table = config if key in config or key.startswith("new") else config["model_args"]
        table[key] = value
        if value is ...:
            del table[key]
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def set_weights(folder: Path, data: bytes) -> None:
    """Replace the weights by bytes that the config vouches for."""
    (folder / WEIGHTS_FILE).write_bytes(data)
    edit_config(folder, weights_sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saved_model_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = ImprovedVGG19(5, in_channels=3, dropout=0.25, pool="avg", hidden_features=16)
    model.categories = ("a", "b", "c", "d", "e")
    model.mean, model.std, model.temperature = 0.4, 0.2, 1.5  # type: ignore[assignment]
    model.levels = 1  # type: ignore[assignment]
    model.features[1].running_var.fill_(1e-9)  # would vanish in float16
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = save_pretrained(model, tmp_path / "new" / "folder", dtype=dtype, metrics=METRICS)
    loaded = load_pretrained(tmp_path / "new" / "folder")
    assert model.training
    assert not loaded.training
    for key, value in loaded.state_dict().items():
        assert torch.equal(before[key], model.state_dict()[key])
        stored = before[key].to(dtype) if value.ndim > 1 else before[key]
        assert value.dtype == before[key].dtype
        assert torch.equal(value, stored.to(value.dtype)), key
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.categories == model.categories
    assert repr(loaded) == repr(model)  # the same layers, dropout and pooling included
    assert (config.mean, config.std, config.temperature, config.levels) == (0.4, 0.2, 1.5, 1)
    assert config.metrics == METRICS
    assert "width" not in config.model_args
    assert WeightsConfig.from_json(config.to_json()) == config


def test_what_is_written(saved: Path, whole: dict[str, Tensor]) -> None:
    """As the safetensors package, transformers and older readers of these files expect it."""
    tensors = safetensors.torch.load_file(saved / WEIGHTS_FILE)
    assert tensors.keys() == whole.keys() - set(CALIBRATION)
    assert all(torch.equal(tensors[key].to(whole[key].dtype), whole[key]) for key in tensors)
    with safe_open(saved / WEIGHTS_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((saved / CONFIG_FILE).read_text())
    assert [config[name] for name in CALIBRATION] == [0.5077, 0.255, 1.25, 0]
    assert (config["license"], config["trained_on"], config["selected_on"]) == ("mit", "noise", "")
    assert config["model_args"]["width"] == 0.125  # present only where it is not 1
    assert (saved / WEIGHTS_FILE).stat().st_size < 2.2 * sum(t.numel() for t in tensors.values())


def test_every_way_to_name_a_local_copy(
    folder: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_whole(load_pretrained(folder), whole)
    assert_whole(load_pretrained(str(folder)), whole)
    assert_whole(load_pretrained(folder / WEIGHTS_FILE), whole)
    (folder / WEIGHTS_FILE).rename(folder / "best@10.safetensors")
    monkeypatch.chdir(folder)
    assert_whole(load_pretrained("best@10.safetensors"), whole)
    with pytest.raises(WeightsError, match=f"{WEIGHTS_FILE}: .*No such file"):
        load_pretrained(".")


def test_loading_draws_no_random_number_and_asks_no_default(
    saved: Path, whole: dict[str, Tensor]
) -> None:
    state = torch.get_rng_state()
    load_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_default_dtype(torch.float64)
    try:
        assert_whole(load_pretrained(saved), whole)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert_whole(load_pretrained(saved), whole)
    model = load_pretrained(saved, device="meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "new": 1}, "format_version is 2; this version reads 1"),
        ({"mean": ..., "std": ...}, "missing .*'mean' and 'std'"),
        ({"architecture": "VGG16"}, "architecture is 'VGG16'"),
        ({"mean": "0.5"}, "mean is '0.5'"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"levels": 2}, "levels is 2"),
        ({"categories": "anger"}, "categories is .*'a', 'n'.*not 7"),
        ({"categories": ["a"] * 7}, "categories is .*not 7"),
        ({"categories": ["\x1b[31mred", *FER2013_CATEGORIES[1:]]}, "categories is .*not 7"),
        ({"model_args": []}, "model_args is \\[\\]"),
        ({"pool": ...}, "model_args .*pool"),
        ({"new\x1b[2J": 1}, r"unexpected .*'new\\x1b\[2J'"),
    ],
)
def test_config_that_is_not_as_it_must_be(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder / CONFIG_FILE}: ")
    assert text.endswith("save it again with ferfacenet.save_pretrained, or fetch a whole copy")
    assert text.isprintable()
    assert len(text) < 2000


def test_a_config_without_levels_has_none(folder: Path, whole: dict[str, Tensor]) -> None:
    edit_config(folder, levels=1)
    assert load_pretrained(folder).levels == 1
    edit_config(folder, levels=...)
    assert_whole(load_pretrained(folder), whole)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_no_json_object(text: bytes, folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(text)
    with pytest.raises(WeightsError, match=r"config\.json: (it is no JSON|.* missing)"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "min"}, "pool must be"),
        ({"dropout": 1.5}, "dropout"),
        ({"width": 0.25}, r"features\.0\.weight"),
        ({"hidden_features": 12}, r"Missing key.*classifier\.0\.weight"),
    ],
)
def test_model_args_that_do_not_fit(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(WeightsError, match=rf"model\.safetensors: .*{message}"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("features.0.bias"), r"Missing key.*features\.0\.bias"),
        (lambda t: t.update({"ex\x1btra": torch.ones(1)}), r"Unexpected key.*ex\\x1btra"),
        (lambda t: t.update({"classifier.bias": torch.ones(1)}), r"classifier\.bias.*\[1\]"),
        (lambda t: t["features.0.weight"][3].fill_(torch.nan), r"features\.0\.weight .*not finite"),
        (lambda t: t.update({"classifier.bias": Tensor([2e38] * 7).double() * 9}), "finite"),
        (lambda t: t["features.1.running_var"][:1].fill_(-1e-9), r"1\.running_var .*below 0"),
    ],
)
def test_keys_shapes_and_values_match_strictly(
    change: Callable[[dict[str, Tensor]], Any], message: str, folder: Path
) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    set_weights(folder, safetensors.torch.save(tensors))
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: (2**63).to_bytes(8, "little") + data[8:],
    ],
)
def test_damaged_and_strange_files(damage: Callable[[bytes], bytes], folder: Path) -> None:
    """Refused by the sha256, and where a config vouches for them, as no safetensors file."""
    data = damage((folder / WEIGHTS_FILE).read_bytes())
    (folder / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors: its sha256 is"):
        load_pretrained(folder)
    set_weights(folder, data)
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*(?i:header|key)"):
        load_pretrained(folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "make", [getattr(os, "mkfifo", Path.mkdir), Path.mkdir], ids=["FIFO", "folder"]
)
def test_what_is_no_file(make: Callable[[Path], Any], folder: Path) -> None:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(WeightsError, match=rf"^{folder / name}: it is no file"):
            load_pretrained(folder)


@pytest.mark.parametrize("name", ["weights.pt", "weights", WEIGHTS_FILE])
def test_pickles_are_never_run(name: str, folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.mkdir, (folder / "exploded",)

    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="only .safetensors files are opened|sha256"):
        load_pretrained(folder / name)
    set_weights(folder, pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="header"):
        load_pretrained(folder)
    assert not (folder / "exploded").exists()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """This process, as all of its distributed group."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "none": lambda model: model,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "several": lambda model: AveragedModel(nn.DataParallel(torch.compile(model))),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_saving_twice_gives_the_same_bytes_also_in_a_wrapper(
    kind: str, group: None, saved: Path, tmp_path: Path
) -> None:
    model = WRAPPERS[kind](load_pretrained(saved))
    assert isinstance(unwrap(model), ImprovedVGG19)
    save_pretrained(model, tmp_path / "copy", metrics=METRICS, trained_on="noise")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "copy" / name).read_bytes() == (saved / name).read_bytes()
    assert len(list((tmp_path / "copy").iterdir())) == 2


def test_other_models_cannot_be_saved(saved: Path, tmp_path: Path) -> None:
    linear = nn.Linear(1, 1)
    wrapped = nn.DataParallel(linear)
    compiled: Any = torch.compile(linear)
    assert unwrap(wrapped) is linear and unwrap(compiled) is compiled
    for model, kind in ((wrapped, "Linear"), (linear, "Linear"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"must be an ImprovedVGG19, got {kind}"):
            save_pretrained(model, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="meta tensor; no data"):
        save_pretrained(load_pretrained(saved, device="meta"), tmp_path)
    pruned = load_pretrained(saved)
    prune.l1_unstructured(pruned.features[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"layers are not .*pruned.*prune\.remove"):
        save_pretrained(pruned, tmp_path)
    assert list(tmp_path.iterdir()) == []
    prune.remove(pruned.features[0], "weight")
    save_pretrained(pruned, tmp_path)
    assert (load_pretrained(tmp_path).features[0].weight == 0).float().mean() == 0.5


def test_saving_refuses_what_could_not_be_loaded(tmp_path: Path) -> None:
    model = ImprovedVGG19(3, width=0.125)
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e5

    def assert_refused(message: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            save_pretrained(model, tmp_path, **settings)

    assert_refused(r"model\.categories is empty")
    model.categories = ("a", "b")
    assert_refused("categories", dtype=torch.float32)
    model.categories = ("a", "b", "c")
    assert_refused("dtype must be", dtype=torch.float64)
    assert_refused(r"classifier\.weight has values that are not finite")
    assert_refused("not JSON compliant", dtype=torch.float32, metrics={"loss": float("nan")})
    model.mean.fill_(float("nan"))
    assert_refused("mean is nan", dtype=torch.float32)
    model.mean.fill_(0.5)
    head = model.classifier
    model.classifier = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 3))
    assert_refused("layers are not those of")
    model.classifier = head
    assert list(tmp_path.iterdir()) == []
    metrics: Any = {"accuracy": torch.tensor(0.5)}
    save_pretrained(model, tmp_path, dtype=torch.float32, metrics=metrics)
    assert load_pretrained(tmp_path).classifier.weight[0, 0] == 1e5


def test_all_is_on_the_disk_before_it_replaces_anything(folder: Path) -> None:
    """The calls are as they would be; that they hold in a power cut is the system's promise."""
    calls: list[str] = []

    def note(_: Any, event: str, called: Any) -> None:
        if event == "c_call" and called in (os.fsync, os.replace):
            calls.append(called.__name__)

    sys.setprofile(note)
    try:
        save_pretrained(ImprovedVGG19(width=0.125), folder)
    finally:
        sys.setprofile(None)
    assert calls == ["fsync", "replace"] * 2


def test_a_full_disk_leaves_the_old_weights(folder: Path, whole: dict[str, Tensor]) -> None:
    with full_disk(), pytest.raises(OSError, match="large"):
        save_pretrained(ImprovedVGG19(width=0.125), folder)
    assert_whole(load_pretrained(folder), whole)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_loading_takes_little_more_memory_than_the_model() -> None:
    code = f"""{PEAK}
import safetensors.torch
from ferfacenet import load_pretrained
before = peak()
model = load_pretrained()
print((peak() - before) / sum(4 * p.numel() for p in model.parameters()))
"""
    done = run(code, env={"OMP_NUM_THREADS": "1"})
    assert 1 < float(done.stdout) < 1.9, done.stderr
