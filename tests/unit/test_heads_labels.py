"""Labels of taught classes: which texts are the same label, and which are none."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.heads.labels import label_of, quoted


@pytest.mark.parametrize(
    "label",
    [
        "7",
        "Cat",
        "golden retriever, front  view",
        "n/a",
        "\"quoted\" 'twice' \\",
        "<b>&amp;",
        "кот",
        "猫",
        "ไก่",
        "🐈",
        "❤️",
        "7️⃣",
        "👩🏽‍🔬",  # joined: woman, skin tone, microscope
        "🏳️‍🌈",
        "🙂‍↔️",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "می‌خواهم",  # Persian, with U+200C
        "ශ්‍රී",  # Sinhala, with U+200D
        "র‍্যাম",  # Bengali, before the virama
        "അവന്‍",  # Malayalam, at the end
        "x" * 64,
    ],
)
def test_a_label_of_any_language_stays_as_it_is(label: str) -> None:
    assert label_of(label) == label


def test_labels_that_differ_only_in_what_does_not_show_are_the_same() -> None:
    assert label_of(" \t\n7\r\n\u00a0\u3000") == "7"
    assert label_of("cafe\u0301") == label_of("caf\u00e9") == "caf\u00e9"
    assert label_of("\u1100\u1161") == "\uac00"
    assert label_of("e\u0301" * 64) == "\u00e9" * 64  # they are counted as they are kept
    assert label_of("\u03b1\u0313\u0300\u0345" * 64) == "\u1f82" * 64
    assert label_of("cat") != label_of("Cat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is empty"),
        (" \n\u2003", r"' \\n\\u2003' is empty"),
        ("x" * 65, "'x{60}'… is longer"),
        ("e\u0301" * 65, "is longer"),
        ("x" * 1_000_000, "'x{60}'… is longer"),
        ("a\nb", r"'a\\nb' has U\+000A"),
        ("a\0", r"U\+0000"),
        ("\x1b[31m7", r"'\\x1b\[31m7' has U\+001B"),
        ("a\u00a0b", r"U\+00A0"),  # spaces that pass for the plain one
        ("a\u3000b", r"U\+3000"),
        ("a\u2028b", r"U\+2028"),
        ("\u200b7", r"U\+200B"),
        ("\ufeff7", r"U\+FEFF"),
        ("so\u00adft", r"U\+00AD"),
        ("\u202egnp.tac", r"'\\u202egnp.tac' has U\+202E"),
        ("\u3164", r"U\+3164"),  # a letter that is blank
        ("\ufe0f", r"U\+FE0F"),  # a selector that selects nothing
        ("cat\ufe0f", r"U\+FE0F"),
        ("7\ufe0f", r"U\+FE0F"),
        ("\ue000", r"U\+E000"),
        ("\u0378", r"U\+0378"),  # unassigned
        ("\ud83d", r"U\+D83D"),
        ("a\u200db", r"U\+200D"),  # a joiner that joins nothing
        ("к\u200cот", r"U\+200C"),
        ("\u200d", r"U\+200D"),
        ("🐈\u200d", r"U\+200D"),
        ("🐈\u200d\u200d🐈", r"U\+200D"),
        ("م\u200c", r"U\+200C"),
        ("🐈\u200b🐈", r"U\+200B"),
        ("7\U000e0067\U000e007f", r"U\+E0067"),  # a tag on no flag
    ],
)
def test_what_is_no_label_is_shown_safely_with_the_rule(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        label_of(text)
    assert "1 to 64 characters" in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@given(st.text(st.characters(), max_size=80) | st.text("🐈🏴\U000e0067\u200c\u200dم्क\ufe0f\u20e3a ́", max_size=12))
def test_a_label_is_found_once_or_refused(text: str) -> None:
    try:
        label = label_of(text)
    except InvalidRequest:
        return
    assert label_of(label) == label == label.strip() == unicodedata.normalize("NFC", label)
    assert 1 <= len(label) <= 64
    label.encode()
    assert not {unicodedata.category(character) for character in label} & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_a_text_made_to_be_slow_is_not() -> None:
    marks = "a" + "\u0301\u0323" * 500_000  # a million marks, to be sorted
    started = time.thread_time()
    with pytest.raises(InvalidRequest, match="is longer"):
        label_of(marks)
    assert time.thread_time() - started < 0.2


def test_a_quoted_text_says_that_it_is_cut() -> None:
    assert quoted("кот\u202e") == "'кот\\u202e'"
    assert quoted("x" * 61) == repr("x" * 60) + "…"
