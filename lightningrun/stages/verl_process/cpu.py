"""verl on a machine without an accelerator: a platform whose device is the CPU.

Ray is told of logical GPUs, so that verl's placement is as ever. Three things of verl expect another device: process
groups, which it opens as ``cpu:gloo,<device>:<backend>`` (torch refuses a device named twice), critics, which it loads
with flash attention whatever is asked for, and its engines, which have no name for the CPU (``VERL_ENGINE_DEVICE`` is
its own way to take another's).
"""

from __future__ import annotations

import contextlib
import os
import resource
import types
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry, set_platform


def install() -> None:
    """Make the CPU this process's platform. Before verl asks for one."""
    import verl.utils.distributed as distributed
    import verl.utils.model as model

    PlatformRegistry.register(platform="cpu")(CpuPlatform)
    set_platform(CpuPlatform())
    distributed.initialize_global_process_group_ray = open_process_group
    distributed.initialize_global_process_group = _open_and_tell
    model.load_valuehead_model = load_critic
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")


def open_process_group(timeout_second: float | None = None, backend: str | None = None) -> None:
    """verl's ``initialize_global_process_group_ray``, with gloo alone."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend="cpu:gloo",
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            timeout=timedelta(seconds=timeout_second) if timeout_second else None,
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


def _open_and_tell(timeout_second: float = 36000) -> tuple[int, int, int]:
    open_process_group(timeout_second)
    return int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def load_critic(local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool) -> Any:
    """verl's ``load_valuehead_model``, with an attention that a CPU has."""
    from transformers import AutoModelForTokenClassification

    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )


def _peak_bytes(*_: Any, **__: Any) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory(*_: Any, **__: Any) -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


class _Device(types.ModuleType):
    """``torch.cpu``, and the calls of ``torch.cuda`` that verl makes for logs and memory."""

    _SILENT = (
        "empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device", "manual_seed", "manual_seed_all",
        "synchronize", "set_rng_state",
    )  # fmt: skip
    _PEAKS = ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved")

    def __getattr__(self, name: str) -> Any:
        if name in self._SILENT:
            return lambda *_, **__: None
        if name in self._PEAKS:
            return _peak_bytes
        known = {
            "get_rng_state": torch.get_rng_state,
            "mem_get_info": _memory,
            "is_available": lambda: True,
            "get_device_name": lambda *_: "cpu",
        }
        return known[name] if name in known else getattr(torch.cpu, name)


class CpuPlatform(PlatformBase):
    """One logical device, the processor."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _Device("lightningrun_cpu_device")

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> torch.device:  # type: ignore[override]  # torch takes either
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_device(self, device_index: int) -> None: ...
    def synchronize(self, device_index: int | None = None) -> None: ...
    def set_allocator_settings(self, settings: str) -> None: ...
    def empty_cache(self) -> None: ...
    def profiler_start(self) -> None: ...
    def profiler_stop(self) -> None: ...
    def cudart(self) -> None: ...

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False
