"""Texts that are tokenised as a whole: what is learnt, and where questions and answers part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.core.data.fakes import PointHead, WordProcessor
from tpokit import ContextNeed, DataError, NoOptions, Sample, TokenTable, Turn, UsageError
from tpokit.data.conversation import Encoder
from tpokit.data.pieces import Piece, mark_words, tokenize, unmarked
from tpokit.types import IGNORED

BLANK = "\u2581"
MERGES = [(BLANK, "a"), ("]", "("), ("a", "b"), ("](", "a"), (BLANK, BLANK), ("b", "]")]
LETTERS = st.text("ab]( [\n\u6f22", max_size=6)


def merging_tokenizer(letters="ab][(Q", merges=MERGES, blank=True):
    """BPE whose tokens reach over anything, and that puts a blank in front of every part."""
    words = ["<unk>", "<end>", BLANK, *letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["".join(pair) for pair in merges]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    inner = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    front = [normalizers.Prepend(BLANK)] if blank else []
    inner.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", BLANK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<unk>"
    )


TOKENIZER = merging_tokenizer()


def written(pieces, whole=True, tokenizer=TOKENIZER):
    """Tokens as they are written, learnt ones behind an equals sign."""
    found = tokenize(pieces, tokenizer, whole, turns=1)
    names = tokenizer.convert_ids_to_tokens(found.ids)
    return [
        f"={name}" if learnt else name for name, learnt in zip(names, found.learnt, strict=True)
    ]


def test_a_whole_text_has_no_blank_in_front_of_its_answers():
    pieces = [Piece("[Q]"), Piece("ab<end>", learnt=True), Piece(" [Q]")]
    assert written(pieces) == [*(BLANK, "[", "Q", "]", "=ab", "=<end>"), BLANK * 2, "[", "Q", "]"]
    assert written(pieces, whole=False)[4:6] == [f"={BLANK}a", "=b"]


def test_a_token_never_reaches_from_the_prompt_into_the_answer():
    pieces = [Piece("[Q]"), Piece("(a)<end>", learnt=True)]
    joined = TOKENIZER.convert_ids_to_tokens(TOKENIZER("[Q](a", add_special_tokens=False).input_ids)
    assert joined[-1] == "](a", "or there is nothing to part"
    assert written(pieces)[:6] == [BLANK, "[", "Q", "]", "=(", "=a"]


def test_a_blank_that_opens_an_answer_is_not_joined_with_it():
    assert written([Piece("[ "), Piece("ab", learnt=True)]) == [BLANK, "[", BLANK, "=ab"]


def test_a_token_at_the_end_of_an_answer_is_learnt_even_if_it_reaches_further():
    assert written([Piece("[ "), Piece("b", learnt=True), Piece("]a")])[-2:] == ["=b]", "a"]


@given(st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=3))
def test_any_training_text_is_its_prompt_and_then_what_is_learnt(talk):
    pieces = []
    for question, answer in talk:
        opened = [*pieces, Piece(f"[{question}]")]
        pieces = [piece for piece in [*opened, Piece(f"{answer}<end>", learnt=True)] if piece.text]
        prompt = tokenize(opened, TOKENIZER, whole=True, turns=0)
        whole = tokenize(pieces, TOKENIZER, whole=True, turns=0)
        length = len(prompt.ids)
        assert whole.ids[:length] == prompt.ids
        assert whole.learnt[:length] == prompt.learnt
        assert all(whole.learnt[length:])
        assert not prompt.learnt[-1]


def test_the_words_of_a_question_are_found_in_a_whole_text_that_was_parted():
    pieces = [
        unmarked(f"[Q{mark_words('ab', 0)}]"),
        Piece("(a<end>", learnt=True),
        unmarked(f"[Q {mark_words('(b', 1)}]"),
        Piece("(", learnt=True),
    ]
    found = tokenize(pieces, TOKENIZER, whole=True, turns=2)
    names = TOKENIZER.convert_ids_to_tokens(found.ids)
    assert [[names[at] for at in places] for places in found.questions] == [["ab"], ["(", "b]"]]


def test_marks_are_taken_out_and_say_where_the_words_stand():
    piece = unmarked(f"x {mark_words('one', 0)}, {mark_words('', 1)}y{mark_words('two', 3)}")
    assert piece.text == "x one, ytwo"
    assert piece.questions == ((2, 5, 0), (7, 7, 1), (8, 11, 3))


def test_a_tokenizer_that_joins_everything_is_an_error():
    greedy = merging_tokenizer("a](\n\0", [("]", "\n"), ("]", "\0"), ("]", "(")], blank=False)
    with pytest.raises(UsageError, match="joins the first characters of an answer with what"):
        tokenize([Piece("]"), Piece("(", learnt=True)], greedy, whole=True, turns=0)


def test_a_tokenizer_that_joins_line_breaks_is_parted_by_another_character():
    lines = merging_tokenizer("a](\n", [("]", "\n"), ("]", "(")], blank=False)
    assert written([Piece("]"), Piece("(a", learnt=True)], tokenizer=lines) == ["]", "=(", "=a"]


def test_a_tokenizer_that_does_not_tell_places_is_an_error():
    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="Slow does not tell where its tokens stand"):
        tokenize([Piece("a")], Slow(), whole=True, turns=0)


def test_words_apart_need_no_parting():
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert written([Piece("a "), Piece("b", learnt=True)], tokenizer=words) == ["a", "=b"]
    # a word that goes on in the answer is parted as well
    assert written([Piece("a b"), Piece("a", learnt=True)], tokenizer=words) == ["a", "b", "=a"]


# ---- in the encoder ----


class WholeProcessor(WordProcessor):
    """As `WordProcessor`, but its tokens reach over borders; ``[question]answer<end>``."""

    whole_text = True
    reserved = ("<image>", "<video>")

    def __init__(self):
        self.tokenizer = merging_tokenizer()

    def render(self, messages, answer_next):
        text = ""
        for message in messages:
            said = " ".join(part.get("text", f"<{part['type']}>") for part in message["content"])
            text += f"[{said}]" if message["role"] == "user" else f"{said}<end>"
        return text


class BlankProcessor(WholeProcessor):
    """The model writes a blank in front of an answer and one behind it."""

    start_of_turn = " "

    def render(self, messages, answer_next):
        text = ""
        for message in messages:
            said = " ".join(part["text"] for part in message["content"])
            text += f"[{said}]" if message["role"] == "user" else f" {said} <end>"
        return text


class ListeningHead(PointHead):
    def context_need(self):
        return ContextNeed(question=True)


def encoder_of(processor, *kinds):
    heads = {kind.task: kind(NoOptions(), 4) for kind in kinds}
    tokens = {task: head.tokens for task, head in heads.items()}
    rows = len(processor.tokenizer)
    table = TokenTable.build(rows, tokens, processor.tokenizer)
    return Encoder(processor, heads, table, processor.max_length)


def talk(*texts, **fields):
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[index % 2], text) for index, text in enumerate(texts))
    return Sample("7", turns, **fields)


def names_of(encoder, ids):
    own = {index: name for name, index in encoder.tokens.ids.items()}
    tokenizer = encoder.processor.tokenizer
    return [own.get(index) or tokenizer.convert_ids_to_tokens(index) for index in ids]


@pytest.mark.parametrize("kind", [WholeProcessor, BlankProcessor, WordProcessor])
def test_an_encoded_sample_is_its_prompt_and_then_the_answer(kind):
    encoder = encoder_of(kind(), ListeningHead)
    sample = talk("a b", "(a <point>", "b", "<point> (b", targets={"point": (0.5, 0.25)})
    whole, prompt = encoder.encode(sample, "data"), encoder.encode(sample, "data", answer_next=True)
    length = len(prompt.ids)
    assert whole.ids[:length] == prompt.ids
    slots = {at for call in whole.slots["point"] for at in call}
    expected = [
        IGNORED if at in slots else token for at, token in enumerate(whole.ids) if at >= length
    ]
    assert whole.labels[length:] == expected
    assert whole.questions == prompt.questions
    assert all(whole.questions)


def test_blanks_around_an_answer_are_learnt_where_the_model_writes_them():
    encoder = encoder_of(BlankProcessor())
    example = encoder.encode(talk("Q", "ab"), "data")
    assert names_of(encoder, example.ids) == [
        *(BLANK, "[", "Q", "]", f"{BLANK}a", "b", BLANK, "<end>")
    ]
    assert example.labels == [IGNORED] * 4 + example.ids[4:]


@pytest.mark.parametrize("kind", [WholeProcessor, BlankProcessor, WordProcessor])
def test_an_answer_can_be_begun(kind):
    encoder = encoder_of(kind())
    begun = encoder.encode(talk("Q"), "data", answer_next=True, answer_prefix="(a")
    opened = encoder.encode(talk("Q"), "data", answer_next=True)
    assert begun.ids[: len(opened.ids)] == opened.ids
    whole = encoder.encode(talk("Q", "(a"), "data")
    assert begun.ids == whole.ids[: len(begun.ids)]
    assert len(opened.ids) < len(begun.ids) < len(whole.ids)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("here <point>", "a head is called by what the model writes"),
        ("<point_begin>", "answer prefix: the text holds the task token '<point_begin>'"),
    ],
)
def test_a_begun_answer_calls_no_head(prefix, message):
    encoder = encoder_of(WholeProcessor(), PointHead)
    with pytest.raises(UsageError, match=message):
        encoder.encode(talk("Q"), "data", answer_next=True, answer_prefix=prefix)


@pytest.mark.parametrize(
    ("texts", "character"),
    [(("a \ue0000\ue001", "b"), "E000"), (("a", "b \ue004"), "E004"), (("\ue010", "a"), "E010")],
)
@pytest.mark.parametrize("kind", [WholeProcessor, WordProcessor])
def test_a_text_cannot_hold_the_marks_of_prompts(kind, texts, character):
    message = rf"data/7: the text holds the private character U\+{character}"
    with pytest.raises(DataError, match=message):
        encoder_of(kind()).encode(talk(*texts), "data")


def test_an_answer_cannot_hold_the_word_that_stands_for_media():
    message = "data/7: the text holds '<image>', the word in whose place"
    with pytest.raises(DataError, match=message):
        encoder_of(WholeProcessor()).encode(talk("a", "b <image>"), "data")
    # a backbone that reserves nothing keeps its texts
    assert encoder_of(WordProcessor()).encode(talk("no", "yes"), "data").ids
