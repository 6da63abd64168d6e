"""Names of the parameters of a released CG-DETR, and ours, both ways.

Source: wjun0830/CGDETR (entry ``model`` of a checkpoint); OpenGVLab/TPO (prefix ``cg_model.``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from tpokit.errors import CheckpointError
from tpokit_temporal.options import TemporalOptions

UNUSED = (
    "txt_position_embed.position_embeddings.weight",
    "txt_position_embed.LayerNorm.weight",
    "txt_position_embed.LayerNorm.bias",
    "txt_proj_linear.LayerNorm.weight",
    "txt_proj_linear.LayerNorm.bias",
    "txt_proj_linear.net.1.weight",
    "txt_proj_linear.net.1.bias",
)
"""Released parameters that no result depends on; we have none of them."""

_PREFIXES = ("cg_model.", "module.")
_SINGLE = {
    "global_rep_token": "global_token.pool",
    "global_rep_pos": "global_token.position",
    "moment_rep_token": "aligner.moment.token",
    "moment_rep_pos": "aligner.moment.position",
    "sent_rep_token": "aligner.sentence.token",
    "sent_rep_pos": "aligner.sentence.position",
    "dummy_rep_token": "dummies",
    "dummy_rep_pos": "dummy_positions",
    "token_type_embeddings.weight": "token_types",
    "query_embed.weight": "moment_queries",
}
_PAIRS = {  # of weight and bias
    "class_embed": "class_output",
    "saliency_proj1": "saliency_clips",
    "saliency_proj2": "saliency_video",
    "transformer.decoder.norm": "decoder.norm",
}
_FEED_FORWARD = {
    "linear1.weight": "feed_forward.first.weight",
    "linear1.bias": "feed_forward.first.bias",
    "activation.weight": "feed_forward.slope",
    "linear2.weight": "feed_forward.second.weight",
    "linear2.bias": "feed_forward.second.bias",
}
_TEXT_TO_CLIPS_PAIRS = {
    "self_attn.out_proj": "output",
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
}
_ENCODER_SINGLE = {
    "self_attn.in_proj_weight": "projection.weight",
    "self_attn.in_proj_bias": "projection.bias",
}
_DECODER_PAIRS = {
    "sa_qcontent_proj": "self_attention.query_content",
    "sa_qpos_proj": "self_attention.query_position",
    "sa_kcontent_proj": "self_attention.key_content",
    "sa_kpos_proj": "self_attention.key_position",
    "sa_v_proj": "self_attention.value",
    "self_attn.out_proj": "self_attention.output",
    "norm1": "self_attention_norm",
    "ca_qcontent_proj": "clip_attention.query_content",
    "ca_qpos_proj": "clip_attention.query_position",
    "ca_qpos_sine_proj": "clip_attention.query_place",
    "ca_kcontent_proj": "clip_attention.key_content",
    "ca_kpos_proj": "clip_attention.key_place",
    "ca_v_proj": "clip_attention.value",
    "cross_attn.out_proj": "clip_attention.output",
    "norm2": "clip_attention_norm",
    "norm3": "feed_forward_norm",
}
_FIRST_LAYER_ONLY = "ca_qpos_proj"


def _both(pairs: Mapping[str, str]) -> dict[str, str]:
    """Weight and bias of each module."""
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in pairs.items()
        for kind in ("weight", "bias")
    }


def _below(theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{their}": f"{ours}.{our}" for their, our in names.items()}


def _layers(
    theirs: str, ours: str, names: Mapping[str, str], indices: Iterable[int]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for index in indices:
        found |= _below(f"{theirs}.layers.{index}", f"{ours}.{index}", names)
    return found


def _mlp(theirs: str, ours: str, depth: int) -> dict[str, str]:
    """Ours has a ReLU, which counts, between linear layers."""
    return _both({f"{theirs}.layers.{index}": f"{ours}.{2 * index}" for index in range(depth)})


def our_names(options: TemporalOptions) -> dict[str, str]:
    """Released name, without prefix, to ours, for each parameter of a `Detector` with options."""
    text_to_clips = _FEED_FORWARD | _both(_TEXT_TO_CLIPS_PAIRS)
    encoder = text_to_clips | _ENCODER_SINGLE
    first = _FEED_FORWARD | _both(_DECODER_PAIRS)
    later = {name: ours for name, ours in first.items() if not name.startswith(_FIRST_LAYER_ONLY)}
    names = dict(_SINGLE) | _both(_PAIRS)
    names |= _layers(
        "transformer.t2v_encoder",
        "text_to_clips",
        text_to_clips,
        range(options.text_to_clips_layers),
    )
    for theirs, ours, depth in (
        ("txtproj_encoder", "dummy_encoder", options.dummy_layers),
        ("scls_encoder", "aligner.sentence_encoder", options.sentence_layers),
        ("transformer.mcls_encoder", "aligner.moment_encoder", options.moment_layers),
        ("transformer.encoder", "encoder", options.encoder_layers),
    ):
        names |= _layers(theirs, ours, encoder, range(depth))
    decoder = "transformer.decoder", "decoder.layers"
    names |= _layers(*decoder, first, [0]) | _layers(
        *decoder, later, range(1, options.decoder_layers)
    )
    names |= _mlp("span_embed", "moment_output", 3)
    names |= _mlp("transformer.decoder.ref_point_head", "decoder.moment_to_position", 2)
    names |= _mlp("transformer.decoder.ref_anchor_head", "decoder.content_to_width", 2)
    if options.decoder_layers > 1:
        names |= _mlp("transformer.decoder.query_scale", "decoder.content_to_scale", 2)
        names |= _mlp("transformer.decoder.bbox_embed", "decoder.correction", 3)
    block = _both({"LayerNorm": "norm", "net.1": "linear"})
    for theirs, ours in (
        ("input_txt_proj", "word_projection"),
        ("input_vid_proj", "clip_projection"),
    ):
        for index in range(options.projection_layers):
            names |= _below(f"{theirs}.{index}", f"{ours}.{index}", block)
    return names


def from_released(tensors: Mapping[str, Tensor], options: TemporalOptions) -> dict[str, Tensor]:
    """Released parameters under our names, for ``load_state_dict``.

    Args:
        tensors: By released name, with or without ``cg_model.`` or ``module.``.
        options: Of the detector that they are for.

    Raises:
        CheckpointError: A parameter is missing, or there is one that the options do not foresee.
    """
    found = {_without_prefix(name): tensor for name, tensor in tensors.items()}
    names = our_names(options)
    missing = [name for name in names if name not in found]
    unknown = [name for name in found if name not in names and name not in UNUSED]
    if missing or unknown:
        raise CheckpointError(
            f"not the parameters of a CG-DETR with these options: {_some('missing', missing)}"
            f"{'; ' if missing and unknown else ''}{_some('unknown', unknown)}"
        )
    return {ours: found[theirs] for theirs, ours in names.items()}


def to_released(tensors: Mapping[str, Tensor], options: TemporalOptions) -> dict[str, Tensor]:
    """Our parameters under their released names, without prefix and without the `UNUSED` ones."""
    return {theirs: tensors[ours] for theirs, ours in our_names(options).items()}


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(sorted(names)[:3])}{more}"
