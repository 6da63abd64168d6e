"""The tokenizer against SentencePiece itself, and what a folder may hold."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

import tpokit_shapes_world
from tests.plugins.videochat2.talks import FACTS, MODEL, released_tokenizer
from tpokit import CheckpointError
from tpokit_videochat2.tokenizer import convert_sentencepiece, load_tokenizer

TINY = Path(tpokit_shapes_world.__file__).parent / "base"
PIECES = SentencePieceProcessor(model_file=str(MODEL))
TOKENIZER = convert_sentencepiece(MODEL)
TEXTS = st.text(
    st.one_of(st.sampled_from("  [](){}INST/.,:;?!'\n\tae1290%"), st.characters(codec="utf-8"))
)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=300, deadline=None)
@given(TEXTS.filter(lambda text: "\0" not in text))
def test_any_text_becomes_the_tokens_of_sentencepiece(text):
    assert ids_of(TOKENIZER, text) == PIECES.encode(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS.filter(lambda text: "\0" not in text and "<" not in text), max_size=4))
def test_every_part_between_special_tokens_is_tokenised_on_its_own(parts):
    expected = [ids for part in parts for ids in (*PIECES.encode(part), PIECES.eos_id())]
    assert ids_of(TOKENIZER, "".join(f"{part}</s>" for part in parts)) == expected


def test_texts_of_the_release_become_its_ids():
    names = sorted(FACTS["tokenizer"]["special_ids"], key=FACTS["tokenizer"]["special_ids"].get)
    tokenizer = released_tokenizer()
    tokenizer.add_tokens(names, special_tokens=True)
    cases = [case for case in FACTS["cases"] if case["kind"] == "raw"]
    assert len(cases) == 5
    for case in cases:
        assert ids_of(tokenizer, f"<s>{case['text_1']}") == case["ids"]


def test_the_special_tokens_are_those_of_the_release():
    assert (TOKENIZER.unk_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    assert len(TOKENIZER) == FACTS["tokenizer"]["pieces"]


@pytest.mark.parametrize("text", ["a  red cup .", "\u6f22 caf\u00e9\nx", "1.5 , 2 ( A )"])
def test_decoding_gives_the_text_again(text):
    assert TOKENIZER.decode(ids_of(TOKENIZER, text), skip_special_tokens=True) == text


def test_it_says_where_its_tokens_stand():
    text = "</s> [INST] caf\u00e9 \u6f22"
    found = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)
    places = [text[first:last] for first, last in found["offset_mapping"]]
    # the blank that every part gets in front stands where the part begins, and an unknown
    # character is as many bytes
    words = ["</s>", " ", " [", "INST", "]", " caf\u00e9", " "]
    assert places == [*words, "\u6f22", "\u6f22", "\u6f22"]


# ---- folders ----


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in (" ", "  [INST] q", "here </s> .", "\u6f22\n", "<unk><unk></Video>"):
        assert ids_of(again, text) == ids_of(TOKENIZER, text)
    assert (again.bos_token, again.eos_token, again.unk_token) == ("<s>", "</s>", "<unk>")
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "copy")
    copies = [(tmp_path / name / "tokenizer.json").read_text() for name in (".", "copy")]
    assert copies[0] == copies[1]


def test_a_tokenizer_of_whole_words_loads_as_well():
    tokenizer = load_tokenizer(TINY)
    ids = ids_of(tokenizer, "<|im_start|>where is the red ring?<video><|im_end|>")
    words = ["<|im_start|>", "where", "is", "the", "red", "ring", "?", "<video>", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(ids) == words
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")
    assert tokenizer.model_max_length == 2048


def test_special_tokens_may_be_written_as_older_releases_do(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    entry = {"__type": "AddedToken", "content": "</s>", "lstrip": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": entry}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_id == 2
    assert tokenizer.bos_token is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        ("tokenizer.json", "{", r"tokenizer\.json is broken"),
        ("tokenizer.json", "[]", r"tokenizer\.json is broken"),
        ("tokenizer_config.json", None, r"tokenizer_config\.json is missing"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is broken"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json is broken: it must be a JSON"),
    ],
)
def test_what_is_missing_or_broken_in_a_folder_is_named(tmp_path, name, content, message):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, tmp_path / file)
    path = tmp_path / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"this is no model"])
def test_a_sentencepiece_model_that_is_missing_or_broken_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is no SentencePiece model"):
        convert_sentencepiece(path)


def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path):
    from sentencepiece import SentencePieceTrainer

    texts = ["where is the red cup", "the person opens a door", "it moves to the left"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "unigram"),
        vocab_size=28,
        model_type="unigram",
        minloglevel=5,
    )
    with pytest.raises(CheckpointError, match=r"unigram\.model: its model is none as Llama"):
        convert_sentencepiece(tmp_path / "unigram.model")
