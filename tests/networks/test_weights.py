from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.networks.weights import fill_model, find_weights, freeze_model, hash_tensors, read_weights

URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_finds_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    with pytest.raises(MissingInputError) as error:
        find_weights(URL, None)
    assert f"curl -fL --create-dirs -o {path} {URL}" in str(error.value)
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_weights(URL, None) == path


def test_the_users_file_comes_first(tmp_path):
    with pytest.raises(MissingInputError, match=r"not found: .*mine\.pth"):
        find_weights(URL, tmp_path / "mine.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_reads_both_formats_and_fills(tmp_path, ending):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / f"w.{ending}"
    (save_file if ending == "safetensors" else torch.save)(source.state_dict(), path)
    state, sha256 = read_weights(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    fill_model(target, state, path)
    assert torch.equal(source.weight, target.weight)
    assert hash_tensors(source) == hash_tensors(target)


def test_a_poisoned_file_is_refused_and_not_run(tmp_path):
    """Trap 6: torchvision would have run it."""
    path, target = tmp_path / "w.pth", tmp_path / "attacked"
    torch.save({"weight": Attack(target)}, path)
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the attack is a real one
    assert target.exists()


def test_the_hash_in_the_name_is_checked(tmp_path):
    """Trap 6: torchvision takes any content under the right name."""
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(BadDataError, match=r"SHA-256 should start with 7be5be79.* fetch it again"):
        read_weights(path)


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    with pytest.raises(BadDataError, match=r"should hold a state dictionary .*'epoch', 'state_dict'"):
        read_weights(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(BadDataError, match="not a Tensor"):
        read_weights(path)
    torch.save(nn.Linear(3, 2).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadDataError, match="refused"):
        read_weights(path)
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(BadDataError, match="cannot be read as weights"):
        read_weights(broken)


def test_weights_of_another_architecture_are_named():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(2), "fc.weight": torch.zeros(2)}
    with pytest.raises(BadDataError) as error:
        fill_model(model, state, Path("w.pth"))
    for part in ("2 missing: 1.weight, 1.bias", "1 unexpected: fc.weight", "0.weight (3, 2) instead of (2, 3)"):
        assert part in str(error.value)


def test_the_digest_follows_the_values():
    model = nn.BatchNorm2d(3)
    before = hash_tensors(model)
    assert model.running_mean is not None
    model.running_mean[1] = 1e-7
    assert hash_tensors(model) != before


def test_freezing():
    """Trap 10: half precision is emulated on processors; everything runs in float32."""
    model = freeze_model(nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout())).half())
    assert not any(module.training for module in model.modules())
    assert not model[1][0].inplace
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(UsageError, match="TorchScript"):
        freeze_model(torch.jit.script(nn.ReLU()))
