"""FSDP2 on the CPU, through accelerate and Trainer as on GPUs.

accelerate chooses FSDP for accelerators only: ``AcceleratorState`` has a list of distributed types that may become FSDP, and
the CPU's (``MULTI_CPU``) is not in it, so that ``ACCELERATE_USE_FSDP=true`` gives plain DDP there. Here that one choice is
made for the CPU too. All that follows is accelerate's and torch's own: ``fully_shard`` over gloo, DTensors, state dicts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

# what `accelerate launch` sets for a configuration with fsdp_version: 2
ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


@contextmanager
def fsdp2_on_cpu(**settings: str) -> Iterator[None]:
    """Accelerators that are made in here shard by FSDP2. ``settings`` replace values of :data:`ENVIRONMENT`."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    with patch.dict(os.environ, {**ENVIRONMENT, **settings}), patch.object(AcceleratorState, "__init__", init):
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
