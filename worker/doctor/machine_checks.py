"""Checks of this machine: Python, libraries, GPU and driver, and whether kernels compile."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tokenbus.engine.kernel_check import cpu_kernels, gpu_kernels_fault
from tokenbus.producer.release import release
from tokenbus.producer.terminal import say
from tokenbus.worker.doctor.finding import failed, guarded, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.doctor.finding import Finding

MIN_PYTHON = (3, 11)
_WORKER = "pip install 'tokenbus[worker]'"
# What a worker cannot do without, and what it does less well without.
_NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "llguidance", "structlog")


def machine_checks() -> Iterator[Finding]:
    """Look at the machine, from what is quick to what is slow."""
    yield from guarded("python", _python)
    yield from guarded("libraries", _libraries)
    if find_spec("torch") is None:
        yield skipped("torch", "it is not installed: this machine can be a client")
        return
    yield from guarded("torch", _torch)
    yield from guarded("gpu", _gpu)
    yield from guarded("kernels", _kernels)


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < MIN_PYTHON:
        yield failed("python", found, f"use Python {'.'.join(map(str, MIN_PYTHON))} or newer")
    else:
        yield ok(
            "python", f"{found}, {os.cpu_count()} cores, tokenbus {release() or 'from source'}"
        )


def _libraries() -> Iterator[Finding]:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        found = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        yield warning("libraries", found, f"for a worker: {_WORKER}")
        return
    yield ok("libraries", ", ".join(f"{name} {_version(name)}" for name in _NEEDED))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _torch() -> Iterator[Finding]:
    import torch

    built = torch.version.cuda or torch.version.hip
    yield ok(
        "torch", f"{torch.__version__}, built for {f'CUDA {built}' if built else 'CPUs alone'}"
    )


def _gpu() -> Iterator[Finding]:
    import torch

    if not torch.version.cuda and not torch.version.hip:
        yield skipped("gpu", "torch is built for CPUs alone; another build is needed for a GPU")
        return
    if not torch.cuda.is_available():
        yield warning(
            "gpu",
            "torch finds no GPU",
            "is one there (nvidia-smi), is its driver as new as torch's CUDA, and does"
            " CUDA_VISIBLE_DEVICES show it? Without one a worker runs on the CPU",
        )
        return
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = (
            f"{index}: {told.name}, capability {told.major}.{told.minor},"
            f" {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, driver {_driver()}"
        )
        if (told.major, told.minor) < (8, 0):
            yield warning("gpu", found, "kernels are tuned for capability 8.0 and newer")
        elif free < total / 2:
            yield warning("gpu", found, "another process holds its memory: find it with nvidia-smi")
        else:
            yield ok("gpu", found)


def _driver() -> str:
    """Return the version of the driver by its management library, or that it is not told."""
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "not told"
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() != 0:
        return "not told"
    answer = nvml.nvmlSystemGetDriverVersion(text, 96)
    nvml.nvmlShutdown()
    return text.value.decode(errors="replace") if answer == 0 else "not told"


def _kernels() -> Iterator[Finding]:
    import torch

    say("doctor: compiling kernels, which takes up to a minute the first time")
    if torch.cuda.is_available():
        yield from _gpu_kernels()
    yield from _cpu_kernels()


def _gpu_kernels() -> Iterator[Finding]:
    if find_spec("triton") is None:
        yield failed("gpu kernels", "triton is missing", _WORKER)
        return
    fault = gpu_kernels_fault()
    if fault is None:
        yield ok("gpu kernels", f"triton {_version('triton')} compiles and computes as it should")
        return
    yield failed(
        "gpu kernels",
        fault,
        "triton needs a C compiler (gcc) and the headers of this Python (python3-dev); driver,"
        " torch and triton have to fit each other",
    )


def _cpu_kernels() -> Iterator[Finding]:
    folder, why_not = cpu_kernels()
    if folder is not None:
        yield ok("cpu kernels", f"compiled for this processor, kept in {folder}")
        return
    yield warning(
        "cpu kernels",
        why_not,
        "install g++ or clang++; without it a model on the CPU runs at about half the speed",
    )
