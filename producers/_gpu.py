"""What NVML tells of this machine's NVIDIA GPUs, where ``nvidia-ml-py`` is installed and a driver is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any


class Gpus:
    """The machine's GPUs; none where NVML, its driver or a device is missing. What one of them cannot tell is left out."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        with suppress(ImportError):
            self._nvml = import_module("pynvml")
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlInit()
                self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(at) for at in range(self._nvml.nvmlDeviceGetCount())]

    def measure(self) -> Iterator[tuple[str, float]]:
        """Yield the largest of each measure among them."""
        if not self._handles:
            return
        nvml = self._nvml
        measures: dict[str, Callable[[Any], Any]] = {
            "gpu_used_ratio": lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_memory_used_ratio": lambda handle: _share(nvml.nvmlDeviceGetMemoryInfo(handle)),
            "gpu_temperature_celsius": lambda handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        for name, ask in measures.items():
            told: list[float] = []
            for handle in self._handles:
                with suppress(nvml.NVMLError):
                    told.append(float(ask(handle)))
            if told:
                yield name, max(told)


def _share(memory: Any) -> float:
    return float(memory.used / memory.total)
