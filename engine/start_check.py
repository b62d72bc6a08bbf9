"""The start check of a configuration, before torch is imported: model, device, sizes.

Only what is certain is refused here; the rest shows when the engine is built.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.engine.errors import ModelNotFound, RequestRejected
from tokenbus.engine.model_folder import broken_if, refuse_outside
from tokenbus.engine.weights.checkpoint import shards
from tokenbus.engine.weights.config_check import refuse_counts
from tokenbus.engine.weights.model_place import locate

if TYPE_CHECKING:
    from tokenbus.engine.config import EngineConfig

# Kinds of device that torch has besides these are left to torch.
_DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu|hpu|npu|meta)(:(\d{1,3}))?", re.ASCII)
# Tokens of a page by default, as the backends have them.
_CPU_PAGE, _GPU_PAGE = 16, 64
# They hold no job.
SCRATCH_PAGES = 1
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_start(config: EngineConfig, *, job_tokens: int) -> None:
    """Refuse what cannot run here, within a fraction of a second.

    `job_tokens` are those of a job that leaves all to the defaults: the pages have to hold one.
    Raises: ModelNotFound for a model that is neither here nor can be fetched; ModelBroken for a
        folder that lacks files or has a config that nobody can read; RequestRejected for a setting
        that the device, the machine or another setting rules out.
    """
    _check_device(config.device)
    _check_formats(config)
    if config.num_pages is not None:
        page_size = config.page_size or _page_size(config.device)
        most = job_tokens if config.max_model_len is None else config.max_model_len
        check_pages(config.num_pages, page_size, min(job_tokens, most))
    _check_model(config)


def check_pages(num_pages: int, page_size: int, job_tokens: int) -> None:
    """Refuse pages that cannot hold a job of so many tokens.

    Raises: RequestRejected with how many it takes.
    """
    held_tokens = (num_pages - SCRATCH_PAGES) * page_size
    if held_tokens < job_tokens:
        raise RequestRejected(
            "num_pages",
            f"{num_pages} are too few: beside the scratch page they hold {held_tokens} tokens, and"
            f" a job takes {job_tokens}; at least {-(-job_tokens // page_size) + SCRATCH_PAGES}"
            f" pages of {page_size} tokens will do",
        )


def _page_size(device: str) -> int:
    """Return the tokens of a page where none are asked for, the larger number if in doubt."""
    may_be_gpu = device.startswith("cuda") or (device == "auto" and _why_no_gpu(0) is None)
    return _GPU_PAGE if may_be_gpu else _CPU_PAGE


def _check_device(device: str) -> None:
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise RequestRejected("device", f"{device!r} is not auto, cpu or cuda[:index]")
    if match[1] == "cuda" and (reason := _why_no_gpu(int(match[3] or 0))) is not None:
        raise RequestRejected("device", f"{device}: {reason}")


def visible_gpus() -> tuple[str, ...]:
    """Name the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` does; none in doubt."""
    if _why_no_gpu(0) is not None:
        return ()
    visible = os.environ.get(_VISIBLE)
    if visible is None:
        return tuple(map(str, range(_num_gpus() or 0)))
    return tuple(name.strip() for name in visible.split(",") if name.strip())


def _why_no_gpu(index: int) -> str | None:
    """Say why a GPU cannot be there; None where it may be, which torch then finds out."""
    if not _torch_speaks_to_gpus():
        return "this torch was built without CUDA; install another, or give --device cpu"
    if Path("/dev/kfd").exists():
        return None
    if not _loads("libcuda.so.1"):
        return "this machine has no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    count: int | None
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        named = [name for name in visible.split(",") if name.strip()]
        count = 0 if visible.strip().startswith("-1") else len(named)
        shown = f"{_VISIBLE}={visible!r} shows {count} GPUs"
    else:
        count = _num_gpus()
        shown = f"this machine has {count} GPUs"
    return None if count is None or index < count else shown


def _torch_speaks_to_gpus() -> bool:
    """Read it off torch's files; true where they do not tell."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    try:
        told = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return True
    builds = re.findall(r"^(?:cuda|hip)\b[^=]*= *(.*)$", told, re.MULTILINE)
    return not builds or any(build.strip() != "None" for build in builds)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _num_gpus() -> int | None:
    """Count GPUs by the driver's management library, which makes no context; None if unsure."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    count = ctypes.c_uint(0)
    try:
        if nvml.nvmlInit_v2() != 0:
            return None
        told = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    except AttributeError:
        return None
    return count.value if told == 0 else None


def _check_formats(config: EngineConfig) -> None:
    """Refuse number formats that the named kind of device does not have."""
    on_gpu, on_cpu = config.device.startswith("cuda"), config.device == "cpu"
    if on_cpu and config.kv_cache_dtype != "auto":
        raise RequestRejected("kv_cache_dtype", f"{config.kv_cache_dtype} pages are for GPUs only")
    if on_gpu and config.quantization == "int8":
        raise RequestRejected("quantization", "int8 weights are for CPUs only")


def _check_model(config: EngineConfig) -> None:
    place = locate(config.model)
    if place is None or place.suffix == ".gguf":
        return
    refuse_outside(place)
    with broken_if(place, "config.json"):
        refuse_counts(place)
    if config.random_weights:
        return
    if not any(place.glob("*.safetensors")):
        raise ModelNotFound(f"{place} has a config.json but no *.safetensors weights")
    shards(place)
