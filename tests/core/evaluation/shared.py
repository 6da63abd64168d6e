"""Script: score a fresh model on two ranks that have different numbers of batches, then let one of
them meet a sample that cannot be read.

``shared.py RECIPE OUT`` writes the report and the answers of the first rank to the folder ``OUT``,
and what each rank said of the error.
"""

import sys
from pathlib import Path

from tests.core.evaluation.test_sharing import talkative_model
from tests.core.training.small_runs import read_recipe
from tpokit import DataError
from tpokit.atomic import write_json
from tpokit.evaluation.runner import evaluate_model
from tpokit.evaluation.sharing import Sharing
from tpokit.training.ranks import Ranks

if __name__ == "__main__":
    ranks = Ranks.here()
    ranks.join(60)
    sharing = Sharing(ranks.rank, ranks.world)
    out = Path(sys.argv[2])
    recipe, plugins = read_recipe(sys.argv[1])
    model = talkative_model(recipe, plugins)
    report = evaluate_model(model, recipe, plugins, None, out / "answers.jsonl", sharing)
    write_json(out / f"report-{ranks.rank}.json", report.to_json())
    recipe, _ = read_recipe(sys.argv[1], "data.mixed.options.image=missing.png")
    try:
        evaluate_model(model, recipe, plugins, None, out / "broken.jsonl", sharing)
    except DataError as cause:
        (out / f"error-{ranks.rank}").write_text(str(cause))
