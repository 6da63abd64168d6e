"""Which precision the detector computes in under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch


@cache
def bfloat16_is_emulated() -> bool:
    """Whether this CPU has no instructions for bfloat16: then its products of matrices take several
    times as long as those of float32. False where torch cannot tell.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return capabilities.get("architecture") == "x86_64" and not any(
        capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")
    )


def float32_where_bfloat16_is_emulated(device: torch.device) -> AbstractContextManager[object]:
    """No autocast to bfloat16 on a CPU that only emulates it: float32 is as exact and quicker."""
    if (
        device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and bfloat16_is_emulated()
    ):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()
