"""Names of the release to ours, written down by hand for the golden files."""

PARTS = {
    "query_tokens": "queries",
    "extra_query_tokens": "extra_queries",
    "vision_layernorm.": "norm.",
    "project_up.": "projection.",
    "qformer.bert.embeddings.LayerNorm.": "qformer.embeddings.layernorm.",
    "qformer.bert.": "qformer.",
}
TEXT_SIDE = ("word_embeddings", "position_embeddings", ".intermediate.", ".output.")


def our_name(released):
    """Of one tensor."""
    for theirs, ours in PARTS.items():
        if released.startswith(theirs):
            name = ours + released.removeprefix(theirs)
            return name.replace("attention.self.", "attention.attention.")
    raise AssertionError(f"{released} is no tensor of the connector")


def connector_state(golden):
    """Weights of a golden file as the connector names them, without the buffer of positions."""
    state = {
        our_name(name.removeprefix("weights.")): value
        for name, value in golden.items()
        if name.startswith("weights.") and not name.startswith("weights.vision_encoder.")
    }
    positions = state.pop("qformer.embeddings.position_ids")
    assert positions.tolist() == [list(range(positions.shape[1]))]
    return state


def without_text_side(state):
    """What a connector without vocabulary has of it."""
    return {
        name: value
        for name, value in state.items()
        if not any(part in name.replace("attention.output", "") for part in TEXT_SIDE)
    }
