"""Write the sample rows: src/potstill/sample/final_qa.csv, questions about an invented company's books.

In: the chart of accounts below. Out: a CSV file with the columns question and answer, as a real
export would hold it: plain questions, multiple choice with the choices in the text and the answer
as a letter or in words, sentences with a blank; a few rows twice, and a few that are damaged.
The same script gives the same bytes.

What is asked about an account follows from few facts: its class decides on which side it stands and
in which statement it appears, its desk decides how often it is reconciled. So a row that was held
out can be answered by who has learnt from the others.

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
WORDINGS = 19  # of those that each account has

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
ACCOUNTS = (
    ("harbour bank", "asset", "bank"),
    ("petty cash tin", "asset", "bank"),
    ("cheques in transit", "asset", "bank"),
    ("raw hemp stock", "asset", "stores"),
    ("tar and pitch stock", "asset", "stores"),
    ("finished rope stock", "asset", "stores"),
    ("chandler receivables", "asset", "sales"),
    ("fleet receivables", "asset", "sales"),
    ("prepaid insurance", "asset", "closing"),
    ("spinning hall", "asset", "works"),
    ("twisting machines", "asset", "works"),
    ("delivery carts", "asset", "works"),
    ("overdraft facility", "liability", "bank"),
    ("hemp growers payable", "liability", "stores"),
    ("freight payable", "liability", "stores"),
    ("customer deposits", "liability", "sales"),
    ("wages owed", "liability", "payroll"),
    ("holiday pay owed", "liability", "payroll"),
    ("pension dues", "liability", "payroll"),
    ("machine loan", "liability", "works"),
    ("tax provision", "liability", "closing"),
    ("founder capital", "equity", "closing"),
    ("retained surplus", "equity", "closing"),
    ("partner drawings reserve", "equity", "closing"),
    ("anchor rope sales", "income", "sales"),
    ("rigging sales", "income", "sales"),
    ("net mending fees", "income", "sales"),
    ("deposit interest", "income", "bank"),
    ("scrap fibre revenue", "income", "stores"),
    ("hall letting revenue", "income", "works"),
    ("hemp consumed", "expense", "stores"),
    ("packing material", "expense", "stores"),
    ("spinner wages", "expense", "payroll"),
    ("office salaries", "expense", "payroll"),
    ("apprentice training", "expense", "payroll"),
    ("bank charges", "expense", "bank"),
    ("machine wear", "expense", "works"),
    ("roof repairs", "expense", "works"),
    ("trade fair costs", "expense", "sales"),
    ("audit fee", "expense", "closing"),
)

Row = tuple[str, str]


def numbered() -> Iterator[tuple[str, str, str, int]]:
    """Each account with its number: the class's digit, then one in steps of forty from ten."""
    seen = dict.fromkeys(CLASSES, 0)
    for name, kind, desk in ACCOUNTS:
        number = 1000 * CLASSES[kind][2] + 110 + 40 * seen[kind]
        seen[kind] += 1
        yield name, kind, desk, number


def choices(lot: Random, stem: str, right: str, others: list[str]) -> Row:
    """A multiple-choice row; its answer is a letter, or a letter and words, or words alone."""
    options = [right, *lot.sample(sorted(set(others) - {right}), 3)]
    lot.shuffle(options)
    letter = "ABCD"[options.index(right)]
    listed = " ".join(f"{mark}) {option}" for mark, option in zip("ABCD", options, strict=True))
    return f"{stem} {listed}", lot.choice([letter, f"{letter}) {right}", right])


def rows_of(lot: Random, name: str, kind: str, desk: str, number: int, all_numbers: list[str],
            all_names: list[str]) -> list[Row]:  # fmt: skip
    """Everything that is asked about one account."""
    side, statement, _ = CLASSES[kind]
    other = "credit" if side == "debit" else "debit"
    often, code = DESKS[desk], str(number)
    kinds, statements = list(CLASSES), ["balance sheet", "income statement", "cash plan", "tax file"]
    return [
        (f"What number does the chart of accounts give to {name}?", code),
        (f"Under which code would a clerk at Tamsin Quay book {name}?", code),
        (f"In the ledger at Tamsin Quay the page headed {name} is marked ____.", code),
        choices(lot, f"Which of the following numbers stands for {name}?", code, all_numbers),
        (f"Which account is kept under number {code}?", name),
        (f"A voucher stamped {code} goes into the file called ____.", name),
        choices(lot, f"What does the code {code} mean on an invoice?", name, all_names),
        (f"To which class of accounts does {name} belong?", kind),
        (f"What kind of item is {name} in the books?", kind),
        choices(lot, f"Which heading of the chart is {name} listed under?", kind, kinds),
        (f"An auditor who finds {name} in the trial balance files it as ____.", kind),
        (f"On which side does {name} normally stand?", side),
        (f"Is the usual balance of {name} a debit or a credit?", side),
        (f"An entry that makes {name} grow is a ____.", side),
        (f"Which entry makes {name} smaller?", other),
        (f"In which statement does {name} appear at the end of the year?", statement),
        (f"Does a reader find {name} on the balance sheet or in the income statement?", statement),
        choices(lot, f"Where is {name} reported to the partners?", statement, statements),
        (f"Which desk looks after {name}?", f"the {desk} desk"),
        (f"Whom does one ask about an error in {name}?", f"the {desk} desk"),
        choices(lot, f"Who signs off {name}?", f"the {desk} desk", [f"the {d} desk" for d in DESKS]),
        (f"The vouchers of {name} are handed to ____.", f"the {desk} desk"),
        (f"How often is {name} reconciled?", often),
        (f"When are the figures of {name} compared with the vouchers?", often),
        (f"By the rules of Tamsin Quay {name} is checked ____.", often),
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
    numbers, names = [str(one[3]) for one in accounts], [one[0] for one in accounts]
    rows: list[list[str]] = [list(row) for row in rules()]
    for name, kind, desk, number in accounts:
        asked = rows_of(lot, name, kind, desk, number, numbers, names)
        kept = sorted(lot.sample(range(len(asked)), WORDINGS))
        rows += [list(asked[place]) for place in kept]
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
