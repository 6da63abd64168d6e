"""Start values for a VideoChat2 that is trained from nothing.

The libraries' own are made for large widths and for towers that come pretrained. At width 128 words
are swamped by what the first layers add to them, and little is learnt of places.
"""

from __future__ import annotations

import torch
from torch import nn

from tpokit_videochat2.vision import VisionTower

_LAST_OF_A_BRANCH = ("o_proj", "down_proj", "out_proj", "dense", "fc2")
"""Names, in LLMs of transformers, of the layers whose output is added to the residual stream."""


def balance(vision: VisionTower, llm: nn.Module, layers: int) -> None:
    """Rescale fresh random weights, in place; draws from torch's global generator.

    - The word table is drawn anew with standard deviation 1, so that a word weighs as much as what
      the layers add to it (for an untied output layer).
    - What a layer adds is scaled by ``1 / sqrt(2 * layers)``, as in GPT-2.

    Args:
        vision: The tower.
        llm: A causal LM of transformers.
        layers: Of the LLM.
    """
    with torch.no_grad():
        llm.get_input_embeddings().weight.normal_()
        for name, module in llm.named_modules():
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _LAST_OF_A_BRANCH:
                module.weight.mul_((2 * layers) ** -0.5)
        for block in vision.blocks:
            for last in (block.self_attn.projection, block.mlp.fc2):
                last.weight.mul_((2 * len(vision.blocks)) ** -0.5)
