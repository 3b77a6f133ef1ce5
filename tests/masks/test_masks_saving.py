"""Masks on disk, and weights of the official release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sparsepo
from sparsepo.masks import (
    ActivationMask,
    DataMask,
    DenseMask,
    LearnedMask,
    Masker,
    MaskInputs,
    RandomMask,
    import_published_mask,
    load_mask,
    read_mask_info,
    save_mask,
)
from tests.masks.models import tiny_model

MASKERS: list[Masker] = [
    LearnedMask(8, 3, init="ones", seed=3),
    LearnedMask(8, 3, sharing="independent", position="token", dropout=0.1, norm_eps=1e-6),
    LearnedMask(8, 3, mask_on="kl", map="two_layer", map_width=5),
    LearnedMask(8, 3, map="mlp", map_width=5),
    LearnedMask(8, 3, layers="last", activation="none"),
    ActivationMask(["resid", "logits"], position="token"),
    DenseMask(mask_on="reward"),
    RandomMask(seed=9, sparsity=0.25, sharing="independent"),
    DataMask(),
]


def describe(mask: Masker) -> str:
    return f"{mask.kind}-{mask.settings().get('map', '')}-{mask.mask_on}-{mask.settings().get('sharing', '')}"


@pytest.mark.parametrize("mask", MASKERS, ids=describe)
@pytest.mark.parametrize("inner", [False, True], ids=["folder", "folder/mask"])
def test_save_then_load(mask: Masker, inner: bool, tmp_path: Path, inputs: MaskInputs) -> None:
    written = mask.save(tmp_path / "out", base_model="some/model")
    assert written == tmp_path / "out" / "mask"
    loaded = load_mask(written if inner else tmp_path / "out")
    assert type(loaded) is type(mask)
    assert loaded.settings() == mask.settings()
    assert not loaded.training
    assert loaded.state_dict().keys() == mask.state_dict().keys()
    for name, value in mask.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    if mask.needs_hidden_states:
        assert torch.equal(loaded.token_masks(inputs).kl, mask.eval().token_masks(inputs).kl)
    expected = {"mask.json", "mask.safetensors"} if mask.is_trainable else {"mask.json"}
    assert {file.name for file in written.iterdir()} == expected


def test_json_says_what_it_is(tmp_path: Path) -> None:
    MASKERS[0].save(tmp_path, base_model="some/model")
    info = json.loads((tmp_path / "mask" / "mask.json").read_text())
    assert info == read_mask_info(tmp_path)
    assert info["kind"] == "learned"
    assert info["base_model"] == "some/model"
    assert info["sparsepo_version"] == sparsepo.__version__
    assert info["settings"]["hidden_size"] == 8
    assert info["settings"]["position"] == "predicting"


def test_saving_over_another_mask_leaves_no_stale_weights(tmp_path: Path) -> None:
    MASKERS[0].save(tmp_path)
    DenseMask().save(tmp_path)
    assert isinstance(load_mask(tmp_path), DenseMask)


def test_failed_save_leaves_the_earlier_mask_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = LearnedMask(8, 3)
    mask.save(tmp_path)
    before = {name: value.clone() for name, value in mask.state_dict().items()}
    with torch.no_grad():
        mask.heads["shared"].layer_weight.add_(1)

    def fail(tensors: Any, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("sparsepo.masks.saving.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        mask.save(tmp_path)
    for name, value in load_mask(tmp_path).state_dict().items():
        assert torch.equal(value, before[name])


def test_gathered_state_and_half_precision_are_saved_in_float32(tmp_path: Path) -> None:
    mask = LearnedMask(8, 3)
    state = {name: value.to(torch.bfloat16) + 1 for name, value in mask.state_dict().items()}
    save_mask(mask, tmp_path, state_dict=state)
    for name, value in load_mask(tmp_path).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "mask" / "mask.json"
    content = json.loads(file.read_text())
    for name, value in changes.items():
        target, key = (content["settings"], name[2:]) if name.startswith("s_") else (content, name)
        if value is None:
            del target[key]
        else:
            target[key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "magic"}, r"mask\.json: kind='magic' is unknown"),
        ({"format": 2, "future": 1}, r"mask\.json: format=2 is newer.*update sparsepo"),
        ({"format": 0}, "format=0 is unknown"),
        ({"format": True}, "format=True has the wrong type"),
        ({"kind": None}, "lacks the field 'kind'"),
        ({"colour": "red"}, "unknown fields: colour"),
        ({"settings": [1]}, r"settings=\[1\] has the wrong type"),
        ({"s_temperature": 1.0}, r"mask\.json: the settings do not make a 'learned' mask.*temperature"),
        ({"s_sharing": "none"}, "sharing='none' is unknown"),
        ({"s_dropout": None}, "settings lack dropout"),
        ({"s_hidden_size": "8"}, "hidden_size='8'"),
        (
            {"s_hidden_size": 10**9},
            r"shape \(8,\)|shape \(3, 8\), but the settings in mask.json ask for \(3, 1000000000\)",
        ),
        ({"s_num_layers": 4}, r"layer_bias has shape \(3,\), but the settings in mask.json ask for \(4,\)"),
        ({"s_sharing": "independent"}, r"lacks the tensor 'heads\.kl\.layer_bias'"),
        ({"s_layers": "last"}, "has shape|do not call for"),
        ({"kind": "dense", "settings": {"mask_on": "both", "position": "predicting"}}, "which has none"),
    ],
)
def test_bad_json_is_refused_by_file_and_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    LearnedMask(8, 3).save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_mask(tmp_path)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No mask in"):
        load_mask(tmp_path)
    mask = LearnedMask(8, 3)
    folder = mask.save(tmp_path)
    tensors = load_file(folder / "mask.safetensors")
    broken = {
        r"lacks the tensor 'heads\.shared\.mixer_weight'": {n: t for n, t in tensors.items() if "mixer" not in n},
        r"has the tensor 'extra', which": {**tensors, "extra": torch.zeros(1)},
        r"layer_bias holds values that are not finite": {
            **tensors,
            "heads.shared.layer_bias": torch.tensor([0.0, float("nan"), 1.0]),
        },
        r"layer_weight holds values that are not finite numbers": {
            **tensors,
            "heads.shared.layer_weight": torch.zeros(3, 8, dtype=torch.int64),
        },
    }
    for message, content in broken.items():
        save_file(content, folder / "mask.safetensors")
        with pytest.raises(ValueError, match=message):
            load_mask(tmp_path)
    (folder / "mask.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_mask(tmp_path)
    (folder / "mask.safetensors").unlink()
    with pytest.raises(ValueError, match=r"mask\.safetensors is missing"):
        load_mask(tmp_path)
    (folder / "mask.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_mask(tmp_path)
    (folder / "mask.json").write_text("[]")
    with pytest.raises(ValueError, match="holds list"):
        load_mask(tmp_path)


def test_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    LearnedMask(32, 3).save(tmp_path / "learned")
    with pytest.raises(ValueError, match="num_layers=3, but LlamaForCausalLM has 2"):
        load_mask(tmp_path / "learned", tiny_model("llama"))
    LearnedMask(32, 2).save(tmp_path / "learned")
    assert isinstance(load_mask(tmp_path / "learned", tiny_model("llama")), LearnedMask)
    ActivationMask(["attn"]).save(tmp_path / "activation")
    with pytest.raises(ValueError, match="no activations of attn; it has resid, logits"):
        load_mask(tmp_path / "activation", tiny_model("mamba"))


# The official release


def official_state(heads: tuple[str, ...], prefix: str = "pretrained_model.") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {"transformer.wte.weight": torch.zeros(5, 8)}
    for head in heads:
        state[f"{prefix}{head}.layer_norm.weight"] = torch.randn(8, generator=generator)
        state[f"{prefix}{head}.layer_norm.bias"] = torch.randn(8, generator=generator)
        state[f"{prefix}{head}.mixer.weight"] = torch.randn(1, 12, generator=generator)
        for layer in range(12):  # more than ten: "10" sorts before "2"
            state[f"{prefix}{head}.w_per_layer.{layer}.w.weight"] = torch.randn(1, 8, generator=generator)
            state[f"{prefix}{head}.w_per_layer.{layer}.w.bias"] = torch.randn(1, generator=generator)
    return state


@pytest.mark.parametrize(
    ("heads", "sharing", "mask_on"),
    [
        (("common_mask",), "common", "both"),
        (("rw_mask", "kl_mask"), "independent", "both"),
        (("rw_mask",), "independent", "reward"),
        (("kl_mask",), "independent", "kl"),
    ],
)
@pytest.mark.parametrize("where", ["state", "file", "folder"])
def test_published_masks(heads: tuple[str, ...], sharing: str, mask_on: str, where: str, tmp_path: Path) -> None:
    state = official_state(heads)
    names = sorted(state)
    save_file({n: state[n] for n in names[::2]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({n: state[n] for n in names[1::2]}, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "one").mkdir()
    save_file(state, tmp_path / "one" / "model.safetensors")
    source = {"state": state, "file": tmp_path / "one" / "model.safetensors", "folder": tmp_path}[where]
    mask = import_published_mask(source, position="token", dropout=0.01)
    assert (mask.sharing, mask.mask_on, mask.hidden_size, mask.num_layers) == (sharing, mask_on, 8, 12)
    assert (mask.position, mask.dropout) == ("token", 0.01)
    ours = {"common_mask": "shared", "rw_mask": "reward", "kl_mask": "kl"}
    for head in heads:
        for layer in (0, 2, 10, 11):
            theirs = state[f"pretrained_model.{head}.w_per_layer.{layer}.w.weight"][0]
            assert torch.equal(mask.heads[ours[head]].layer_weight[layer].detach(), theirs)
        assert torch.equal(
            mask.heads[ours[head]].mixer_weight.detach(), state[f"pretrained_model.{head}.mixer.weight"][0]
        )


def test_bad_published_masks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No published mask there"):
        import_published_mask({"transformer.wte.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="Both a common_mask and"):
        import_published_mask(official_state(("common_mask", "rw_mask")))
    incomplete = official_state(("rw_mask",), "")
    del incomplete["rw_mask.w_per_layer.3.w.bias"]
    with pytest.raises(ValueError, match=r"lacks rw_mask\.w_per_layer\.3\.w\.bias"):
        import_published_mask(incomplete)
    narrow = official_state(("rw_mask",), "")
    narrow["rw_mask.w_per_layer.3.w.weight"] = torch.zeros(1, 7)
    with pytest.raises(ValueError, match=r"w_per_layer\.3\.w\.weight has 7 entries, expected 8"):
        import_published_mask(narrow)
    infinite = official_state(("kl_mask",), "")
    infinite["kl_mask.mixer.weight"][0, 1] = float("inf")
    with pytest.raises(ValueError, match=r"kl_mask\.mixer\.weight holds values that are not finite"):
        import_published_mask(infinite)
    twice = official_state(("rw_mask",), "") | official_state(("rw_mask",), "other.")
    with pytest.raises(ValueError, match="Two tensors"):
        import_published_mask(twice)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="Pickled checkpoints"):
            import_published_mask(source)
