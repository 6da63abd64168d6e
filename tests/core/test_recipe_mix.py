"""``mix:`` in its three forms, and what is said of each wrong one."""

import copy

import pytest

from tests.core.test_recipe import PLAIN, problems
from tpokit.recipe import difference, parse_recipe
from tpokit.recipe_mix import MixGroup, MixPlan

MIX = "stages[0].mix"
TWICE = "'chat' stands twice in this mix (first at stages[0].mix."
MUST_BE_1 = "they must add up to 1"


def with_mix(mix, **changes):
    plain = copy.deepcopy(PLAIN)
    plain["stages"][0].update(mix=mix, **changes)
    return plain


@pytest.mark.parametrize(
    ("mix", "plan"),
    [
        (
            {"grounding": 0.25, "chat": 0.75},
            MixPlan(
                (MixGroup("chat", 0.75, ("chat",)), MixGroup("grounding", 0.25, ("grounding",)))
            ),
        ),
        (
            {"of": ["grounding", "chat"], "temperature": 3, "caps": {"chat": 5}},
            MixPlan(
                (
                    MixGroup("chat", None, ("chat",), caps={"chat": 5}),
                    MixGroup("grounding", None, ("grounding",), caps={"chat": 5}),
                ),
                temperature=3.0,
            ),
        ),
        (
            {"all": {"share": 1, "of": {"grounding": 0.2, "chat": 0.8}}},
            MixPlan((MixGroup("all", 1.0, ("chat", "grounding"), (0.8, 0.2)),)),
        ),
        (
            {"b": {"of": ["chat"], "temperature": 2}, "a": {"of": ["grounding"]}},
            MixPlan(
                (
                    MixGroup("a", None, ("grounding",)),
                    MixGroup("b", None, ("chat",), temperature=2.0),
                )
            ),
        ),
    ],
)
def test_every_form_becomes_the_same_plan_and_survives_a_dump(mix, plan):
    recipe = parse_recipe(with_mix(mix))
    assert recipe.stages[0].plan == plan
    again = parse_recipe(recipe.dump())
    assert again.stages[0].plan == plan
    assert difference(recipe, again) == []


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ({"chat": 0.7}, {MIX: f"shares add up to 0.7, {MUST_BE_1}"}),
        ({"chat": 0}, {f"{MIX}.chat": "0 must be more than 0"}),
        ({"chat": "much"}, {f"{MIX}.chat": "'much' is not a number"}),
        (["chat"], {MIX: "['chat'] is not a mapping (key: value)"}),
        ({}, {MIX: "must not be empty"}),
        ({"of": []}, {f"{MIX}.of": "must not be empty"}),
        ({"of": "chat"}, {f"{MIX}.of": "'chat' is not a list"}),
        ({"of": ["chat"], "temperature": 0}, {f"{MIX}.temperature": "0 must be more than 0"}),
        (
            {"of": ["chat"], "tempratur": 2},
            {
                f"{MIX}.tempratur": "no such key; did you mean 'temperature'? "
                "(known: caps, of, temperature)"
            },
        ),
        (
            {"of": ["chat", "chat", "grnding"], "caps": {"cht": 3}},
            {
                f"{MIX}.of[1]": f"{TWICE}of[0])",
                f"{MIX}.of[2]": "no data entry 'grnding'; did you mean 'grounding'? "
                "(there are: chat, grounding)",
                f"{MIX}.caps.cht": "no such entry in 'of'; did you mean 'chat'? "
                "(there are: chat, grnding)",
            },
        ),
        (
            {"chat": 0.5, "boxes": {"share": 0.5, "of": {"chat": 0.5, "grounding": 0.4}}},
            {
                f"{MIX}.boxes.of": f"shares add up to 0.9, {MUST_BE_1}",
                f"{MIX}.boxes.of.chat": f"{TWICE}chat)",
            },
        ),
        (
            {"boxes": {"share": 1, "of": {"chat": 1}, "temperature": 2}},
            {f"{MIX}.boxes.temperature": "goes with names alone; the shares in 'of' are written"},
        ),
        (
            {"boxes": {"of": ["grounding"]}, "chat": 0.5},
            {MIX: "boxes without a share: give one to all lines of a mix, or to none"},
        ),
        ({"boxes": {"share": 1}}, {f"{MIX}.boxes.of": "must be given"}),
    ],
)
def test_every_wrong_form_is_named_by_its_path(mix, expected):
    assert problems(with_mix(mix)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": None}, {"stages[0].steps": "must be given, or epochs in its place"}),
        (
            {"epochs": 2},
            {"stages[0].steps": "the stage has epochs, too; one of both must go (or be null)"},
        ),
        ({"epochs": 0, "steps": None}, {"stages[0].epochs": "0 must be more than 0"}),
    ],
)
def test_a_stage_has_either_steps_or_epochs(changes, expected):
    assert problems(with_mix({"chat": 1.0}, **changes)) == expected
