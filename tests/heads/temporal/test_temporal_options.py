"""Options of the temporal head: presets and messages."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tpokit.problems import check
from tpokit_temporal.options import PRESETS, TemporalOptions


@pytest.mark.parametrize(
    ("preset", "dummies", "used"),
    [("qvhighlights", 45, 1), ("charades_sta", 45, 2), ("tacos", 50, 2), ("videochat_tpo", 45, 1)],
)
def test_a_preset_is_the_published_setting(preset, dummies, used):
    options = TemporalOptions(preset=preset)
    assert (options.dummies, options.global_tokens_used) == (dummies, used)
    assert (options.width, options.feed_forward, options.heads) == (256, 1024, 8)
    assert (options.encoder_layers, options.decoder_layers, options.queries) == (3, 3, 10)


def test_what_is_given_wins_over_the_preset():
    options = TemporalOptions(preset="tacos", dummies=7)
    assert (options.dummies, options.global_tokens_used) == (7, 2)


def test_options_survive_being_written_out():
    options = TemporalOptions(preset="tacos", dummies=7)
    assert TemporalOptions.model_validate(options.model_dump()) == options


def test_every_preset_can_be_chosen():
    for preset in PRESETS:
        assert TemporalOptions(preset=preset).preset == preset


def test_an_unknown_preset_is_named_with_the_nearest_one():
    (problem,) = check(TemporalOptions, {"preset": "charades"}, "heads.temporal.options")
    assert problem.path == "heads.temporal.options.preset"
    assert problem.message == (
        "'charades' is not 'qvhighlights', 'charades_sta', 'tacos' or 'videochat_tpo'; "
        "did you mean 'charades_sta'?"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not a multiple of 4"),
        ({"width": 12, "heads": 4, "released_quirks": True}, "width 12 is not a multiple of 8"),
        (
            {"global_tokens_used": 11},
            "global_tokens_used is 11, more than the 10 global_tokens",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        TemporalOptions(**given)


def test_reading_options_does_not_import_torch():
    code = "import sys, tpokit_temporal.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
