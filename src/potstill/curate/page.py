"""The data card as a page and as text: no scripts, no network, light, dark and print.

In: the card's figures. Out: HTML and Markdown. All texts that come from documents or rows are
escaped. Knows nothing of how the figures are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.pages import environment
from potstill.curate import pictures
from potstill.curate.card import SPLITS, Card

REASONS = {
    "ambiguous_answer": "a number that names no choice for sure",
    "answer_in_question": "the question gives the answer away",
    "answer_is_personal_data": "nothing but personal data was the answer",
    "answer_not_an_option": "the answer is none of the choices",
    "answer_refers_to_options": "the answer speaks of the choices, such as all of the above",
    "answer_too_long": "longer than curate.longest_answer_words",
    "asks_about_options": "cannot be asked without its choices",
    "blanks_do_not_match": "not as many answers as blanks",
    "contaminated": "repeats a question of an evaluation set",
    "context_dependent": "speaks of a text that its reader does not see",
    "duplicate_question": "the question was asked before",
    "empty_answer": "no word in the answer",
    "empty_question": "no word in the question",
    "exact_duplicate": "the same words as an earlier row",
    "leaked_instruction": "holds words of a prompt or of a model about itself",
    "markup": "holds markup",
    "near_duplicate": "nearly the same words as an earlier row",
    "no_blank": "no blank in a fill-in-the-blank row",
    "no_chunk": "its passage is not there",
    "no_options": "no choices in a multiple-choice row",
    "no_question": "nothing was asked",
    "no_wording": "written by hand about a passage, and no row shows how one is asked",
    "no_rules_for_language": "sentences become questions in English alone",
    "not_a_question": "does not end as a question",
    "other_language": "clearly in another language",
    "overlaps_other_split": "its passage overlaps one of a more protected split",
    "parent_edited": "a variant of a row that was edited by hand",
    "parent_rejected": "a variant of a rejected row",
    "personal_data": "holds personal data",
    "question_too_long": "longer than curate.longest_question_words",
    "question_too_short": "shorter than curate.shortest_question_words",
    "rejected_by_hand": "rejected by a person",
    "repeats_test": "says what a test row says",
    "repeats_validation": "says what a validation row says",
    "repetition": "says the same again and again",
    "semantic_duplicate": "means the same as an earlier row",
    "several_right_options": "more than one choice is right",
    "unsafe_markup": "holds markup that could run or deceive",
    "unsupported": "its passage does not hold the answer",
    "variant_of_test": "varies a test row; variants are for training alone",
    "variant_of_validation": "varies a validation row; variants are for training alone",
}
"""Reason -> what it means, for people."""


def render(card: Card) -> str:
    """The whole page."""
    engine = environment(Path(__file__).parent / "templates")
    rows, languages = card["rows"], card["languages"]
    lengths = [
        pictures.histogram(f"{what.capitalize()}s", card["lengths"][what], "words")
        for what in ("question", "answer", "passage")
    ]
    made = [
        pictures.stacked("Kinds and variants", card["kinds"]),
        pictures.stacked("Labels", dict(list(card["labels"].items())[:14])),
        pictures.bars("Languages of rows", languages["rows"], "train", "of a sample of them"),
        pictures.bars("Languages of documents", languages["documents"], "train"),
    ]
    rejected = [
        pictures.bars("Reasons for rejection", rows["rejected"], "rejected", "rows"),
        pictures.bars("Duplicates", card["duplicates"], "rejected", "rows"),
    ]
    return engine.get_template("card.html.j2").render(
        card=card,
        total=totals(card),
        decided=decided(card),
        patterns=pictures.PATTERNS,
        outcome=pictures.stacked("What became of all rows", {"rows": _outcome(card)}),
        lengths=[one for one in lengths if one],
        made=[one for one in made if one],
        rejected=[one for one in rejected if one],
        coverage=pictures.strips("Documents", card["coverage"]),
        reasons=[(one, REASONS.get(one, ""), count) for one, count in rows["rejected"].items()],
    )


DECIDED = {
    "accept": "accepted",
    "reject": "rejected",
    "edit": "edited",
    "add": "written",
    "kept_out": "rejected all the same, for what protects the measurement",
    "unknown": "about rows that are not there",
    "unchangeable": "about rows that cannot be changed",
}


def decided(card: Card) -> str:
    """What people decided about rows, in words; empty if they did not."""
    found = card["by_hand"]
    return ", ".join(f"{found[what]:,} {words}" for what, words in DECIDED.items() if what in found)


def totals(card: Card) -> dict[str, int]:
    """Rows that were read or made, kept and rejected."""
    rows = card["rows"]
    kept, rejected = sum(rows["kept"].values()), sum(rows["rejected"].values())
    return {"all": kept + rejected, "kept": kept, "rejected": rejected}


def _outcome(card: Card) -> dict[str, int]:
    return {**card["rows"]["kept"], "rejected": totals(card)["rejected"]}


def markdown(card: Card) -> str:
    """The card's figures as Markdown, to go with the data."""
    total, rows = totals(card), card["rows"]
    lines = [
        "# Data card",
        "",
        f"{rows['read']:,} rows read, {sum(rows['added'].values()):,} added to them, "
        f"{total['kept']:,} kept, {total['rejected']:,} rejected.",
        "",
    ]
    if decided(card):
        lines += [f"By hand: {decided(card)}.", ""]
    lines += _table("Split", {one: rows["kept"][one] for one in SPLITS})
    lines += _table("Kind", {kind: sum(parts.values()) for kind, parts in card["kinds"].items()})
    lines += _table("Label", {one: sum(parts.values()) for one, parts in card["labels"].items()})
    lines += _table("Reason for rejection", rows["rejected"])
    lines += _table("Language of rows (sample)", card["languages"]["rows"])
    lines += ["| Words | median | 95% up to | longest |", "|---|---:|---:|---:|"]
    lines += [
        f"| {what} | {one['median']} | {one['p95']} | {one['longest']} |"
        for what, one in card["lengths"].items()
    ]
    lines += ["", "| Document | characters | asked about | rows |", "|---|---:|---:|---:|"]
    lines += [
        f"| {_cell(one['source'])} | {one['characters']} | {one['share']:.0%} | {one['rows']} |"
        for one in card["coverage"]
    ]
    return "\n".join(lines) + "\n"


def _table(name: str, counts: Mapping[str, Any]) -> list[str]:
    if not counts:
        return []
    rows = [f"| {_cell(key)} | {count} |" for key, count in counts.items()]
    return [f"| {name} | rows |", "|---|---:|", *rows, ""]


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
