"""How much memory a call needs at its peak, beyond what is held before it."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from continuad.errors import ContinuadError

_PROCESS = Path("/proc/self")
_SLACK = 2**22  # bytes; the kernel counts pages per processor and adds them up now and then


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes by which memory rises during `call()`, at most, above what was held before it.

    On CUDA it is the memory that PyTorch's allocator hands out; the CUDA context and the reserve that the
    allocator keeps are not in it. On a CPU it is the resident memory of the whole process (Linux), accurate
    to some hundred kibibytes; call once before, or it includes what libraries set up at first use.

    Raises:
        ContinuadError: it cannot be measured on this device, or by this operating system.
    """
    if device.type == "cuda":
        return _cuda_peak(call, device)
    if device.type == "cpu":
        return _resident_peak(call)
    raise ContinuadError(
        f"Peak memory cannot be measured on the device {device}.", "Measure on cpu or on cuda."
    )


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak(call: Callable[[], object]) -> int:
    _give_back_free_memory()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # VmHWM, the peak, becomes VmRSS, what is resident
        before = _resident("VmRSS")
        was_reset = _resident("VmHWM") <= before + _SLACK
    except OSError as error:
        raise _not_measurable(str(error)) from error
    if not was_reset:
        raise _not_measurable("the kernel does not reset the peak")
    call()
    return max(0, _resident("VmHWM") - before)


def _give_back_free_memory() -> None:
    """Have glibc return what it keeps of freed memory: a call that used it again would not show."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    """Bytes that the kernel states for this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise _not_measurable(f"the kernel does not state {field}")
    return int(found[1]) * 1024


def _not_measurable(why: str) -> ContinuadError:
    return ContinuadError(
        f"The peak memory of this process cannot be measured: {why}.",
        "Measure on Linux, or on a CUDA device.",
    )
