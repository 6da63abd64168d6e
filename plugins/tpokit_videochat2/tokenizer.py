"""Tokenizers of VideoChat2 models: from a SentencePiece model, and from a folder.

The releases tokenise the old ("legacy") way of Llama and Mistral: text is cut at special tokens,
and every part gets a blank in front. transformers 5 rebuilds such tokenizers with other rules, even
where a ``tokenizer.json`` says otherwise (the lone blank in front of a part that starts with one
gets lost), so the file is loaded as it is here, and never through ``AutoTokenizer``.

Source: OpenGVLab/TPO, whose tokenizer is transformers' ``LlamaTokenizer`` (legacy) of release 4.38.
We differ: a fast tokenizer with the same ids, which says where its tokens stand in a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from tpokit.errors import CheckpointError

_BLANK = "\u2581"
"""How SentencePiece writes a blank."""
_TOKENIZER_FILE = "tokenizer.json"
_SETTINGS_FILE = "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token")
_PROBES = (
    "Where is the red cup?",
    "  two  blanks, [INST] 23.5-27.0 s [/INST]\nA/B \t(C)",
    "Caf\u00e9 \u6f22\u5b57 \U0001f916 \ufb01 \u00bd",  # accents, bytes, compatibility forms
)


def convert_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a SentencePiece model, with the release's rules for blanks.

    Args:
        path: ``tokenizer.model`` of a Llama, Vicuna or Mistral.

    Raises:
        CheckpointError: The file is missing or broken, or its model is of another kind.
    """
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as cause:
        raise CheckpointError(f"{path} is no SentencePiece model: {cause}") from cause
    inner = Tokenizer(_model_of(pieces))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace(_BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = {"unk_token": pieces.unk_id(), "bos_token": pieces.bos_id()}
    names |= {"eos_token": pieces.eos_id(), "pad_token": pieces.pad_id()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        clean_up_tokenization_spaces=False,
        **{name: pieces.id_to_piece(index) for name, index in names.items() if index >= 0},
    )
    for probe in _PROBES:
        if tokenizer(probe, add_special_tokens=False)["input_ids"] != pieces.encode(probe):
            raise CheckpointError(
                f"{path}: its model is none as Llama and Mistral have it (BPE with bytes for "
                f"unknown characters, texts as they are): {probe!r} becomes other tokens"
            )
    return tokenizer


def _model_of(pieces: Any) -> models.BPE:
    """Pieces in the order of their ids; two are merged the earlier, the higher the score."""
    count = pieces.get_piece_size()
    scores = {pieces.id_to_piece(index): pieces.get_score(index) for index in range(count)}
    vocabulary = {piece: index for index, piece in enumerate(scores)}
    return models.BPE(
        vocabulary,
        generate_merges(vocabulary, scores),
        unk_token=pieces.id_to_piece(pieces.unk_id()),
        fuse_unk=True,
        byte_fallback=True,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, exactly as its ``tokenizer.json`` says.

    Args:
        folder: With ``tokenizer.json`` and ``tokenizer_config.json``, which names the special
            tokens.

    Raises:
        CheckpointError: A file is missing or broken; the message names it.
    """
    path, settings = folder / _TOKENIZER_FILE, _read_settings(folder / _SETTINGS_FILE)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the folder of a model has its tokenizer in it")
    named = {name: _token_text(settings[name]) for name in _SPECIAL if settings.get(name)}
    named |= {name: settings[name] for name in ("model_max_length",) if settings.get(name)}
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(path), clean_up_tokenization_spaces=False, **named
        )
    except Exception as cause:  # the library's own reader raises nothing narrower
        raise CheckpointError(f"{path} is broken: {cause}") from cause


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise CheckpointError(
            f"{path} is missing; it names the special tokens of the tokenizer"
        ) from cause
    except ValueError as cause:
        raise CheckpointError(f"{path} is broken: {cause}") from cause
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is broken: it must be a JSON object")
    return settings


def _token_text(entry: Any) -> str:
    """A special token, written as a text or, by older releases, as an object with its content."""
    return str(entry["content"] if isinstance(entry, dict) else entry)
