"""What a taught class may be called."""

from __future__ import annotations

import re
import unicodedata

from service.errors import InvalidRequest

MAX_CHARACTERS = 64

_SHOWN = 60  # characters of a text that a message repeats
_JOINERS = "\u200c\u200d"  # of zero width: in Persian and Indic words, and in emoji made of several
_SELECTORS = range(0xFE00, 0xFE10)  # choose between a symbol's forms, like the coloured one
_TAGS = range(0xE0020, 0xE0080)  # spell a region behind a black flag
_BLACK_FLAG = "\U0001f3f4"
_VIRAMA = 9  # its combining class
# Printable, says Unicode, but nothing shows: fillers, blank patterns, and selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def label_of(text: str) -> str:
    """The label that a client means: trimmed, in Unicode's normalisation form C, 1 to 64 characters that can be seen.

    Texts with the same result are the same label; case, width and alike letters of other scripts tell labels apart.
    Letters, marks, digits, symbols and punctuation of any script may stand in it, `/` and quotes too; the only space is
    U+0020. Refused is what does not show: controls, formats, separators, blank letters, and code points that are
    private, unassigned (for this Python's `unicodedata`) or surrogates. But some formats may stand where they change
    what is seen: U+200C and U+200D inside of emoji, beside a virama and between letters of the Arabic kind; U+FE00 to
    U+FE0F after a symbol or in a keycap; tags after a black flag.

    Raises:
        InvalidRequest: The text is no label.
    """
    label = text.strip()
    if len(label) <= 4 * MAX_CHARACTERS:  # it replaces at most 4 by 1; a million marks would take minutes to sort
        label = unicodedata.normalize("NFC", label)
    if not 1 <= len(label) <= MAX_CHARACTERS:
        raise _refusal(text, "is empty" if not label else "is longer")
    for index, character in enumerate(label):
        if (not character.isprintable() or _BLANK.match(character)) and not _shapes(label, index):
            raise _refusal(text, f"has U+{ord(character):04X}")
    return label


def quoted(text: str) -> str:
    """For a message: in quotes, cut, with everything escaped that a terminal or a log would not print."""
    return repr(text[:_SHOWN]) + "…" * (len(text) > _SHOWN)


def _refusal(text: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"a label is 1 to {MAX_CHARACTERS} characters that can be seen, or plain spaces between them; {quoted(text)}"
        f" {problem}"
    )


def _shapes(label: str, index: int) -> bool:
    """Whether a character that is nothing by itself changes how its neighbours look."""
    before, character, after = label[index - 1 : index], label[index], label[index + 1 : index + 2]
    if not before:
        return False
    if ord(character) in _TAGS:
        return before == _BLACK_FLAG or ord(before) in _TAGS
    if ord(character) in _SELECTORS:
        return unicodedata.category(before).startswith("S") or (before in "0123456789#*" and after == "\u20e3")
    if character not in _JOINERS:
        return False
    if unicodedata.combining(before) == _VIRAMA:
        return True
    if not after:
        return False
    emoji = unicodedata.category(before) in ("So", "Sk") or ord(before) in _SELECTORS or ord(before) in _TAGS
    return (
        (emoji and unicodedata.category(after) in ("So", "Sm"))
        or unicodedata.combining(after) == _VIRAMA
        or unicodedata.bidirectional(before) == unicodedata.bidirectional(after) == "AL"
    )
