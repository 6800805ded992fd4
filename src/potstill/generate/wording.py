"""The default words of generation: instructions, worked examples, question words.

In: nothing. Out: constants that a recipe can replace, field by field (`generate.prompt`).
Chosen by measuring how many pairs of a 135M teacher pass validation; docs/concepts/generation.md.
"""

from __future__ import annotations

from potstill.generate.focus import Kind

SYSTEM = (
    "You write quiz questions. You get a sentence and an answer that stands in it. Write the "
    "question that has this answer. The question names what it is about and does not contain the "
    "answer."
)

ASK = "Passage: {passage}\n\nSentence: {focus}\nAnswer: {answer}"

STUDENT = (
    "Read the passage, then answer the question in a few words.\n\n"
    "Passage: {passage}\n\nQuestion: {question}"
)

SHOTS = (
    {
        "passage": "The ferry Blue Marlin leaves Port Sena at 7:15. The Blue Marlin carries 48 "
        "passengers and 4 cars.",
        "focus": "The Blue Marlin carries 48 passengers and 4 cars.",
        "question": "How many passengers does the Blue Marlin carry?",
        "reasoning": "The Blue Marlin carries 48 passengers.",
        "answer": "48 passengers",
    },
    {
        "passage": "The village choir was founded by the baker Emil Roth in 1952.",
        "focus": "The village choir was founded by the baker Emil Roth in 1952.",
        "question": "Who founded the village choir?",
        "reasoning": "The village choir was founded by Emil Roth.",
        "answer": "Emil Roth",
    },
    {
        "passage": "Ripe melons are stored in the north cellar. A melon with a soft stem is sold "
        "first.",
        "focus": "Ripe melons are stored in the north cellar.",
        "question": "Where are ripe melons stored?",
        "reasoning": "Ripe melons are stored in the north cellar.",
        "answer": "north cellar",
    },
    {
        "passage": "The oil filter must be cleaned after 20 hours of use, and the belt is changed "
        "after 90 hours.",
        "focus": "The oil filter must be cleaned after 20 hours of use, and the belt is changed "
        "after 90 hours.",
        "question": "The oil filter must be cleaned after how many hours of use?",
        "reasoning": "The oil filter must be cleaned after 20 hours of use.",
        "answer": "20 hours",
    },
)

OPENINGS: dict[Kind, tuple[str, ...]] = {
    "number": (
        "How many", "How much", "How long", "How often", "How far", "How old", "How large",
        "How high", "How fast", "How heavy", "At what", "When", "Which", "What",
    ),
    "name": ("Who", "What", "Which", "Where", "When", "On which", "In which", "From which"),
    "other": ("What", "Where", "When", "How", "Why", "Which", "Who"),
}  # fmt: skip

VOCABULARY = tuple(
    (
        "a an the of in on at to for from by with and or as than if when while before after under "
        "over above below between during through into per about against is are was were be been "
        "being do does did has have had can could may must should will would it its they their "
        "there that this which who whom whose what where how why not no only each every all many "
        "much long often far old large big high low fast heavy wide deep tall hot cold name named "
        "names called number numbers amount time day date days month year week hour minute kind "
        "type part color colour place person people thing things size weight length height width "
        "temperature speed price cost costs take takes happen happens happened need needs needed "
        "use uses used make makes made give gives given get gets keep kept hold holds work works "
        "most least maximum minimum highest lowest first last one used"
    ).split()
)
