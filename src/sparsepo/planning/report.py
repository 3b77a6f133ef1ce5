"""A whole plan: memory, time, disk and advice of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .advice import Advice, advise
from .devices import Device
from .disk import DiskPlan, plan_disk
from .memory import USABLE, MemoryPlan, plan_memory
from .settings import PlanSettings
from .shapes import ModelShape
from .timing import TimePlan, plan_time


@dataclass(frozen=True)
class Plan:
    """What `sparsepo plan` shows."""

    shape: ModelShape
    settings: PlanSettings
    device: Device
    memory: MemoryPlan
    time: TimePlan
    disk: DiskPlan
    advice: Advice | None

    @property
    def fits(self) -> bool:
        """Whether the devices can be expected to hold it."""
        return self.memory.fits(self.device.memory)

    def to_dict(self) -> dict[str, Any]:
        """JSON types; bytes and seconds."""
        shape = {key: value for key, value in vars(self.shape).items() if key != "config"}
        found: dict[str, Any] = {
            "model": shape,
            "settings": asdict(self.settings),
            "device": asdict(self.device),
            "memory": {
                "parts": self.memory.parts,
                "allocated": self.memory.allocated,
                "total": self.memory.total,
                "usable": USABLE * self.device.memory,
                "fits": self.fits,
                "when": self.memory.when,
                "trained_parameters": self.memory.record.trainable,
                "mask_parameters": self.memory.record.mask_parameters,
            },
            "time": asdict(self.time) | {"total": self.time.total},
            "disk": {"token": self.disk.token, "tokens": self.disk.tokens, "total": self.disk.total},
        }
        if self.advice is not None:

            def told(change: Any) -> dict[str, Any]:
                return {name: getattr(change, name) for name in ("flags", "cost", "memory", "saved")}

            together = self.advice.together
            found["changes"] = [told(change) for change in self.advice.changes]
            found["together"] = None if together is None else [told(change) for change in together]
        return found


def make_plan(
    shape: ModelShape,
    settings: PlanSettings,
    device: Device,
    utilisation: float | None = None,
    always_advise: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a run.

    Args:
        shape: the model.
        settings: the run.
        device: each of its devices.
        utilisation: share of the device's operations that products reach; None: what was measured.
        always_advise: look at changes even if it fits.
        tell: called with what is being looked at.
    """
    memory = plan_memory(shape, settings, device.memory)
    average = settings.prompt_tokens + settings.response_tokens
    record = memory.record
    if average < settings.max_length:
        tell("the time of an average batch")
        record = plan_memory(shape, settings.changed(max_length=average), device.memory).record
    time = plan_time(shape, settings, record, device, utilisation)
    tell("the reference cache")
    disk = plan_disk(shape, settings)
    advice = None
    if always_advise or not memory.fits(device.memory):
        advice = advise(shape, settings, memory, device.memory, tell)
    return Plan(shape, settings, device, memory, time, disk, advice)
