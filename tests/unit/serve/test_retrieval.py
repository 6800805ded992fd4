"""The passage that a question is about comes first."""

from __future__ import annotations

from potstill.records import Chunk
from potstill.serve.retrieval import PassageIndex

TEXTS = (
    "The kiln at Brannoch burns dried kelp. Its door is opened twice a day.",
    "Valve K7 must be replaced after 400 hours. The spare valves are kept in locker 12.",
    "The night warden signs the log at 22:15 and locks the pump house.",
)


def index() -> PassageIndex:
    return PassageIndex(
        Chunk(id=str(n), document="d", source="h.pdf", start=0, end=len(t), tokens=1, text=t)
        for n, t in enumerate(TEXTS)
    )


def test_words_decide_in_any_inflection() -> None:
    assert index().search("How often are the doors opened?")[0].id == "0"
    assert index().search("Where is a spare valve kept?")[0].id == "1"
    assert index().search("who locks the pump house", limit=2)[0].id == "2"


def test_nothing_in_common_finds_nothing() -> None:
    assert index().search("Xylophone quartets?") == []
    assert index().search("?!") == []


def test_query_syntax_in_a_question_is_only_words() -> None:
    assert index().search('valve" OR NEAR(door') != []
    assert index().search("text: * NOT -kiln")[0].id == "0"
