"""The generate stage over fakes: counts, retries, order, useless teachers, SIGKILL and resume."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generation_stage import Stage, chunk, config
from killing import kill

from potstill.core.events import Emitter, read_events
from potstill.core.files import read_json
from potstill.errors import InputError, PotstillError, RecipeError, TeacherError
from potstill.generate import STAGE, GenerateConfig
from potstill.generate.jobs import request_seed, tasks
from potstill.inference.base import Reply, Request
from potstill.inference.fake import FakeModel


class Shuffled(FakeModel):
    """Answers all requests, in a random order."""

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        replies = list(super().complete(requests))
        random.Random(3).shuffle(replies)
        yield from replies


class Spoiled(FakeModel):
    """Spoils the first `times` replies to every task."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.seen = times, dict[str, int]()

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        for position, request in enumerate(requests):
            asked = request.messages[-1].content
            self.seen[asked] = self.seen.get(asked, 0) + 1
            spoiled = self.seen[asked] <= self.times
            model = FakeModel(garbage=True) if spoiled else FakeModel()
            for _, reply in model.complete([request]):
                yield position, reply


def test_every_task_becomes_a_row_or_a_rejected_one_and_the_summary_counts_them(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, [chunk(n) for n in range(6)])
    stage.run(config())
    wanted = sum(len(tasks(config(), chunk(n))) for n in range(6))
    summary = read_json(stage.draft.data / "summary.json")
    assert len(stage.examples) + len(stage.rejected) == wanted
    assert summary["pairs"] == len(stage.examples) >= 0.8 * wanted
    assert summary["chunks"] == 6
    assert sum(summary["rejected"].values()) == len(stage.rejected)
    assert summary["requests"] == summary["pairs"] + sum(summary["failed_attempts"].values())
    assert summary["prompt_tokens"] > 0 < summary["completion_tokens"]
    order = [one.provenance.chunk for one in stage.examples]
    assert list(dict.fromkeys(order)) == [chunk(n).id for n in range(6)]
    assert len({one.id for one in stage.examples}) == len(stage.examples)


def test_the_bytes_do_not_depend_on_the_order_of_the_replies(tmp_path: Path) -> None:
    chunks = [chunk(n) for n in range(8)]
    ordered, shuffled = Stage(tmp_path / "a", chunks), Stage(tmp_path / "b", chunks)
    ordered.run(config())
    shuffled.run(config(parallel=3), model=Shuffled())
    assert ordered.digests == shuffled.digests


def test_another_seed_asks_other_things(tmp_path: Path) -> None:
    one, two = (Stage(tmp_path / name, [chunk(1)]) for name in "ab")
    one.run(config(), seed=1)
    two.run(config(), seed=2)
    assert one.digests != two.digests
    assert request_seed(1, "c", 2, 3) == request_seed(1, "c", 2, 3)
    seeds = {request_seed(*parts) for parts in [(1, "c", 2, 3), (2, "c", 2, 3), (1, "d", 2, 3)]}
    assert len(seeds) == 3


def test_a_spoiled_reply_is_asked_for_again_and_then_rejected_with_its_reason(
    tmp_path: Path,
) -> None:
    again = Stage(tmp_path / "again", [chunk(1)])
    again.run(config(attempts=3), model=Spoiled(1))
    assert again.examples
    failed = read_json(again.draft.data / "summary.json")["failed_attempts"]
    assert failed["invalid_reply"] == len(tasks(config(), chunk(1)))
    never = Stage(tmp_path / "never", [chunk(1), chunk(2)])
    with pytest.raises(TeacherError):
        never.run(config(attempts=2), model=Spoiled(2))
    assert {one.reason for one in never.rejected} == {"invalid_reply"}
    assert never.rejected[0].row["reply"] == "no no no"
    events, _ = read_events(tmp_path / "never" / "events.jsonl")
    assert sum(event["kind"] == "rejected" for event in events) == len(never.rejected)


@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_how_far_it_is_counts_the_requests_that_are_likely_to_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: int
) -> None:
    said: list[tuple[str, float]] = []

    def note(self: Emitter, done: float, total: float, unit: str, **fields: Any) -> None:
        said.append((fields.get("step", ""), fields["share"]))

    monkeypatch.setattr(Emitter, "progress", note)
    count = 90  # a first block, and what is left
    stage = Stage(tmp_path, [chunk(n) for n in range(count)])
    stage.run(config(attempts=3), model=Spoiled(spoiled))
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    ends = [place for place, (step, _) in enumerate(said) if step == ""]
    assert len(ends) > 1
    # In the last block what the first one needed is known: its rounds are equally long, as it is
    # this teacher's habit to fail so many times.
    *_, last = [said[one + 1 : other + 1] for one, other in itertools.pairwise(ends)]
    begun = said[ends[-2]][1]
    first = [share for step, share in last if step == "attempt 1"][-1]
    assert (first - begun) / (1 - begun) == pytest.approx(1 / (spoiled + 1), abs=0.06)


def test_a_question_asked_twice_in_a_chunk_is_kept_once(tmp_path: Path) -> None:
    class Parrot(FakeModel):
        def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
            for position, request in enumerate(requests):
                assert request.schema is not None
                answer = request.schema["properties"]["answer"]["enum"][0]
                text = {
                    "question": "What is it about the harbour lamp and the wooden bridge there?",
                    "reasoning": f"It is {answer}.",
                    "answer": answer,
                }
                yield position, Reply(json.dumps(text), "stop", 1, 1, 0.0)

    text = "The harbour lamp and the wooden bridge there cost 12 crowns and weigh 40 stones."
    stage = Stage(tmp_path, [chunk(1, text)])
    stage.run(config(), model=Parrot())
    assert [one.answers for one in stage.examples] == [("12 crowns",)]
    assert [one.reason for one in stage.rejected] == ["duplicate_question"]


def test_a_useless_teacher_is_one_clear_error_before_all_chunks_are_tried(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [chunk(n) for n in range(200)])
    model = Spoiled(99)
    with pytest.raises(TeacherError, match="answered nothing usable") as caught:
        stage.run(config(), model=model)
    assert "invalid_reply" in caught.value.message
    assert caught.value.exit_code == 4
    assert sum(model.seen.values()) < 600
    events, _ = read_events(tmp_path / "events.jsonl")
    refused = [event for event in events if event["kind"] == "rejected"]
    assert refused
    assert all(event["reply"] and event["reason"] == "invalid_reply" for event in refused)


def test_a_teacher_that_refuses_everything_says_why(tmp_path: Path) -> None:
    class Refusing(FakeModel):
        def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
            for position, _ in enumerate(requests):
                yield position, Reply("request exceeds the context", "error", 0, 0, 0.0)

    with pytest.raises(TeacherError, match="exceeds the context") as caught:
        Stage(tmp_path, [chunk(1)]).run(config(), model=Refusing())
    assert "context_tokens" in caught.value.hint


def test_chunks_without_anything_to_ask_are_one_clear_error(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [chunk(1, "Title\n\nAnother title")])
    with pytest.raises(InputError, match="no sentence or table row"):
        stage.run(config())


def test_facts_need_a_teacher_unless_there_is_a_fake(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="teacher is empty"):
        STAGE.facts(GenerateConfig(), tmp_path)
    assert STAGE.facts(config(), tmp_path) == {"teacher": "fake 1"}
    with pytest.raises(PotstillError, match="no model at"):
        STAGE.facts(GenerateConfig(teacher="nowhere.gguf"), tmp_path)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from generation_stage import Stage, chunk, config
from killing import noted
from potstill.inference.fake import FakeModel

folder = Path(sys.argv[1])
teacher = noted(FakeModel, folder / "sent")(delay=0.01)
Stage(folder, [chunk(n) for n in range(12)]).run(config(), model=teacher)
"""
HELPERS = str(Path(__file__).parents[2] / "support")


def test_killed_at_any_moment_and_resumed_no_finished_request_is_sent_twice(
    tmp_path: Path,
) -> None:
    undisturbed = Stage(tmp_path / "undisturbed", [chunk(n) for n in range(12)])
    undisturbed.run(config())
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", KILLED, str(folder), HELPERS]
    kills = kill(command, folder / "sent", seed=5, times=20, within=0.15)
    assert kills >= 2
    killed = Stage(folder, [chunk(n) for n in range(12)])
    assert killed.digests == undisturbed.digests
    asked = (folder / "sent").read_text().split()
    # A request that was on its way when the process died is the only one that may come again.
    assert len(asked) - len(set(asked)) <= kills
    finished = [
        json.loads(line)["key"]
        for path in (folder / "cache" / "requests").iterdir()
        for line in path.read_text().splitlines()
        if line
    ]
    assert len(finished) == len(set(finished)) == len(set(asked))
