"""Rules against a model: each of its numbers is filled once, and what is not used has a reason."""

import pytest
import torch
from accelerate import init_empty_weights

from tests.core.training import tiny
from tests.core.weights import toy
from tests.core.weights.releases import WIDTH, plugins_of, release, table, write_release
from tpokit import AddedProduct, Place, PluginError, Published, TokenTable, TpoModel
from tpokit.weights.comparing import place_faults, unused_rows
from tpokit.weights.importing import check_weights
from tpokit.weights.model_tensors import ModelTensors
from tpokit.weights.rules import FormatRules, HeadRules


class Tied(tiny.TinyBackbone):
    """Its output layer is its word table."""

    def __init__(self, options):
        super().__init__(options)
        self.words.weight = self.table.weight


def model(kind=tiny.TinyBackbone, empty=True):
    with init_empty_weights() if empty else torch.no_grad():
        backbone = kind(tiny.TinyOptions(width=WIDTH))
        tokens = TokenTable.build(tiny.ROWS, {}, backbone.processor.tokenizer)
        return TpoModel(backbone, {}, tokens)


def vision(*places, shape=(4, 1), name="a"):
    return Published(name, shape, tuple(Place("backbone.vision.weight", *p) for p in places))


def faults(*published):
    found = place_faults(published, ModelTensors(model()))
    return [(kind, text) for kind, text in found if "vision.weight" in text]


def test_a_tensor_may_be_filled_by_rows_of_several():
    assert faults(vision(())) == []
    two = vision(((0, 2), (2, 4)), ((2, 4), (0, 2)))
    assert faults(two) == []
    assert faults(Published("a", (2, 2), (Place("backbone.vision.weight"),))) == []  # reshaped


def test_a_gap_an_overlap_and_another_size_are_told_apart():
    empty = ("of our model left empty", "backbone.vision.weight [4, 1]")
    assert faults() == [empty]
    assert faults(vision(((0, 2), (1, 3)))) == [empty]
    twice = "of our model filled twice"
    assert faults(vision(()), vision(((0, 1), (3, 4)), name="b")) == [
        (twice, "backbone.vision.weight[3:4]")
    ]
    wrong = faults(vision((), shape=(5, 1)))
    assert wrong == [("of another shape", "a [5, 1]: all for backbone.vision.weight of [4, 1]")]
    beyond = faults(vision(((3, 5), (0, 2)), ((0, 2), (2, 4))))
    assert beyond[0][0] == "of another shape"


def test_a_place_that_the_model_has_not_is_named():
    found = list(place_faults([Published("a", (1,), (Place("x.y"),))], ModelTensors(model())))
    assert ("without their place in our model", "a (for x.y)") in found


def test_rows_that_go_nowhere_are_found():
    product = AddedProduct("backbone.vision.weight", (0, 1), "a", (5, 6), "b", 1.0)
    one = Published("a", (8, 2), (Place("x", (1, 3)), Place("y", (2, 4))))
    assert unused_rows(one, [product]) == [(0, 1), (4, 5), (6, 8)]
    assert unused_rows(Published("b", (2, 2)), [product]) == []
    assert unused_rows(Published("c", ()), []) == [(0, 1)]


def test_what_is_not_used_must_have_a_reason(tmp_path, monkeypatch):
    write_release(tmp_path / "release", release())
    plugins = plugins_of(tmp_path)
    rules = plugins.factory(plugins.spec("weights", "toy_backbone"))
    tensors = rules.tensors

    def silent(self, tokens):
        for one in tensors(self, tokens):
            yield Published("old.proj", (3, 3)) if one.name == "old.proj" else one

    monkeypatch.setattr(rules, "tensors", silent)
    with pytest.raises(PluginError, match=r"do not say why old\.proj\[0:3\] is not used"):
        check_weights(tmp_path / "release", plugins=plugins)


def test_a_tensor_that_two_plugins_claim_is_refused():
    heads = {"point": HeadRules("point", toy.PointRules(WIDTH, 3), tiny.PointHead.tokens)}
    own = toy.PointRules(WIDTH, 3)
    both = {**heads, "other": HeadRules("other", own, tiny.PointHead.tokens)}
    rules = FormatRules("toy_release", "toy", toy.ToyRules(WIDTH), both, {})
    with pytest.raises(
        PluginError, match=r"of head 'point' and of head 'other' both claim point\."
    ):
        rules.tensors(table(), None)


@pytest.mark.parametrize("empty", [True, False])
def test_tensors_that_a_model_shares_are_one_and_stay_one(empty):
    tied = model(Tied, empty)
    ours = ModelTensors(tied)
    name = "backbone.table.weight"
    assert ours.name("backbone.words.weight") == name
    assert "backbone.words.weight" not in ours.shapes
    assert (ours.part(name), ours.part("bridge.input.weight")) == ("llm", "bridge")
    ours.put(name, torch.ones(tiny.ROWS, WIDTH))
    assert tied.backbone.words.weight is tied.backbone.table.weight
    assert float(tied.backbone.words.weight.sum()) == tiny.ROWS * WIDTH
