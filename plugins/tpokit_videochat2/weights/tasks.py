"""The seven task tokens of VideoChat-TPO: rows of its word table and output layer, and its three
slot vectors.

There they are the last words of a resized vocabulary; here they have rows of their own in the
bridge (see `tpokit.bridge`). Source: OpenGVLab/TPO, modeling_videochate.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from tpokit import TokenTable
from tpokit.errors import UsageError
from tpokit.interfaces import AddedProduct, Place, Published
from tpokit_videochat2.weights.sizes import SCALE, LlmSizes, LoraSizes

TOKENS = (
    *("<box_begin>", "<time_begin>", "<temp>", "<boxes>"),
    *("<track_begin>", "<tracking>", "<track_box>"),
)
"""In the order of their ids, behind the words."""
_TRIGGERS = ("<box_begin>", "<time_begin>", "<track_begin>")
_SLOTS = {"box_token": "<boxes>", "temporal_token": "<temp>", "track_token": "<tracking>"}
"""Published name of the learnt vector of each slot."""

_NO_HEAD = "the model has no head with the token {}"
_WRITTEN_OVER = "rows of slots and of <track_box> are always written over"
_NEVER_ASKED = "rows of slots and of <track_box> are never predicted"


def check_tokens(tokens: TokenTable) -> None:
    """See that the format has a place for all task tokens of a model.

    Raises:
        UsageError: It has none for one of them.
    """
    known = {*_TRIGGERS, *_SLOTS.values()}
    for task, own in tokens.tasks.items():
        unknown = [token for token in (own.trigger, *own.slots) if token not in known]
        if unknown:
            raise UsageError(
                f"the format videochat_tpo has no place for the token {unknown[0]} of heads.{task};"
                f" it holds one trigger and one slot of each task: {', '.join(TOKENS)}"
            )


def slot_tensors(width: int, tokens: TokenTable) -> Iterator[Published]:
    """The learnt vectors of slots."""
    for name, slot in _SLOTS.items():
        shape = (1, 1, width)
        if slot in tokens.ids:
            row = tokens.ids[slot] - tokens.rows
            yield Published(name, shape, (Place("bridge.input.weight", our_rows=(row, row + 1)),))
        else:
            yield Published(name, shape, unused=_NO_HEAD.format(slot), optional=True)


def word_table(name: str, sizes: LlmSizes, tokens: TokenTable) -> Published:
    """The input embedding: words to the LLM, triggers to the bridge."""
    places = [Place("backbone.llm.model.embed_tokens.weight", rows=(0, sizes.words))]
    for trigger, row in _trigger_rows(sizes.words, tokens):
        our = tokens.ids[trigger] - tokens.rows
        places.append(Place("bridge.input.weight", (row, row + 1), (our, our + 1)))
    shape = (sizes.words + len(TOKENS), sizes.width)
    return Published(name, shape, tuple(places), unused=_unused(_WRITTEN_OVER, tokens))


def output_table(name: str, sizes: LlmSizes, tokens: TokenTable) -> Published:
    """The output layer, likewise."""
    places = [Place("backbone.llm.lm_head.weight", rows=(0, sizes.words))]
    for trigger, row in _trigger_rows(sizes.words, tokens):
        our = tokens.triggers.index(trigger)
        places.append(Place("bridge.output.weight", (row, row + 1), (our, our + 1)))
    shape = (sizes.words + len(TOKENS), sizes.width)
    return Published(name, shape, tuple(places), unused=_unused(_NEVER_ASKED, tokens))


def output_adapter(name: str, sizes: LlmSizes, lora: LoraSizes) -> Published:
    """The rows of the output layer's adapter; those of triggers are taken in, see `added`."""
    place = Place("backbone.llm.lm_head.lora_B.default.weight", rows=(0, sizes.words))
    shape = (sizes.words + len(TOKENS), lora.rank)
    why = f"rows of triggers are added to those of the bridge; {_NEVER_ASKED}"
    return Published(name, shape, (place,), unused=why)


def added(left: str, right: str, words: int, tokens: TokenTable) -> Iterator[AddedProduct]:
    """What the output layer's adapter does to the rows of triggers.

    Args:
        left, right: Published names of its two matrices.
        words: Of the LLM.
        tokens: Of the model.
    """
    for trigger, row in _trigger_rows(words, tokens):
        our = tokens.triggers.index(trigger)
        yield AddedProduct(
            "bridge.output.weight", (our, our + 1), left, (row, row + 1), right, SCALE
        )


def _trigger_rows(words: int, tokens: TokenTable) -> Iterator[tuple[str, int]]:
    """Triggers of the model and their published rows."""
    for trigger in _TRIGGERS:
        if trigger in tokens.triggers:
            yield trigger, words + TOKENS.index(trigger)


def _unused(why: str, tokens: TokenTable) -> str:
    absent = [trigger for trigger in _TRIGGERS if trigger not in tokens.triggers]
    return "; ".join([why, *(_NO_HEAD.format(trigger) for trigger in absent)])
