"""Curation measured: near-duplicates among 100,000 rows, and leaks that were planted.

    python benchmarks/data_curate.py

The rows are invented, and alike on purpose: one grammar, 320 places, 140 things, 58 properties, so
that many rows differ in one word alone and are different facts all the same. Into them go copies
with the small changes that make near-duplicates, and paraphrases and misspelt copies of rows that
end up in the test split. One JSON object a line goes to stdout, all else to stderr.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter

from figures import figure

from potstill.curate import CurateConfig
from potstill.curate.curation import Curated, Material, curate
from potstill.curate.dedup import Text, repeats
from potstill.curate.filters import answer_of
from potstill.curate.noise import with_typos
from potstill.curate.text import words
from potstill.records import Example, Provenance, Turn, short_id

ROWS, PLANTED, LEAKS = 100_000, 2_000, 2_000
START = "bran dun gar har kil lor mar nor pen ros sel tor ul ves wick yar ash bel cor dale".split()
END = "noch moor ford ton ley by wick stead holm gate wyn combe thorpe field burn mouth".split()
KINDS = "boiler pump kiln crane lock turbine mill press lamp ferry bridge drill loom silo".split()
PARTS = "valve gauge belt rotor filter bearing cable hatch sensor motor".split()
PROPERTIES = """weight height capacity age colour maker keeper price voltage pressure range output
 width speed length depth origin warranty inspector supplier manual battery inlet outlet gearing
 torque temperature humidity mounting housing coating lubricant coupling material finish code
 serial revision batch shelf location owner operator shift schedule interval limit alarm signal
 channel frequency tolerance rating class category lifetime purpose successor""".split()
SHAPES = (
    "What is the {property} of the {thing} in {place}?",
    "Which {property} does the {thing} at {place} have?",
    "What {property} is given for the {thing} near {place}?",
    "For the {thing} of {place}, what is the {property}?",
    "Can you say which {property} the {thing} in {place} needs?",
    "In {place}, what is known of the {property} that the {thing} has?",
    "Who wrote down the {property} of the {thing} in {place}?",
    "When was the {property} of the {thing} in {place} last checked?",
)
SAME = {
    "what": "which",
    "is": "would be",
    "given": "stated",
    "needs": "requires",
    "known": "recorded",
    "checked": "examined",
    "wrote": "noted",
    "near": "close to",
    "in": "at",
}
FRAMES = (
    "Could you kindly tell me: {question}",
    "hey, {question}",
    "I would like to know the following. {question}",
    "{question} Please answer briefly.",
)


def row(question: str, answer: str, parent: str | None = None, variant: str = "") -> Example:
    """A ready-made row without a passage."""
    return Example(
        id=short_id(question, answer, parent or ""),
        turns=(Turn(role="user", content=question), Turn(role="assistant", content=answer)),
        question=question,
        answers=(answer,),
        provenance=Provenance(document="rows.csv", chunk="", parent=parent, variant=variant),
    )


def invented(count: int, lot: random.Random) -> list[Example]:
    """That many different facts."""
    places = [f"{a}{b}".capitalize() for a in START for b in END]
    things = [f"{kind} {part}" for kind in KINDS for part in PARTS]
    lot.shuffle(places)
    seen: set[tuple[str, str, str]] = set()
    rows = []
    while len(rows) < count:
        fact = (lot.choice(PROPERTIES), lot.choice(things), lot.choice(places))
        if fact in seen:
            continue
        seen.add(fact)
        question = lot.choice(SHAPES).format(property=fact[0], thing=fact[1], place=fact[2])
        answer = lot.choice(
            (
                f"{lot.randint(2, 9999)} {lot.choice(('kg', 'mm', 'volts', 'litres', 'hours'))}",
                f"{lot.choice(places)} {lot.choice(('Works', 'Brothers', 'Foundry', 'Supply'))}",
                f"the {lot.choice(PROPERTIES)} of the {lot.choice(things)}",
                f"every {lot.choice(('Monday', 'second week', 'spring', 'month'))} by the "
                f"{lot.choice(('warden', 'foreman', 'clerk', 'fitter'))} of {lot.choice(places)}",
            )
        )
        rows.append(row(question, answer))
    return rows


def nearly(question: str, lot: random.Random) -> tuple[str, str]:
    """A question that is the same for people, and what was changed."""
    kind = lot.choice(("writing", "small word", "one slip", "two slips", "order", "a word more"))
    parts = question.split()
    if kind == "writing":
        return f"  {question.upper() if lot.random() < 0.5 else question.lower()} ??", kind
    if kind == "small word":
        small = [place for place, word in enumerate(parts) if word in {"the", "of", "is", "in"}]
        del parts[lot.choice(small)]
        return " ".join(parts), kind
    if kind == "order":
        place = lot.randrange(1, len(parts) - 2)
        parts[place], parts[place + 1] = parts[place + 1], parts[place]
        return " ".join(parts), kind
    if kind == "a word more":
        parts.insert(lot.randrange(1, len(parts)), lot.choice(("exactly", "currently", "please")))
        return " ".join(parts), kind
    wanted = 1 if kind == "one slip" else 2
    return with_typos(question, wanted / len(parts), lot), kind


def paraphrased(question: str, lot: random.Random) -> str:
    """Another way of asking, by rules: synonyms, a frame, another order."""
    parts = [SAME.get(word.lower(), word) for word in question.rstrip("?").split()]
    if lot.random() < 0.5 and " in " in question:
        head, _, tail = question.rstrip("?").rpartition(" in ")
        parts = ["In", *tail.split(), *head[:1].lower(), *head[1:].split()]
        parts = f"In {tail}, {head[:1].lower()}{head[1:]}".split()
    return lot.choice(FRAMES).format(question=" ".join(parts) + "?")


def duplicates(count: int, planted: int) -> None:
    """Time, share found, share of others taken."""
    lot = random.Random(5)
    facts = invented(count - planted, lot)
    texts = [(one.question, answer_of(one)) for one in facts]
    places = list(range(len(texts)))
    originals = lot.sample(places, planted)
    kinds = {}
    rows = [(lot.random(), place, text) for place, text in enumerate(texts)]
    for number, place in enumerate(originals):
        question, kind = nearly(texts[place][0], lot)
        kinds[len(texts) + number] = kind
        rows.append((lot.random(), len(texts) + number, (question, texts[place][1])))
    rows.sort()
    began = time.perf_counter()
    content = [Text(tuple(words("\n".join(text))), str(name)) for _, name, text in rows]
    found = repeats(content, CurateConfig().near_duplicate)
    took = time.perf_counter() - began
    pair = {len(texts) + number: place for number, place in enumerate(originals)}
    caught, others = Counter[str](), 0
    for (_, name, _), repeat in zip(rows, found, strict=True):
        if repeat is None:
            continue
        other = rows[repeat.of][1]
        copies = [one for one in (name, other) if one in pair]
        if any(pair[one] in {name, other} for one in copies):
            caught[kinds[copies[0]]] += 1
        else:
            others += 1
    missed = set(kinds) - {
        one
        for (_, name, _), repeat in zip(rows, found, strict=True)
        if repeat is not None
        for one in (name, rows[repeat.of][1])
        if one in kinds
    }
    for name in sorted(missed)[:9]:
        copy = next(text for _, own, text in rows if own == name)
        print("missed:", texts[pair[name]][0], "|", *copy, file=sys.stderr)
    print("found of each kind:", dict(caught), "of", dict(Counter(kinds.values())), file=sys.stderr)
    share, taken = caught.total() / planted, others / (count - planted)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    how = f"{count} invented rows, {planted} planted; case, small words, slips, order, a word more"
    figure("near_duplicates_seconds", round(took, 1), "s", 60, took < 60, how)
    figure("near_duplicates_found", round(share, 4), "ratio", 0.99, share >= 0.99, how)
    figure("others_taken", round(taken, 5), "ratio", 0.01, taken <= 0.01, how)
    how = "peak of the process after removing duplicates, the rows themselves included"
    figure("near_duplicates_memory", round(memory / 1e6), "MB", 2000, memory < 2e9, how)


def leaks(count: int, planted: int) -> None:
    """How many paraphrases and misspelt copies of held-out rows are in training."""
    lot = random.Random(6)
    facts = invented(count, lot)
    config = CurateConfig(typo_variants=1)
    for named in (True, False):
        origin: dict[str, str] = {}
        rows = list(facts)
        for one in lot.sample(facts, planted):
            for variant in ("formal", "typo"):
                asked = (
                    paraphrased(one.question, lot)
                    if variant == "formal"
                    else with_typos(one.question, 0.25, lot)
                )
                parent = one.id if named else None
                copy = row(asked, answer_of(one), parent, variant if named else "")
                origin[copy.id] = one.id
                rows.append(copy)
        lot.shuffle(rows)
        began = time.perf_counter()
        done = curate(Material([], rows), config, seed=3)
        took = time.perf_counter() - began
        crossed = _crossing(done, origin)
        innocent = {one.id for one in facts} - set(origin.values())
        lost = sum(one.id in innocent and one.reason == "contaminated" for one in done.rejected)
        held = sum(len(done.kept[split]) for split in ("validation", "test"))
        kind = "with their parent named" if named else "found by content alone"
        how = (
            f"{2 * planted} paraphrases (by rules) and misspelt copies of {planted} of {count} "
            f"rows, {kind}; {held} rows held out; curated in {took:.0f} s; "
            f"{lost} innocent rows rejected as leaks"
        )
        name = "leaks_crossing" if named else "leaks_crossing_unnamed"
        figure(name, crossed, "rows", 0, crossed == 0, how)
        if not named:
            share = lost / len(innocent)
            figure("innocent_taken_as_leaks", round(share, 5), "ratio", 0.01, share <= 0.01, how)


def _crossing(done: Curated, origin: dict[str, str]) -> int:
    """Training rows that vary the same row as a held-out one does, or a held-out row itself."""
    held = {
        origin.get(one.id, one.id): one
        for split in ("validation", "test")
        for one in done.kept[split]
    }
    count = 0
    for one in done.kept["train"]:
        first = one.provenance.parent if one.provenance.variant == "typo" else None
        root = origin.get(one.id) or origin.get(first or "") or first or one.id
        if root in held:
            count += 1
            print("crossed:", one.question, "|", held[root].question, file=sys.stderr)
    return count


def main() -> None:
    """Both parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    share = options.rows / ROWS
    duplicates(options.rows, round(PLANTED * share))
    leaks(options.rows // 5, round(LEAKS * share))


if __name__ == "__main__":
    main()
