import copy
import subprocess
import sys

import pytest
import yaml

from tpokit.errors import RecipeError, UsageError
from tpokit.plugins import Plugins
from tpokit.recipe import (
    difference,
    evaluation_recipe,
    load_recipe,
    open_recipe,
    parse_recipe,
)

STAGE = {
    "name": "assign",
    "train": {"llm": "lora", "bridge": "full"},
    "learning_rate": 1e-3,
    "mix": {"grounding": 0.5, "chat": 0.5},
    "samples_per_step": 64,
    "steps": 100,
}
PLAIN = {
    "recipe": 1,
    "name": "tiny",
    "output": "runs/tiny",
    "backbone": {"plugin": "llava_onevision", "options": {"model": "some/model"}},
    "heads": {"region": {"plugin": "region"}},
    "data": {"grounding": {"source": "shapes_world"}, "chat": {"source": "shapes_world"}},
    "stages": [
        STAGE,
        {
            **STAGE,
            "name": "heads",
            "train": {"bridge": "full", "region": "full", "vision": "frozen"},
        },
    ],
}


@pytest.fixture(scope="module")
def plugins():
    return Plugins.load()


def changed(**changes):
    plain = copy.deepcopy(PLAIN)
    for path, value in changes.items():
        plain[path] = value
    return plain


def problems(plain, overrides=(), plugins=None):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(plain, "recipe.yaml", overrides=overrides, plugins=plugins)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_defaults_are_filled_in():
    recipe = parse_recipe(PLAIN)
    assert (recipe.seed, recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (0, 16, 32, 0)
    assert recipe.stages[0].schedule == "cosine"
    assert recipe.run.engine == "plain"
    assert recipe.evaluate is None
    assert recipe.modes("heads") == {"bridge": "full", "region": "full", "vision": "frozen"}
    assert recipe.rates("heads") == {"bridge": 1e-3, "region": 1e-3}


def test_a_rate_may_be_given_by_part():
    recipe = parse_recipe(
        PLAIN, overrides=["stages.assign.learning_rate={llm: 2e-5, bridge: 1e-4}"]
    )
    assert recipe.rates(recipe.stages[0]) == {"llm": 2e-5, "bridge": 1e-4}


PATTERN = r"self_attn\.(q|v)_proj\.weight"


def test_a_part_may_be_trained_in_part():
    plain = changed()
    plain["stages"][0]["train"]["llm"] = {"mode": "full", "only": PATTERN}
    recipe = parse_recipe(plain)
    assert recipe.modes("assign") == {"llm": "full", "bridge": "full"}
    assert recipe.rates("assign") == {"llm": 1e-3, "bridge": 1e-3}
    assert recipe.stages[0].patterns == {"llm": PATTERN}
    again = parse_recipe(recipe.dump())
    assert again.stages == recipe.stages
    assert difference(parse_recipe(PLAIN), recipe) == [
        "stages[0].train.llm: lora -> (not given)",
        "stages[0].train.llm.mode: (not given) -> full",
        f"stages[0].train.llm.only: (not given) -> {PATTERN}",
    ]


def test_a_head_may_learn_from_slots_that_a_saved_model_brings():
    train = "stages[*].train={region: full}"
    recipe = parse_recipe(PLAIN, overrides=[train, "init_from=../before"])
    assert recipe.init_path == recipe.folder / "../before"
    assert "add bridge: full" in problems(PLAIN, [train])["stages[0].train.region"]
    assert difference(parse_recipe(PLAIN), parse_recipe(PLAIN, overrides=["init_from=a"])) == [
        "init_from: None -> a"
    ]


def test_what_is_missing_to_train_is_named_at_once_and_may_be_missing_in_a_saved_model(plugins):
    plain = changed()
    for section in ("output", "data", "stages"):
        del plain[section]
    missing = dict.fromkeys(("output", "data", "stages"), "must be given")
    assert problems(plain, plugins=plugins) == missing
    recipe = parse_recipe(plain, plugins=plugins, model_only=True)
    assert (recipe.data, recipe.stages) == ({}, ())
    again = parse_recipe(recipe.dump(), plugins=plugins, model_only=True)
    assert again.resolved() == recipe.resolved()


# ---- scoring on another recipe


def other_recipe(folder, **changes):
    folder.mkdir()
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(changed(evaluate={"data": ["chat"]}, **changes)))
    return path


def test_only_data_and_evaluation_of_the_other_recipe_count(tmp_path, plugins):
    model = parse_recipe(changed(decoding={"slots": "before_trigger"}), plugins=plugins)
    path = other_recipe(tmp_path / "there", seed=7, backbone={"plugin": "unknown"}, loraa=1)
    scored = evaluation_recipe(model, path, ["evaluate.samples=3"], plugins)
    assert (scored.evaluate.data, scored.evaluate.samples) == (("chat",), 3)
    assert scored.folder == tmp_path / "there"
    assert scored.data["chat"].options["scenes"] > 0  # checked and resolved by its plugin
    assert (scored.seed, scored.backbone, scored.heads) == (0, model.backbone, model.heads)
    assert scored.decoding.slots == "before_trigger"


def test_mistakes_in_what_counts_of_the_other_recipe_are_named(tmp_path, plugins):
    model = parse_recipe(PLAIN, plugins=plugins)
    path = other_recipe(tmp_path / "there", data={"chatt": {"source": "shapes"}})
    with pytest.raises(RecipeError) as told:
        evaluation_recipe(model, path, [], plugins)
    assert {problem.path for problem in told.value.problems} == {
        "data.chatt.source",
        "evaluate.data[0]",
    }
    with pytest.raises(UsageError, match=r"other.yaml has no data: section, on which"):
        evaluation_recipe(model, other_recipe(tmp_path / "empty", data={}), [], plugins)


# ---- numbers


def test_numbers_in_short_scientific_form_are_numbers():
    text = yaml.safe_dump(PLAIN).replace("0.001", "2e-5")
    assert "2e-5" in text
    assert parse_recipe(text).stages[0].learning_rate == 2e-5
    assert parse_recipe(changed(lora={"alpha": "3e1"})).lora.alpha == 30


def test_the_report_reads_as_documented():
    plain = changed(heads={"region": {"plugin": "regoin"}})
    plain["stages"][1].update(learning_rate="fast", mix={"grounding": 0.6, "chat": 0.6})
    with pytest.raises(RecipeError) as caught:
        parse_recipe(plain, "recipe.yaml", plugins=Plugins.load())
    assert str(caught.value).splitlines() == [
        "recipe.yaml has 3 problems",
        "  heads.region.plugin      no head named 'regoin'; did you mean 'region'? "
        "(installed: mask, region, temporal, temporal_mlp)",
        "  stages[1].learning_rate  'fast' is not a number",
        "  stages[1].mix            shares add up to 1.2, they must add up to 1",
    ]
    assert caught.value.exit_code == 2


def test_fields_sections_and_plugins_are_all_reported_at_once(plugins):
    plain = changed(evaluate={"data": ["chatt"]}, loraa={})
    plain["data"]["chat"]["options"] = {"scnes": 3}
    plain["stages"][0]["steps"] = 0
    found = problems(plain, plugins=plugins)
    assert set(found) == {"loraa", "data.chat.options.scnes", "stages[0].steps", "evaluate.data[0]"}
    assert found["loraa"].startswith("no such key; did you mean 'lora'?")
    assert found["data.chat.options.scnes"].startswith("no such key; did you mean 'scenes'?")
    assert found["stages[0].steps"] == "0 must be at least 1"
    assert found["evaluate.data[0]"].startswith("no data entry 'chatt'; did you mean 'chat'?")


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("stages[0].steps=ten", "stages[0].steps", "'ten' is not a whole number"),
        ("stages[0].steps=2.5", "stages[0].steps", "2.5 is not a whole number"),
        ("stages[0].steps=true", "stages[0].steps", "True is not a number"),
        ("stages[0].warmup=2", "stages[0].warmup", "2 must be at most 1"),
        ("stages[0].clip=.nan", "stages[0].clip", "nan is not a finite number"),
        ("stages[0].learning_rate=0", "stages[0].learning_rate", "0 must be more than 0"),
        ("stages[0].schedule=cosin", "stages[0].schedule", "did you mean 'cosine'?"),
        ("stages[0].train.llm=lorra", "stages[0].train.llm", "did you mean 'lora'?"),
        ("stages[0].train={}", "stages[0].train", "must not be empty"),
        ("stages=[]", "stages", "must not be empty"),
        ("stages[0].stepps=3", "stages[0].stepps", "no such key; did you mean 'steps'?"),
        ("run.engine=zero4", "run.engine", "'zero4' is not 'plain', 'ddp'"),
        ("run.workers=-1", "run.workers", "-1 must be at least 0"),
        ("backbone=7", "backbone", "7 is not a mapping"),
        ("evaluate.before=maybe", "evaluate.before", "'maybe' is not true or false"),
        (
            "stages[0].train.vision=lora",
            "stages[0].train.vision",
            "only llm can be trained with lora",
        ),
        ("stages[0].train.brigde=full", "stages[0].train.brigde", "did you mean 'bridge'?"),
        ("stages[0].train={llm: frozen}", "stages[0].train", "every part is frozen"),
        ("stages[0].train={region: full}", "stages[0].train.region", "add bridge: full"),
        ("stages[0].learning_rate={llm: 1}", "stages[0].learning_rate", "no rate for 'bridge'"),
        (
            "stages[0].learning_rate={llm: 1, bridge: 1, region: 1}",
            "stages[0].learning_rate.region",
            "this stage does not train 'region'",
        ),
        (
            "stages[0].mix={chta: 1}",
            "stages[0].mix.chta",
            "no data entry 'chta'; did you mean 'chat'?",
        ),
        ("stages[1].name=assign", "stages", "two stages have the name 'assign'"),
        ("loss.langage=1", "loss.langage", "no task 'langage'; did you mean 'language'?"),
        ("loss.region=2", "loss.region", "2 must be a mapping such as {weight: 2}"),
        ("loss.language={weight: 1}", "loss.language", "is a single weight"),
        ("loss.assign=-1", "loss.assign", "-1 must be at least 0"),
        ("heads={llm: {plugin: region}}", "heads.llm", "a task cannot be called 'llm'"),
        ("stages=", "stages", "must be given"),
        ("data={}", "data", "must not be empty"),
        ("output=", "output", "must be given"),
        ("init_from=3", "init_from", "3 is not a path"),
        ("decoding.slots=before", "decoding.slots", "did you mean 'before_trigger'?"),
        (
            "stages[1].train.region={mode: full, only: '('}",
            "stages[1].train.region.only",
            "'(' is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            "stages[1].train.region={mode: full, only: ''}",
            "stages[1].train.region.only",
            "must not be empty",
        ),
        (
            "stages[1].train.region={only: inner}",
            "stages[1].train.region.mode",
            "must be given",
        ),
        (
            "stages[1].train.region={mode: full, onyl: inner}",
            "stages[1].train.region.onyl",
            "no such key; did you mean 'only'? (known: mode, only)",
        ),
        (
            "stages[0].train.llm={mode: lora, only: q_proj}",
            "stages[0].train.llm.only",
            "goes with mode full, not with lora",
        ),
        (
            "stages[0].train={llm: {mode: full, only: q_proj}, region: full}",
            "stages[0].train.region",
            "add bridge: full",
        ),
    ],
)
def test_a_mistake_is_named_at_its_place(override, path, message):
    assert message in problems(PLAIN, [override])[path]


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("data.chat.source=shapes", "data.chat.source", "did you mean 'shapes_world'?"),
        ("backbone.plugin=lava", "backbone.plugin", "no backbone named 'lava'"),
        ("loss.region.preset=relase", "loss.region.preset", "did you mean 'release'?"),
        ("loss.region.gio=1", "loss.region.gio", "no loss term 'gio'; did you mean 'giou'?"),
        ("stages[1].loss.region.l3=1", "stages[1].loss.region.l3", "has no loss term 'l3'"),
        ("heads={box: {plugin: region}}", "heads.box.plugin", "does the task 'region'"),
    ],
)
def test_plugins_check_what_concerns_them(override, path, message, plugins):
    assert message in problems(PLAIN, [override], plugins)[path]


# ---- overrides


def test_overrides_by_index_name_and_for_all():
    recipe = parse_recipe(
        PLAIN,
        overrides=[
            "stages[*].steps=7",
            "stages.heads.steps=9",
            "stages[0].mix.chat=0.5",
            "run.workers=2",
        ],
    )
    assert [stage.steps for stage in recipe.stages] == [7, 9]
    assert recipe.run.workers == 2


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("stages[5].steps=1", "stages[5]", "there are only 2"),
        ("stages.asign.steps=1", "stages.asign", "no such entry; did you mean 'assign'?"),
        ("data.caht.options.scenes=1", "data.caht", "no such entry; did you mean 'chat'?"),
        ("name.x=1", "name", "is 'tiny' and has nothing inside"),
        ("run.workrs=1", "run.workrs", "no such key; did you mean 'workers'?"),
        ("runn.workers=1", "runn", "no such key; did you mean 'run'?"),
        ("data[0].source=x", "data", "is a mapping, not a list"),
    ],
)
def test_an_override_without_a_place_is_a_problem(override, path, message):
    assert message in problems(PLAIN, [override])[path]


@pytest.mark.parametrize("override", ["stages", "=3", "a[x]=1", "a..b=1", "a=[1"])
def test_an_override_of_another_form_is_refused(override):
    with pytest.raises(UsageError, match="--set"):
        parse_recipe(PLAIN, overrides=[override])


# ---- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: 1\nname: [a\n", r"recipe.yaml line 3: "),
        (
            "recipe: 1\nseed: 1\nseed: 2\n",
            r"line 3: key 'seed' stands here a second time \(first in line 2\)",
        ),
        ("- a\n", "holds a list; a recipe is a mapping of keys to values"),
        ("", "is empty; a recipe is a mapping"),
        ("name: x\n", "recipe  must be given: the version of the schema, recipe: 1"),
        ("recipe: 2\n", "recipe  schema 2 needs a newer tpokit; this one reads 1"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match="no such recipe: "):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_dumped_recipe_means_the_same_from_elsewhere(tmp_path, plugins):
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run.mkdir()
    (home / "recipe.yaml").write_text(yaml.safe_dump(PLAIN))
    first = load_recipe(home / "recipe.yaml", plugins=plugins)
    (run / "recipe.yaml").write_text(first.dump())
    second = load_recipe(run / "recipe.yaml", plugins=plugins)
    assert second.resolved() == first.resolved()
    assert second.folder.resolve() == home.resolve()
    assert second.dump() == first.dump()
    assert first.data["chat"].options["scenes"] > 0  # options of plugins come with their defaults


def test_a_folder_of_its_own_starts_beside_the_file(tmp_path):
    assert parse_recipe(changed(folder="."), folder=tmp_path).folder == tmp_path
    assert parse_recipe(changed(folder="data"), folder=tmp_path).folder == tmp_path / "data"


def test_a_recipe_may_name_a_registry(tmp_path):
    (tmp_path / "mine.yaml").write_text("version: 1\nblock: [region]\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(registry="mine.yaml")))
    with pytest.raises(RecipeError, match=r"heads\.region\.plugin"):
        open_recipe(path)
    (tmp_path / "empty.yaml").write_text("version: 1\n")
    recipe, found = open_recipe(path, registry=tmp_path / "empty.yaml")
    assert recipe.registry_path == tmp_path / "empty.yaml"
    assert "region" in found.names("head")


# ---- losses


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"l1": 2.0, "mse": 0.0, "giou": 0.2}),
        (["loss.region.preset=paper"], {"l1": 0.0, "mse": 1.0, "giou": 0.0}),
        (["loss.region={weight: 0.5, mse: 3}"], {"l1": 0.0, "mse": 1.5, "giou": 0.0}),
        (["loss.region={preset: release, l1: 1}"], {"l1": 1.0, "mse": 0.0, "giou": 0.2}),
        (["stages.heads.loss.region.weight=0.5"], {"l1": 1.0, "mse": 0.0, "giou": 0.1}),
        (["stages.heads.loss.region.mse=1"], {"l1": 2.0, "mse": 1.0, "giou": 0.2}),
        (["stages.heads.loss.region.preset=paper"], {"l1": 0.0, "mse": 1.0, "giou": 0.0}),
    ],
)
def test_loss_weights_are_weight_times_term(overrides, expected, plugins):
    recipe = parse_recipe(PLAIN, overrides=[*overrides, "loss.assign=3"], plugins=plugins)
    assert recipe.loss_weights("heads") == pytest.approx(
        {"language": 1.0, "assign": 3.0, **{f"region.{k}": v for k, v in expected.items()}}
    )
    again = parse_recipe(recipe.dump(), plugins=plugins)
    assert again.loss_weights("heads") == recipe.loss_weights("heads")


def test_loss_weights_of_an_unresolved_recipe_are_refused():
    with pytest.raises(UsageError, match=r"loss.region: load the recipe with plugins"):
        parse_recipe(PLAIN).loss_weights("assign")


# ---- resuming


def test_difference_names_what_would_train_otherwise(plugins):
    old = parse_recipe(PLAIN, plugins=plugins)
    new = parse_recipe(
        PLAIN,
        overrides=["stages[0].steps=5", "run.workers=4", "run.log_every=1", "run.threads=1"],
        plugins=plugins,
    )
    assert difference(old, new) == ["stages[0].steps: 100 -> 5"]
    assert difference(old, old) == []


def test_reading_a_recipe_does_not_load_torch(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(PLAIN))
    code = (
        "import sys; from tpokit.recipe import open_recipe; open_recipe(sys.argv[1]);"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipe.yaml")]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize(("engine", "what"), [("zero2", "optimizer"), ("ddp", "parameters")])
def test_only_zero3_keeps_things_in_the_memory_of_the_host(engine, what):
    found = problems(PLAIN, [f"run.engine={engine}", f"run.offload={what}"])
    assert found == {"run.offload": f"goes with run.engine 'zero3', not with '{engine}'"}
    parse_recipe(PLAIN, overrides=["run.engine=zero3", f"run.offload={what}"])
