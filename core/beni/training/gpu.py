"""What NVIDIA's management library tells of the GPU that a process trains on."""

from collections.abc import Callable
from typing import Any

import pynvml
import torch

_SLOWED = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "its power limit",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "the hardware slows it down",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "its temperature limit",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "it is too hot",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "its power supply",
}
"""Why clocks are lower than they could be, as far as somebody may want to do something about it."""


class Gpu:
    """A GPU that NVML knows."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def of(cls, device: torch.device) -> "Gpu | None":
        """That of a device; None on a CPU, and where there is no NVML or it does not know this device."""
        if device.type != "cuda":
            return None
        uuid = torch.cuda.get_device_properties(device).uuid
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        for kind in ("GPU", "MIG"):
            try:
                return cls(pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}"))
            except pynvml.NVMLError:
                continue
        return None

    def sample(self) -> dict[str, Any]:
        """What it does now, without what it does not tell: `gpu_utilization` is a share of the time, and
        `gpu_throttled` there only if it is: by what."""
        of = self._handle
        asked: dict[str, Callable[[], Any]] = {
            "gpu_utilization": lambda: pynvml.nvmlDeviceGetUtilizationRates(of).gpu / 100,
            "gpu_memory_bytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(of).used,
            "gpu_power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(of) / 1000,
            "gpu_temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(of, pynvml.NVML_TEMPERATURE_GPU),
            "gpu_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(of, pynvml.NVML_CLOCK_SM),
            "gpu_throttled": lambda: _reasons(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(of)),
        }
        told = {name: _ask(question) for name, question in asked.items()}
        return {name: value for name, value in told.items() if value is not None and value != []}

    def energy_j(self) -> float:
        """Energy used since the driver was loaded; 0 if it does not tell."""
        return (_ask(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) or 0) / 1000


def _reasons(bits: int) -> list[str]:
    return [reason for bit, reason in _SLOWED.items() if bits & bit]


def _ask(question: Callable[[], Any]) -> Any:
    """The answer, or None: not every GPU, and no part of one, tells everything."""
    try:
        return question()
    except pynvml.NVMLError:
        return None
