"""Files of VideoChat2 as its own training writes them, from the tiny golden release, and the LLM
that they lack.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from tests.plugins.videochat2.released_bridge import WEIGHTS, WORDS, tiny_folder
from tests.plugins.videochat2.weights.release import write_tokenizer

_LM = "lm.base_model.model."
_HEADS = ("loc_", "track_", "sam.", "box_token", "temporal_token", "lm.")


def stage(number, family="mistral"):
    """Tensors of stage 2 (no adapters) or 3."""
    tensors = {
        name.replace("project_up", f"{family}_proj"): tensor
        for name, tensor in WEIGHTS.items()
        if not name.startswith(_HEADS)
    }
    if number == 3:
        adapters = {name: tensor for name, tensor in WEIGHTS.items() if ".lora_" in name}
        for name, tensor in adapters.items():
            rows = tensor[:WORDS] if "lm_head.lora_B" in name else tensor
            tensors[name.replace("lm.", f"{family}_model.", 1)] = rows
    return tensors


def llm_tensors():
    """Of the base LLM, by transformers' names."""
    return {
        name.removeprefix(_LM).replace(".base_layer", ""): tensor[:WORDS].clone()
        if "embed_tokens" in name or "lm_head" in name
        else tensor
        for name, tensor in WEIGHTS.items()
        if name.startswith(_LM) and ".lora_" not in name
    }


def write_llm(folder: Path, words=WORDS) -> Path:
    """The base LLM as the hub has it."""
    config = json.loads((tiny_folder(folder / "tiny") / "videochat2.json").read_text())["llm"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(llm_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return write_tokenizer(folder, words)
