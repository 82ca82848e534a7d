"""Weights in a folder: written, read again, and refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import PEAK, assert_whole, flip, run
from safetensors import safe_open
from torch import Tensor

from ferfacenet import ImprovedVGG19, WeightsError, load_pretrained, save_pretrained
from ferfacenet.model import CALIBRATION, FER2013_CATEGORIES
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
    assert (config.mean, config.std, config.temperature) == (0.4, 0.2, 1.5)
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
    assert (config["mean"], config["std"], config["temperature"]) == (0.5077, 0.255, 1.25)
    assert (config["license"], config["trained_on"], config["selected_on"]) == ("mit", "noise", "")
    assert config["model_args"]["width"] == 0.125  # present only where it is not 1
    assert (saved / WEIGHTS_FILE).stat().st_size < 2.2 * sum(t.numel() for t in tensors.values())


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(saved), tmp_path, metrics=METRICS, trained_on="noise")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


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
        ({"format_version": ...}, "keys.* format_version"),
        ({"mean": ..., "std": ...}, "keys.* mean, std"),
        ({"new_color": 1}, "keys.* new_color"),
        ({"architecture": "VGG16"}, "architecture is 'VGG16'"),
        ({"mean": "0.5"}, "mean is '0.5'"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"mean": True}, "mean is True"),
        ({"std": 0}, "std is 0"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"metrics": [1]}, "metrics is"),
        ({"weights_sha256": "ABC"}, "weights_sha256 is 'ABC'"),
        ({"categories": "anger"}, "categories is 'anger'"),
        ({"categories": [[1], 2, 3, 4, 5, 6, 7]}, "categories is .*not 7"),
        ({"categories": ["a"] * 7}, "categories is .*not 7"),
        ({"categories": ["\x1b[31mred", *FER2013_CATEGORIES[1:]]}, "categories is .*not 7"),
        ({"model_args": []}, "model_args is"),
        ({"pool": ...}, "model_args .*pool"),
        ({"new\x1b[2J": 1}, r"keys.* new\\x1b\[2J"),
        ({"new" + "x" * 100_000: 1}, "keys"),
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


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_no_json_object(text: bytes, folder: Path) -> None:
    (folder / CONFIG_FILE).write_bytes(text)
    with pytest.raises(WeightsError, match=r"config\.json: (it is no JSON|these keys)"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "min"}, "pool must be"),
        ({"dropout": 1.5}, "dropout"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"in_channels": "1"}, "'str'"),
        ({"in_channels": 3}, r"features\.0\.weight"),
        ({"width": 0}, "width must be"),
        ({"width": 0.25}, r"features\.0\.weight"),
        ({"hidden_features": 12}, r"Missing key.*classifier\.0\.weight"),
        ({"hidden_features": 10**13}, "memory|size"),
        ({"num_classes": 2, "categories": ["a", "b"]}, r"classifier\.weight"),
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
        (lambda t: t.clear(), "Missing key"),
    ],
)
def test_keys_and_shapes_match_strictly(
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
        lambda data: data[:5000],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: (2**63).to_bytes(8, "little") + data[8:],
        lambda data: flip(data, 200),
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


def test_saving_refuses_what_could_not_be_loaded(tmp_path: Path) -> None:
    model = ImprovedVGG19(3, width=0.125)
    with pytest.raises(ValueError, match=r"model\.categories is None"):
        save_pretrained(model, tmp_path)
    model.categories = ("a", "b")
    with pytest.raises(ValueError, match="categories"):
        save_pretrained(model, tmp_path)
    model.categories = ("a", "b", "c")
    with pytest.raises(ValueError, match="dtype must be"):
        save_pretrained(model, tmp_path, dtype=torch.float64)
    model.mean.fill_(float("nan"))
    with pytest.raises(ValueError, match="mean is nan"):
        save_pretrained(model, tmp_path)
    model.mean.fill_(0.5)
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"classifier\.weight has values that are not finite"):
        save_pretrained(model, tmp_path)
    head = model.classifier
    model.classifier = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 3))
    with pytest.raises(ValueError, match="layers are not those of"):
        save_pretrained(model, tmp_path)
    model.classifier = head
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_pretrained(model, tmp_path, dtype=torch.float32, metrics={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    metrics: Any = {"accuracy": torch.tensor(0.5)}
    save_pretrained(model, tmp_path, dtype=torch.float32, metrics=metrics)
    assert load_pretrained(tmp_path).classifier.weight[0, 0] == 1e5


@pytest.mark.parametrize("interrupted", [WEIGHTS_FILE, CONFIG_FILE])
def test_an_interrupted_save_is_never_taken_for_a_whole_one(
    interrupted: str, folder: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Tensor]
) -> None:
    replace = Path.replace

    def stop(source: Path, target: Path) -> None:
        if target.name == interrupted:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(ImprovedVGG19(width=0.125), folder)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    if interrupted == WEIGHTS_FILE:
        assert_whole(load_pretrained(folder), whole)
    else:
        with pytest.raises(WeightsError, match="sha256"):
            load_pretrained(folder)


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
