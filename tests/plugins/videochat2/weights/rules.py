"""Rules of all plugins for one format, asked together, as the machinery asks them."""

from tests.plugins.videochat2.weights.release import WORDS, write_tokenizer
from tpokit import TaskTokens, TokenTable
from tpokit.interfaces import Published
from tpokit_mask.head import MaskHead
from tpokit_mask.released_weights import MaskReleasedWeights
from tpokit_region.released_weights import RegionReleasedWeights
from tpokit_temporal.head import TOKENS as TEMPORAL
from tpokit_temporal.released_weights import TemporalReleasedWeights
from tpokit_videochat2.tokenizer import load_tokenizer
from tpokit_videochat2.weights.released import VideoChatTpoWeights

TASKS = {
    "mask": MaskHead.tokens,
    "region": TaskTokens("<box_begin>", ("<boxes>",)),
    "temporal": TEMPORAL,
}
RULES = (
    VideoChatTpoWeights,
    RegionReleasedWeights,
    MaskReleasedWeights,
    TemporalReleasedWeights,
)


def table(folder, tasks=tuple(TASKS), rows=WORDS) -> TokenTable:
    """Task tokens of a model with heads for these tasks."""
    tokenizer = load_tokenizer(write_tokenizer(folder))
    return TokenTable.build(rows, {task: TASKS[task] for task in tasks}, tokenizer)


def all_tensors(shapes, tokens) -> dict[str, Published]:
    """Every tensor of the release, by name; each is claimed once."""
    found: dict[str, Published] = {}
    for kind in RULES:
        for tensor in kind.from_published(shapes).tensors(tokens):
            assert tensor.name not in found, tensor.name
            found[tensor.name] = tensor
    return found
