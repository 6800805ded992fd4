"""What a text says, apart from how it is written: words, figures, and words that are mistyped.

In: text. Out: words in one Unicode form, how alike two lists of words are. Knows no record.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

# Chinese and Japanese write no spaces: each of their signs counts as a word.
SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{SIGNS}]|[^\W{SIGNS}]+")
# Words too common to show that an answer rests on its chunk, or differs from its question.
COMMON = frozenset(
    """a an and are as at be been by can do does for from had has have in into is it its may must
    no not of on one or so than that the their them then there these they this to was were what
    when where which who why will with would yes""".split()
)
# Words that can come and go without another meaning. Not among them: no, not, may, must, who.
SMALL = frozenset(
    """a an the of in on at to for from by with is are was were be been do does did it its that
    this these those and as""".split()
)
LONGER_SMALL = sorted(word for word in SMALL if len(word) > 2)
LONGEST_SMALL = max(map(len, SMALL))
ROMAN = frozenset("ii iii iv vi vii viii ix xi xii xiii".split())
SHORTEST_MISTYPED = 4  # of three letters, most changes make another word,
SHORTEST_SURE = 2  # unless that is seen so seldom, and the one it may be a slip of so often:
SURE_FREQUENT, SURE_SHARE = 20, 0.001
RARE = 2  # a word seen so often at most may be a slip, however often the other one is seen
RARE_SHARE = 0.05  # or one seen so much less often than the word it may be a slip of


def words(text: str) -> list[str]:
    """The words of a text in order, lower-case and in one Unicode form; punctuation is dropped."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def telling(found: Sequence[str]) -> list[str]:
    """The words without the small ones, unless there are no others."""
    return [word for word in found if word not in SMALL] or list(found)


def has_digit(word: str) -> bool:
    """Whether the word is a figure or holds one."""
    return any(sign.isdigit() for sign in word)


def figures(found: Iterable[str]) -> frozenset[str]:
    """The words that number or letter things: H12, 400, type B, part IV. Two are two facts."""
    return frozenset(word for word in found if has_digit(word) or word in ROMAN or _is_letter(word))


def _is_letter(word: str) -> bool:
    return len(word) == 1 and word.isascii() and word.isalpha() and word not in "ais"


def one_slip_apart(one: str, other: str, shortest: int = SHORTEST_MISTYPED) -> bool:
    """Whether one keystroke (a letter more, less, another, or two swapped) makes one the other.

    This is Damerau-Levenshtein distance 1, of words of `shortest` letters and more without digits.
    """
    if abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < shortest:
        return False
    if one[0] != other[0] and one[-1] != other[-1]:
        return False  # one keystroke leaves one of the ends; most pairs of words go here
    start = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        start += 1
    end = 0
    for left, right in zip(reversed(one[start:]), reversed(other[start:]), strict=False):
        if left != right:
            break
        end += 1
    mine, theirs = one[start : len(one) - end], other[start : len(other) - end]
    if len(mine) <= 1 and len(theirs) <= 1:
        return not has_digit(one) and not has_digit(other)
    return len(mine) == 2 and mine == theirs[::-1] and not has_digit(one)


def is_slip(one: str, other: str, seen: Mapping[str, int]) -> bool:
    """Whether one of the words is the other, mistyped.

    seen: word -> how often the data has it. Two words that are both frequent are two words,
    however alike: loader and leader.
    """
    if one[0] != other[0] and one[-1] != other[-1]:
        return False
    rare, frequent = sorted((seen.get(one, 0), seen.get(other, 0)))
    sure = frequent >= SURE_FREQUENT and rare <= max(RARE, SURE_SHARE * frequent)
    if not one_slip_apart(one, other, SHORTEST_SURE if sure else SHORTEST_MISTYPED):
        return False
    return rare <= max(RARE, RARE_SHARE * frequent)


def mended(text: Sequence[str], like: Sequence[str], slip: Callable[[str, str], bool]) -> list[str]:
    """`text` with those of its words that are slips of words of `like` set right."""
    spare = list((Counter(like) - Counter(text)).elements())
    missing = Counter(text) - Counter(like)
    result = []
    for word in text:
        if missing[word] > 0 and (right := next((one for one in spare if slip(word, one)), None)):
            missing[word] -= 1
            spare.remove(right)
            word = right
        result.append(word)
    return result


def without_small_slips(text: Sequence[str], like: Sequence[str]) -> list[str]:
    """`text` without mistyped small words ("tthe") for which `like` has nothing in their place."""
    left, lacking = Counter(text) - Counter(like), Counter(like) - Counter(text)
    spare = left.total() - lacking.total()
    result = []
    for word in text:
        if spare > 0 and left[word] > 0 and word not in COMMON and _is_small_slip(word):
            spare, left[word] = spare - 1, left[word] - 1
        else:
            result.append(word)
    return result


def _is_small_slip(word: str) -> bool:
    return len(word) <= LONGEST_SMALL + 1 and any(
        one_slip_apart(word, small, SHORTEST_SURE) for small in LONGER_SMALL
    )


def likeness(one: Sequence[str], other: Sequence[str]) -> float:
    """How much two lists of words share, from 0 to 1.

    The mean of two Jaccard ratios, shared / all: shared words in any order, and shared words in
    the same order (the longest common subsequence). So a word more or less, or two that changed
    places, weigh little, and "A sends to B" is not "B sends to A".
    """
    if not one and not other:
        return 1.0
    total = len(one) + len(other)
    common = sum((Counter(one) & Counter(other)).values())
    ordered = _common_subsequence(one, other)
    return (common / (total - common) + ordered / (total - ordered)) / 2


def most_likeness(one: Sequence[str], other: Sequence[str]) -> float:
    """What `likeness` is at most, from the lengths alone."""
    short, long = sorted((len(one), len(other)))
    return short / long if long else 1.0


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence; equal beginnings and ends cost nothing."""
    start, ends = 0, (len(one), len(other))
    while start < min(ends) and one[start] == other[start]:
        start += 1
    left, right = ends
    while left > start and right > start and one[left - 1] == other[right - 1]:
        left, right = left - 1, right - 1
    same = start + ends[0] - left
    row = [0] * (right - start + 1)
    for word in one[start:left]:
        before = 0
        for place in range(1, len(row)):
            kept = row[place]
            if word == other[start + place - 1]:
                row[place] = before + 1
            elif row[place - 1] > kept:
                row[place] = row[place - 1]
            before = kept
    return same + row[-1]
