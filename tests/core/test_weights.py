"""Weight files: read safely, loaded by name or by order, refused with the first tensor that does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from beni.errors import ConfigError
from beni.weights import find_weights, load_weights, package_file, read_state_dict, renamed, sha256, take_weights


def test_by_name_and_by_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, by_name, by_order = (nn.Linear(3, 2) for _ in range(3))
    save_file(source.state_dict(), tmp_path / "named.safetensors")
    load_weights(by_name, tmp_path / "named.safetensors")
    torch.save({f"net.{k}": v for k, v in source.state_dict().items()}, tmp_path / "ported.pth")
    load_weights(by_order, tmp_path / "ported.pth")
    for net in (by_name, by_order):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), source.parameters(), strict=True))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": torch.zeros(2, 3)}, "1 tensors, first 'bias'"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, "first 'weight'"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "first 'more'"),
        ({"b": torch.zeros(2), "w": torch.zeros(2, 3)}, "2 tensors, first 'weight'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, state: dict[str, torch.Tensor], said: str) -> None:
    torch.save(state, tmp_path / "a.pt")
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    with pytest.raises(ConfigError, match=said):
        load_weights(net, tmp_path / "a.pt")
    assert torch.equal(net.weight, before)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "code.pt")
    for name in ("a.safetensors", "list.pt", "code.pt"):
        with pytest.raises(ConfigError, match=name):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_references(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    (tmp_path / "empty").mkdir()
    assert find_weights(str(tmp_path / "a.pt")) == tmp_path / "a.pt"
    for wrong in ("gone.pt", "", str(tmp_path / "empty"), "package:no-package-of-this-name"):
        with pytest.raises(ConfigError):
            find_weights(wrong)
    with pytest.raises(ConfigError, match="holds 0 files"):
        package_file("einops", (".safetensors",))


def test_a_folder_stands_for_its_weight_file(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.bin")
    assert find_weights(str(tmp_path)) == tmp_path / "a.bin"
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert find_weights(str(tmp_path)) == tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="2 weight files are in the folder: name one"):
        find_weights(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="0 weight files"):
        find_weights(str(tmp_path / "empty"))


def test_a_part_is_taken_out_of_a_training_checkpoint(tmp_path: Path) -> None:
    """Behind whatever prefix, and only where all of it is there."""
    torch.manual_seed(0)
    part, path = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), tmp_path / "all.pt"
    state = {f"module.vision.{name}": torch.randn_like(value) for name, value in part.state_dict().items()}
    torch.save({"step": 3, "state_dict": state | {"module.text.0.weight": torch.zeros(9)}}, path)
    take_weights(part, path)
    assert all(torch.equal(value, state[f"module.vision.{name}"]) for name, value in part.state_dict().items())
    with pytest.raises(ConfigError, match=r"do not fit Sequential: 2 tensors, first 'module.vision.2.weight'"):
        take_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)), path)
    with pytest.raises(ConfigError, match=r"do not fit Sequential: \d tensors, first '.*0\.weight'"):
        take_weights(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), path)


def test_weights_in_several_files(tmp_path: Path) -> None:
    """As transformers saves large models: a folder is known by its index, whose hash is that of all files."""
    torch.manual_seed(0)
    source, part = nn.Linear(3, 2), nn.Linear(3, 2)
    files = {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}
    for name, file in files.items():
        save_file({f"net.{name}": source.state_dict()[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"net.{name}": file for name, file in files.items()}}))
    assert find_weights(str(tmp_path)) == find_weights(str(index)) == index
    take_weights(part, index)
    assert all(torch.equal(a, b) for a, b in zip(part.parameters(), source.parameters(), strict=True))
    before = sha256(index)
    save_file({"net.bias": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    assert sha256(index) != before
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"1 files that are not beside it, first model-2\.safetensors"):
        read_state_dict(index)
    index.write_text("{}")
    with pytest.raises(ConfigError, match="weight_map"):
        read_state_dict(index)


def test_renamed_takes_what_matches_and_refuses_to_choose() -> None:
    one, same, other = torch.ones(2), torch.ones(2), torch.zeros(2)
    rules = {r"projector\.(\d+)\.weight": r"layers.\1"}
    assert renamed({"a.projector.0.weight": one, "projectors.0.weight": other}, rules).keys() == {"layers.0"}
    assert renamed({"a.projector.0.weight": one, "b.projector.0.weight": same}, rules)["layers.0"] is same
    with pytest.raises(ConfigError, match=r"'a\.projector\.0\.weight' and 'b\.projector\.0\.weight', which differ"):
        renamed({"a.projector.0.weight": one, "b.projector.0.weight": other}, rules)
