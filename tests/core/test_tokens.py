"""Task tokens: ids behind the table, marks in texts."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tpokit import PluginError, TaskTokens, TokenTable, UsageError
from tpokit.tokens import marked_tasks

BOX = TaskTokens("<box_begin>", ("<boxes>",), given="<box_given>")
POINT = TaskTokens("<point_begin>", ("<point_x>", "<point_y>"))


def tokenizer():
    words = {
        word: index for index, word in enumerate(["<unk>", "<pad>", "it", "is", "here", "and"])
    }
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")


def table(rows=64):
    words = tokenizer()
    return TokenTable.build(rows, {"region": BOX, "point": POINT}, words), words


def test_ids_stand_behind_the_embedding_table_triggers_first_in_the_order_of_the_tasks():
    tokens, _ = table(rows=64)
    assert list(tokens.ids.items()) == [
        ("<point_begin>", 64),
        ("<box_begin>", 65),
        ("<point_x>", 66),
        ("<point_y>", 67),
        ("<boxes>", 68),
        ("<box_given>", 69),
    ]
    assert tokens.trigger_task(65) == "region"
    assert tokens.trigger_task(63) is None
    assert tokens.trigger_task(66) is None
    assert tokens.slot_ids("point") == (66, 67)
    assert tokens.given_id("region") == 69
    assert tokens.given_id("point") is None


def test_tokenizer_ids_inside_spare_rows_are_translated():
    tokens, words = table(rows=64)
    ids = words("it is here <box_begin><boxes> and", add_special_tokens=False)["input_ids"]
    assert max(ids) < 64, "the tokenizer numbers its added tokens from its own length"
    assert tokens.from_tokenizer(ids) == [2, 3, 4, 65, 68, 5]


def test_decoding_shows_calls_as_marks_and_hides_slots():
    tokens, words = table()
    assert (
        tokens.decode([2, 3, 4, 65, 68, 5, 64, 66, 67], words) == "it is here <region> and <point>"
    )


def test_marks_become_trigger_and_slots_in_answers_and_the_given_token_in_questions():
    tokens, _ = table()
    assert tokens.spell_out("here <point> !", "assistant", "x") == (
        "here <point_begin><point_x><point_y> !"
    )
    assert tokens.spell_out("what is in <region> ?", "user", "x") == "what is in <box_given> ?"


def test_a_task_token_in_a_text_is_refused_with_the_mark_to_write():
    tokens, _ = table()
    with pytest.raises(
        UsageError, match=r"a/7: the text holds the task token '<box_begin>'; write <region>"
    ):
        tokens.spell_out("it is <box_begin>", "assistant", "a/7")


def test_a_given_mark_of_a_task_without_given_token_is_refused():
    tokens, _ = table()
    with pytest.raises(UsageError, match="'point' takes nothing given"):
        tokens.spell_out("see <point>", "user", "a/7")


def test_two_tasks_cannot_share_a_token():
    other = TaskTokens("<box_begin>", ("<other>",))
    with pytest.raises(PluginError, match="'mask' and 'region' both claim the token '<box_begin>'"):
        TokenTable.build(8, {"region": BOX, "mask": other}, tokenizer())


def test_a_word_of_the_vocabulary_cannot_be_a_task_token():
    words = tokenizer()
    vocabulary = {**words.get_vocab(), "<boxes>": 6}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    with pytest.raises(PluginError, match="already has <boxes> as ordinary words"):
        TokenTable.build(
            8, {"region": BOX}, PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        )


@pytest.mark.parametrize(
    ("trigger", "slots", "message"),
    [
        ("<a>", (), "at least one slot"),
        ("<a>", ("<a>",), "must all differ"),
        ("a b", ("<c>",), "must look like"),
    ],
)
def test_malformed_tokens_are_refused(trigger, slots, message):
    with pytest.raises(PluginError, match=message):
        TaskTokens(trigger, slots)


def test_marks_of_other_tasks_and_of_media_are_no_calls():
    text = "<image> the <b> at <region> and <point> <region>"
    assert marked_tasks(text, ("region",)) == ["region", "region"]
