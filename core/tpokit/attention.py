"""Attention of language models of transformers: its implementation, and rows of several samples."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from tpokit.batch import SequenceIndex

_FLASH = "flash_attention_2"


def chosen_attention(wanted: str, dtype: torch.dtype | None) -> str:
    """An implementation of attention by transformers' name.

    Args:
        wanted: One of these names, or ``auto``: flash attention on a GPU with weights of 16 bits,
            if it is installed, otherwise ``sdpa``.
        dtype: Of the weights; ``None``: not known.
    """
    if wanted != "auto":
        return wanted
    short = dtype in (torch.bfloat16, torch.float16)
    return _FLASH if short and torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def tells_samples_apart(llm: Any) -> bool:
    """Whether a language model keeps samples in one row apart if positions begin again with each.

    Those of transformers do whose attention can be exchanged (they make their masks from positions)
    and that carry no state along a row, as recurrent ones do.
    """
    return bool(llm._supports_attention_backend) and not llm._is_stateful


def attention_ends(llm: Any, sequences: SequenceIndex | None) -> dict[str, Any]:
    """What a language model is told besides positions: flash attention makes no mask, it wants to
    know where samples end, and would else ask the GPU in every layer.

    Args:
        llm: As above.
        sequences: Of the batch; ``None`` in generation.
    """
    if sequences is None or llm.config._attn_implementation != _FLASH:
        return {}
    return {
        "cu_seq_lens_q": sequences.bounds,
        "cu_seq_lens_k": sequences.bounds,
        "max_length_q": sequences.longest,
        "max_length_k": sequences.longest,
    }
