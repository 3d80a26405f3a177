"""`earthdial`: EarthDial's `rs_vqa/eval.py`, as it behaves: recall of the target's word tokens, in [0, 1].

Both texts lose their outer white space, their capitals and *all their spaces*, and only then are cut into words by
NLTK's `word_tokenize`. So "yes." and "yes,thereis" hold the token "yes" and are right, while "yes there is" has become
the one word "yesthereis" and is wrong. Score = number of distinct common tokens over the number of target tokens (not
distinct ones). count and area are left out; the repository prints one number per type and no total.

NLTK is not needed for that: the cutting is remade below. Its sentence splitter, which runs first there, can act only
before white space that is left (line breaks, tabs) and before brackets, asterisks and the like: a full stop there ends a
sentence and is cut off as at the end of the text, so that "**Yes.**" holds "yes" while "yes.there" does not. Of 60,000
random concatenations of answers, punctuation and line breaks (a harder test than any model's output) every one had the
score of NLTK 3.10's word_tokenize with its English sentences; with quotes and apostrophes, which every version of NLTK
cuts differently, all but 4.
"""

import re
from functools import lru_cache

from scaleearth_pl.evaluation.rsvqa.matchers.base import NUMERIC_TYPES, Case, Matcher

_STOP = re.compile(r"""(?<=[^.])\.(?=[?!)";}\]*:@'({\[]|[>»”’]*(?:\s|$))""")
_COMMA = re.compile(r"([:,])(\D|$)")
_APART = re.compile(r"""\.{2,}|--|`+|''|[][(){}<>;@#$%&?!*"“”„«»‘’‒–—―]""")
_CLITIC = re.compile(r"(.*[^'])('(?:s|m|d|ll|re|ve)?|n't)")
_COMPOUNDS = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na"), "gotta": ("got", "ta")}


@lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[str, ...]:
    """Word tokens of a lower-case text without spaces."""
    text = _COMMA.sub(r" \1 \2", _STOP.sub(" . ", text))
    words = _APART.sub(r" \g<0> ", text).split()
    return tuple(token for word in words for token in _parts(word))


def _parts(word: str) -> tuple[str, ...]:
    if word.startswith("'") and len(word) > 1 and word != "''":
        return ("'", *_parts(word[1:]))
    match = _CLITIC.fullmatch(word)
    return (match[1], match[2]) if match else _COMPOUNDS.get(word, (word,))


def recall(target: str, prediction: str) -> float:
    """Share of the target's tokens that the prediction holds."""
    wanted, found = (_tokens(text.strip().lower().replace(" ", "")) for text in (target, prediction))
    common = set(wanted) & set(found)
    return len(common) / len(wanted) if common else 0.0


def score(case: Case) -> float:
    """The recall; 0 for a null prediction."""
    return 0.0 if case.prediction is None else recall(case.target, case.prediction)


EARTHDIAL = Matcher(
    name="earthdial",
    what="spaces removed, token recall",
    score=score,
    target_class=lambda case: case.target.strip().lower().replace(" ", ""),
    skips=NUMERIC_TYPES,
)
