"""Where a run's student and its teacher part on one answer.

    from potstill.disagreeing import disagreement_on

    for token in disagreement_on(open_run("quickstart"), "Who grades the kelp?", "Tove"):
        print(token.text, token.kl, token.instead)

In: a finished run, a question, an answer. Out: the gaps of `evaluate/disagreement.py`, between the
exported student as safetensors and the teacher that taught it. Loads both, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.core.files import read_records
from potstill.errors import UsageError
from potstill.generate import PromptConfig, student_turn
from potstill.models.corrected import corrected
from potstill.pipeline import Run
from potstill.records import Chunk, Turn

if TYPE_CHECKING:
    from potstill.evaluate.disagreement import TokenGap


def disagreement_on(
    this: Run, question: str, answer: str, *, passages: bool = True
) -> list[TokenGap]:
    """The gaps of the answer's tokens. passages: the question is asked about the passage of the
    run's documents that fits it best, as the chat does.

    Errors: UsageError for a run whose student marks answers, or an empty answer; ModelError for
    models that cannot be compared; StoreError for a run that is not finished.
    """
    if this.task == "spans":
        raise UsageError(f"The student of {this.folder.name} marks answers and writes none.")
    if not question.strip() or not answer.strip():
        raise UsageError("A question and its answer are needed.", "Write both.")
    student = this.artifact("export").path("safetensors")
    recipe = this.record["recipe"]
    teacher = corrected(this.artifact("correct"), str(recipe["correct"]["teacher"]))
    prompt = PromptConfig.model_validate(recipe["generate"]["prompt"])
    passage = _passage(this, question) if passages else ""
    turns = (
        Turn(role="user", content=student_turn(prompt, passage, question)),
        Turn(role="assistant", content=answer),
    )
    from potstill.evaluate.disagreement import disagreement  # brings torch along

    return disagreement(teacher, student, turns, str(recipe["evaluate"].get("template") or ""))


def _passage(this: Run, question: str) -> str:
    from potstill.serve.retrieval import PassageIndex

    index = PassageIndex(read_records(this.artifact("ingest").path("chunks.jsonl"), Chunk))
    found = index.search(question, 1)
    index.close()
    return found[0].text if found else ""
