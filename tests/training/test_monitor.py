"""What is asked of the machine: honest clocks, warnings once, and what a GPU tells."""

import ctypes
import subprocess
import sys
from itertools import count

import pynvml
import pytest
import torch

from beni.training import gpu, monitor
from beni.training.gpu import Gpu
from beni.training.monitor import Monitor, together
from beni.training.stopwatch import WAIT
from beni.training.totals import Totals

CPU = torch.device("cpu")


class Meter:
    """A clock, and a GPU's counter of energy that goes on with 100 W."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(monitor.time, "perf_counter", lambda: self.now)
        patch.setattr(Gpu, "of", lambda device: Gpu("handle"))
        patch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: self.now * 100 * 1000)


def test_a_pause_belongs_to_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(monkeypatch)
    watched, window, another = Monitor(CPU), Totals(), Totals()
    meter.now = 2.0
    with watched.paused():
        meter.now = 7.0
    meter.now = 8.0
    watched.close_window(window)
    assert (window.seconds, window.energy_j) == (3.0, 300.0)
    with watched.paused():
        meter.now = 20.0
    meter.now = 20.5
    watched.close_window(another)
    assert (another.seconds, another.energy_j) == (0.5, 50.0)


def test_a_window_has_what_was_waited_for_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    watched, window = Monitor(CPU), Totals()
    monkeypatch.setattr("beni.training.stopwatch.time.perf_counter", lambda: float(next(seconds)))
    watched.watch.start(WAIT)
    watched.watch.stop(WAIT)
    watched.close_window(window)
    assert window.times == {WAIT: 1.0}


def test_memory_of_data_workers_is_seen() -> None:
    watched, held = Monitor(CPU), 200_000_000
    before = watched.sample()["rss_bytes"]
    with subprocess.Popen(
        [sys.executable, "-c", f"held = b'x' * {held}; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None and worker.stdout.readline()
        assert watched.sample()["rss_bytes"] - before > 0.8 * held
        worker.communicate(b"\n")
    assert 0 <= watched.sample()["cpu_percent"] <= 100
    assert not any(name.startswith("gpu") for name in watched.sample()), "there is none"


def test_waiting_for_data_is_told_once_and_not_at_once() -> None:
    watched = Monitor(CPU)
    early = Totals(seconds=5.0, times={WAIT: 4.0})
    fine = Totals(seconds=100.0, times={WAIT: 9.0})
    slow = Totals(seconds=100.0, times={WAIT: 25.0})
    assert watched.warnings(early, {}) == [] == watched.warnings(fine, {})
    [warning] = watched.warnings(slow, {})
    assert "waits for data in 25% of the time" in warning and "--workers" in warning
    assert watched.warnings(slow, {}) == []


def test_a_slowed_gpu_is_told_once_for_each_reason() -> None:
    watched, some = Monitor(CPU), Totals()
    [warning] = watched.warnings(some, {"gpu_throttled": ["its power limit"]})
    assert warning.endswith("its power limit")
    [warning] = watched.warnings(some, {"gpu_throttled": ["its power limit", "it is too hot"]})
    assert warning.endswith("it is too hot")


def test_figures_of_processes_become_one() -> None:
    one = {"rss_bytes": 5, "gpu_power_w": 300.0, "gpu_clock_mhz": 1980, "gpu_throttled": ["its power limit"]}
    two = {"rss_bytes": 7, "gpu_power_w": 200.0, "gpu_clock_mhz": 1200}
    assert together([one, two]) == {
        "rss_bytes": 7,
        "gpu_power_w": 500.0,
        "gpu_clock_mhz": 1200,
        "gpu_throttled": ["its power limit"],
    }
    assert together([two, two]) == {"rss_bytes": 7, "gpu_power_w": 400.0, "gpu_clock_mhz": 1200}


def unsupported(*_: object) -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_a_gpu_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a data centre's GPU would; and as a share of one, which knows nothing of its power."""
    use = pynvml.c_nvmlUtilization_t(87, 12)
    memory = pynvml.c_nvmlMemory_t(ctypes.c_ulonglong(80), ctypes.c_ulonglong(50), ctypes.c_ulonglong(30))
    bits = pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonGpuIdle
    for name, answer in {
        "nvmlDeviceGetUtilizationRates": use,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetPowerUsage": 412_500,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetClockInfo": 1755,
        "nvmlDeviceGetCurrentClocksThrottleReasons": bits,
        "nvmlDeviceGetTotalEnergyConsumption": 2_000,
    }.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    assert Gpu("handle").energy_j() == 2.0
    assert Gpu("handle").sample() == {
        "gpu_utilization": 0.87,
        "gpu_memory_bytes": 30,
        "gpu_power_w": 412.5,
        "gpu_temperature_c": 61,
        "gpu_clock_mhz": 1755,
        "gpu_throttled": ["its power limit"],
    }
    for name in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTotalEnergyConsumption"):
        monkeypatch.setattr(pynvml, name, unsupported)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda _: 0)
    assert Gpu("handle").energy_j() == 0.0
    assert Gpu("handle").sample().keys() == {"gpu_memory_bytes", "gpu_temperature_c", "gpu_clock_mhz"}


@pytest.mark.parametrize("kind", ["GPU", "MIG", "none", "no driver"])
def test_a_gpu_is_found_by_what_it_is_and_not_by_its_number(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """CUDA_VISIBLE_DEVICES numbers GPUs anew."""

    def handle(uuid: str) -> str:
        if uuid != f"{kind}-c0ffee":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"uuid": "c0ffee"}))
    monkeypatch.setattr(pynvml, "nvmlInit", unsupported if kind == "no driver" else lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    found = gpu.Gpu.of(torch.device("cuda", 0))
    assert (found is not None) == (kind in ("GPU", "MIG"))
    assert gpu.Gpu.of(CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_tells_of_itself() -> None:
    device = torch.device("cuda", 0)
    watched = Monitor(device)
    x = torch.randn(8192, 8192, device=device)
    for _ in range(100):
        x @ x
    torch.cuda.synchronize()
    window = Totals()
    watched.close_window(window)
    figures = watched.sample()
    assert figures["gpu_memory_bytes"] > x.nbytes and figures["gpu_clock_mhz"] > 0
    if "gpu_power_w" in figures:
        assert window.energy_j > 0
