"""From a reply to a set of option letters: the harnesses' way, and a strict one.

`official` is what lmms-eval, VLMEvalKit and OmniEarth-Bench's authors run (they differ in letters and in prefixes):

1. Known prefixes ("The best answer is", ...) are deleted wherever they stand. Two lists lack commas, so that two pairs
   of prefixes are glued into strings that never occur.
2. Without a *capital* option letter anywhere, the reply is empty: a lower-case "b" alone counts for nothing.
3. Letters in brackets, "(b)", if there are any; else *every* letter a to e anywhere, also inside words, because the
   pattern's word borders are optional: "Based on the image, B" holds A, B, D, E, and C is missing only by luck.

Verbose replies therefore score wrong under `official`, and whoever compares models by it compares brevity too. `strict`
reads what was meant and nothing else: letters alone, a letter that opens the reply ("B. harbour"), a stated answer
("the answer is (B)"; a small letter in brackets, before punctuation or at the end, since "a" is a word), or the very text
of an option.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

Letters = frozenset[str]

_GLUED = ("The best option isThe correct option is", "Best answer:Best option:")
_COMMON = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_LIST = re.compile(r"\(?[A-H]\)?(?:(?:\s*[,;&/]\s*|\s+)(?:and\s+)?\(?[A-H]\)?)*\s*[.!]?", re.IGNORECASE)
_OPENING = re.compile(r"\(?([A-H])[).:]\s", re.IGNORECASE)
_STATED = re.compile(
    r"\b(?i:answer|option|choice)(?i:s?(?:\(s\))?\s*(?:is|are|:|is\(are\):?)\s*:?\s*)"
    r"(?:\(([A-Ha-h])\)|\(?([A-H])\b(?!')|([a-h])(?=\s*(?:[.,:;)!?]|$)))"
)
"""Of a bare letter, a small one counts only before punctuation or at the end: "the answer is a bridge" is not option A."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A harness's rule of step 1 to 3: which letters exist, which prefixes are deleted."""

    letters: str
    prefixes: tuple[str, ...]

    def __call__(self, reply: str) -> Letters:
        """The letters that the harness reads out of a reply."""
        text = reply.strip()
        for prefix in self.prefixes:
            text = text.replace(prefix, "")
        if not any(letter in text for letter in self.letters):
            return frozenset()
        either = self.letters + self.letters.lower()
        found = re.findall(rf"\(([{either}])\)", text) or [c for c in text if c in either]
        return frozenset(letter.upper() for letter in found)


LMMS_EVAL = Extractor(letters="ABCDE", prefixes=(*_COMMON, *_GLUED))
"""XLRS-Bench in lmms-eval and in VLMEvalKit's rule mode."""

OMNIEARTH_AUTHORS = Extractor(
    letters="ABCDE",
    prefixes=(*_COMMON, "The best option is", "The correct option is", "Best answer:", "Best option:"),
)
"""OmniEarth-Bench's own task: five letters, so an answer F or G can never be read."""

OMNIEARTH_VLMEVALKIT = Extractor(letters="ABCDEFG", prefixes=(*_COMMON, *_GLUED))
"""OmniEarth-Bench in VLMEvalKit: seven letters."""


def strict(reply: str, options: Sequence[str]) -> Letters:
    """The letters that a reply states, of those that the question has; empty where it states none, or one too many.

    Args:
        reply: what the model wrote.
        options: the options as shown, with or without their "(A)".
    """
    text, known = reply.strip(), "ABCDEFGH"[: len(options)]
    plain = [_without_letter(option).lower() for option in options]
    if text.lower().rstrip(".") in plain:
        return frozenset(known[plain.index(text.lower().rstrip("."))])
    if _LIST.fullmatch(text):
        found = set(re.findall(r"\b[A-H]\b", text.upper()))
    elif re.fullmatch(r"[A-H]{2,}", text):
        found = set(text)
    elif opening := _OPENING.match(text):
        found = {opening[1].upper()}
    else:
        found = {letter.upper() for letters in _STATED.findall(text) for letter in letters if letter}
        found = found if len(found) == 1 else set()
    return frozenset(found) if found <= set(known) else frozenset()


def _without_letter(option: str) -> str:
    return re.sub(r"^\s*\(?[A-H]\)[.:]?\s*|^\s*[A-H][.:]\s*", "", option).strip().rstrip(".")


def right(found: Letters, answer: str) -> bool:
    """Set equality, also for a single choice: what every harness asks."""
    return found == frozenset(answer.replace(" ", "").replace(",", ""))
