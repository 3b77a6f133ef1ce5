"""A mask head sharded by FSDP2 (on gloo, one process): saved from the gathered state, and loaded back into the shards."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sparsepo import LearnedMask, load_mask
from sparsepo.masks import save_mask
from sparsepo.training.checkpoints import load_weights, split_state
from sparsepo.training.refusals import refuse_sharded_masks


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_head_is_saved_and_loaded(mesh, tmp_path):
    policy = torch.nn.Module()
    policy.head = torch.nn.Linear(4, 4)
    policy.sparsepo_mask = LearnedMask(8, 2, sharing="independent", init="ones", seed=3)
    whole = {name: value.clone() for name, value in policy.sparsepo_mask.state_dict().items()}
    fully_shard(policy, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in policy.sparsepo_mask.parameters())
    gathered = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True))
    rest, own = split_state(gathered)
    assert set(rest) == {"head.weight", "head.bias"}
    save_mask(policy.sparsepo_mask, tmp_path, state_dict=own)
    saved = load_mask(tmp_path)
    assert all(torch.equal(value, whole[name]) for name, value in saved.state_dict().items())
    with torch.no_grad():
        for parameter in policy.sparsepo_mask.parameters():
            parameter.zero_()
    load_weights(policy.sparsepo_mask, saved.state_dict())
    for name, parameter in policy.sparsepo_mask.named_parameters():
        assert torch.equal(parameter.full_tensor(), whole[name])


@pytest.mark.parametrize(("deepspeed", "version", "name"), [(True, None, "DeepSpeed"), (False, 1, "FSDP version 1")])
def test_what_cannot_clip_the_head_apart_is_refused(deepspeed, version, name):
    with pytest.raises(ValueError, match=f"A learned mask does not work under {name} yet"):
        refuse_sharded_masks(LearnedMask(8, 2), deepspeed, version)
    refuse_sharded_masks(LearnedMask(8, 2), False, 2)
    refuse_sharded_masks(None, deepspeed, version)
