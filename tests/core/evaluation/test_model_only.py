"""A saved model whose recipe does not say how it was trained can be asked and scored."""

import pytest
import yaml

from tests.composed import samples, tiny_folder
from tpokit import RecipeError, UsageError, load, load_recipe
from tpokit.checkpoints.store import fill_model
from tpokit.evaluation import runner
from tpokit.evaluation.runner import evaluate_run
from tpokit.inference import predictor
from tpokit.model import build_model
from tpokit.plugins import Plugins
from tpokit.recipe import parse_recipe


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder such as another project's weights become."""
    folder = tmp_path_factory.mktemp("imported")
    tiny_folder(folder)
    plain = {
        "recipe": 1,
        "name": "imported",
        "backbone": {
            "plugin": "llava_onevision",
            "options": {"model": "tiny", "weights": "random"},
        },
        "heads": {"region": {"plugin": "region"}},
        "decoding": {"slots": "before_trigger"},
        "folder": ".",
    }
    plugins = Plugins.load()
    recipe = parse_recipe(plain, folder=folder, plugins=plugins, model_only=True)
    model = build_model(recipe, plugins)
    about = {"base": model.backbone.identity(), "stage": "", "modes": {}}
    fill_model(model, folder, yaml.safe_dump(plain), ["bridge", "region"], about)
    return folder


@pytest.fixture
def other(tmp_path):
    """A recipe whose data lie beside it."""
    world = {"source": "shapes_world", "options": {"folder": "media", "scenes": 4}}
    plain = {
        "recipe": 1,
        "name": "other",
        "data": {"shapes": world},
        "evaluate": {"data": ["shapes"], "samples": 50, "max_new_tokens": 2},
    }
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "other.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture
def orders(monkeypatch):
    """In which orders slots were fed."""
    heard = []

    class Heard(runner.Predictor):
        def __init__(self, *rest):
            super().__init__(*rest)
            heard.append(self._slots)

    monkeypatch.setattr(runner, "Predictor", Heard)
    return heard


def test_it_can_be_asked_in_the_order_of_its_recipe_or_another(imported, tmp_path, monkeypatch):
    heard = []

    def generate(model, batch, budget, slots, lockstep):
        heard.append(slots)
        return write(model, batch, budget, slots, lockstep)

    write = predictor.generate
    monkeypatch.setattr(predictor, "generate", generate)
    (sample,) = samples(tmp_path, 1, kinds={"region": 1.0})
    asked = sample.turns[0].text, [sample.media[0].path]
    assert load(imported).ask(*asked, max_new_tokens=3).media[0].width == 64
    load(imported, slots="after_trigger").ask(*asked, max_new_tokens=3)
    assert heard == ["before_trigger", "after_trigger"]


def test_it_is_scored_on_the_data_of_another_recipe(imported, other, orders):
    report = evaluate_run(imported, ["evaluate.samples=3"], scored_on=other)
    assert report.samples == {"shapes": 3}
    assert "trigger_accuracy" in report.scores
    assert list((other.parent / "media").iterdir())  # where the other recipe lies
    evaluate_run(imported, ["evaluate.samples=1", "decoding.slots=after_trigger"], scored_on=other)
    assert orders == ["before_trigger", "after_trigger"]


def test_without_another_recipe_there_is_nothing_to_score_on(imported):
    with pytest.raises(UsageError, match=r"has no evaluate: section; .* by --recipe"):
        evaluate_run(imported)


def test_it_is_no_recipe_that_could_be_trained(imported):
    with pytest.raises(RecipeError) as told:
        load_recipe(imported / "recipe.yaml")
    missing = {problem.path: problem.message for problem in told.value.problems}
    assert missing == dict.fromkeys(("output", "data", "stages"), "must be given")
