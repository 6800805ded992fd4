"""Write the sample rows, src/potstill/sample/final_qa.csv: about an invented company's books.

In: the chart of accounts below. Out: a CSV file with the columns question and answer, as a real
export would hold it: plain questions, multiple choice with the choices in the text and the answer
as a letter or in words, sentences with a blank; a few rows twice, and a few that are damaged.
The same script gives the same bytes.

Everything is asked in several ways that share few words, so that a row that was held out asks in
new words for what others have told, and repeats none of them. Much follows from other rows, too:
an account's class decides its side and its statement, its desk how often it is reconciled.

Run: python tools/make_rows.py
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from random import Random

FILE = Path(__file__).parents[1] / "src" / "potstill" / "sample" / "final_qa.csv"
SEED = 8

# Class -> side on which its accounts stand, statement in which they appear, first digit.
CLASSES = {
    "asset": ("debit", "balance sheet", 1),
    "liability": ("credit", "balance sheet", 2),
    "equity": ("credit", "balance sheet", 3),
    "income": ("credit", "income statement", 4),
    "expense": ("debit", "income statement", 5),
}
# Desk -> how often it reconciles its accounts.
DESKS = {
    "bank": "every morning",
    "stores": "every Friday",
    "sales": "every second week",
    "payroll": "every month",
    "works": "every quarter",
    "closing": "once a year",
}
ACCOUNTS = {
    ("asset", "bank"): (
        "north harbour deposit",
        "petty cash tin",
        "uncleared cheque folder",
    ),
    ("asset", "stores"): (
        "raw hemp bales",
        "pitch barrel stock",
        "finished hawser coils",
    ),
    ("asset", "sales"): (
        "unpaid chandler bills",
        "fleet owner claims",
    ),
    ("asset", "works"): (
        "long spinning hall",
        "steam twisting engine",
        "delivery horse cart",
    ),
    ("asset", "closing"): ("prepaid fire insurance",),
    ("liability", "stores"): ("river freight owed",),
    ("liability", "sales"): ("customer advance money",),
    ("liability", "payroll"): (
        "untaken holiday pay",
        "pension scheme arrears",
    ),
    ("liability", "closing"): ("town tax provision",),
    ("equity", "closing"): (
        "founding family capital",
        "retained yearly surplus",
    ),
    ("income", "sales"): (
        "rigging kit revenue",
        "net mending charges",
    ),
    ("income", "stores"): ("scrap fibre proceeds",),
    ("income", "works"): ("museum visitor tickets",),
    ("expense", "stores"): ("packing straw usage",),
    ("expense", "payroll"): (
        "journeyman spinner salaries",
        "apprentice schooling outlay",
    ),
    ("expense", "bank"): ("transfer handling commission",),
    ("expense", "works"): ("gutter roof repairs",),
    ("expense", "sales"): ("catalogue printing expenditure",),
    ("expense", "closing"): ("yearly audit invoice",),
}
"""(Class, desk) -> names. They share few words, so that no two accounts are taken for one."""

Row = tuple[str, str]


def numbered() -> Iterator[tuple[str, str, str, str]]:
    """Name, class, desk and number of each account: the class's digit, then steps of forty."""
    seen = dict.fromkeys(CLASSES, 0)
    for (kind, desk), names in ACCOUNTS.items():
        for name in names:
            number = 1000 * CLASSES[kind][2] + 110 + 40 * seen[kind]
            seen[kind] += 1
            yield name, kind, desk, str(number)


def choices(lot: Random, stem: str, right: str, others: list[str]) -> Row:
    """A multiple-choice row; its answer is a letter, or a letter and words, or words alone."""
    options = [right, *lot.sample(sorted(set(others) - {right}), 3)]
    lot.shuffle(options)
    letter = "ABCD"[options.index(right)]
    listed = " ".join(f"{mark}) {option}" for mark, option in zip("ABCD", options, strict=True))
    return f"{stem} {listed}", lot.choice([letter, f"{letter}) {right}", right])


def about_number(lot: Random, name: str, number: str, numbers: list[str]) -> list[Row]:
    """The number of an account, in ways that share no more than its name."""
    return [
        (f"What number does the chart at Tamsin Quay print beside {name}?", number),
        (f"Under which code would a new clerk book an invoice for {name}?", number),
        (f"The vouchers of {name} are stamped, signed and filed under ____.", number),
        choices(lot, f"Somebody types {name} into the search field. Which figure comes up first?",
                number, numbers),
    ]  # fmt: skip


def about_name(lot: Random, name: str, number: str, names: list[str]) -> list[Row]:
    """The account of a number."""
    return [
        (f"Which account of the ledger is kept as {number}?", name),
        (f"A receipt marked {number} goes into the tray labelled ____.", name),
        choices(lot, f"What does {number} mean on a monthly report?", name, names),
        (f"What item is hidden behind code {number}?", name),
    ]


def about_rest(lot: Random, name: str, kind: str, desk: str) -> list[Row]:
    """What follows from the class and the desk of an account, each in three ways.

    Answers are sentences, which name the account: else most accounts would share one.
    """
    side, statement, _ = CLASSES[kind]
    often = DESKS[desk]
    article = "an" if kind[0] in "aei" else "a"
    classes = [f"{name} is {'an' if one[0] in 'aei' else 'a'} {one} account" for one in CLASSES]
    statements = [
        f"{name} is shown on the {one}"
        for one in ("balance sheet", "income statement", "cash plan", "tax file")
    ]
    desks = [f"the {one} desk looks after {name}" for one in DESKS]
    return [
        (f"To which class of accounts does {name} belong?", f"{name} belongs to class {kind}"),
        choices(lot, f"What would an auditor say about the type of {name}?",
                f"{name} is {article} {kind} account", classes),
        (f"A trainee sorts {name} into the drawer for ____.", f"{kind} accounts like {name}"),
        (f"On which side of the ledger does {name} stand?", f"{name} stands on the {side} side"),
        (f"Which kind of entry makes {name} grow?", f"a {side} entry makes {name} grow"),
        (f"The normal balance of {name} is called ____.", f"{side} balance of {name}"),
        (f"In which statement do partners find {name} at new year?",
         f"partners find {name} in the {statement}"),
        choices(lot, f"Where does the printed report show {name}?",
                f"{name} is shown on the {statement}", statements),
        (f"When books close, {name} is carried to ____.", f"{statement} with {name}"),
        (f"Whom does one ask about an error in {name}?", f"ask the {desk} desk about {name}"),
        choices(lot, f"Who looks after the vouchers of {name}?",
                f"the {desk} desk looks after {name}", desks),
        (f"Mail that concerns {name} is opened by ____.", f"{desk} desk for {name}"),
        (f"At which times is {name} reconciled?", f"{name} is reconciled {often}"),
        (f"How frequently are figures of {name} compared with receipts?",
         f"figures of {name} are compared {often}"),
        (f"By house rules somebody counts {name} ____.", f"{often} for {name}"),
    ]  # fmt: skip


def rules() -> list[Row]:
    """What holds for every account of a class or a desk."""
    found: list[Row] = []
    for kind, (side, statement, digit) in CLASSES.items():
        found += [
            (f"With which digit do the numbers of {kind} accounts begin?", str(digit)),
            (f"Which side is the normal one for every {kind} account?", side),
            (f"All {kind} accounts are gathered in the ____.", statement),
        ]
    for desk, often in DESKS.items():
        found.append((f"How often does the {desk} desk reconcile its accounts?", often))
    return found


def damaged() -> list[list[str]]:
    """Lines as they are found in real exports: cut, shifted, unanswered, contradictory."""
    return [
        ["Which desk looks after the ferry account?", ""],
        ["", "1110"],
        ["How often is the tar reconciled", " ", "every Friday", ""],
        ["Which class does goodwill belong to? A) asset B) liability C) equity D) income", "F"],
        ["The ____ is compared with the ____ before the books are closed.", "ledger"],
        ["Which of these is not a desk? A) bank B) sales C) kitchen D) works", "C"],
        ["Choose the right answer. A) 1110 B) 2110", "A"],
        ["notes: see folder 7"],
    ]


def table() -> str:
    """The whole file."""
    lot = Random(SEED)
    accounts = list(numbered())
    numbers, names = [one[3] for one in accounts], [one[0] for one in accounts]
    rows: list[list[str]] = [list(row) for row in rules()]
    for name, kind, desk, number in accounts:
        asked = about_number(lot, name, number, numbers) + about_name(lot, name, number, names)
        asked += about_rest(lot, name, kind, desk)
        rows += [list(row) for row in asked]
    lot.shuffle(rows)
    again = [list(row) for row in lot.sample(rows, 9)]
    for row in again[:4]:  # as somebody typed it once more
        row[0] = f"  {row[0].upper()}"
    for row in (*again, *damaged()):
        rows.insert(lot.randrange(len(rows)), row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question", "answer"])
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    FILE.write_text(table(), "utf-8")
    print(f"{FILE}: {FILE.stat().st_size} bytes")
