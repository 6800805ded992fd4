"""`potstill disagree`: where a run's student and its teacher part, token by token of an answer.

In: a run, a question, an answer. Out: the answer's tokens with their divergence. Thin: the work is
`disagreeing.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from potstill.cli_options import JsonOption, ProjectOption, RunArgument, out, print_json


def disagree(
    run_name: RunArgument,
    question: Annotated[str, typer.Argument(help="What was asked.")],
    answer: Annotated[str, typer.Argument(help="What the student said, or any other answer.")],
    passages: Annotated[
        bool, typer.Option(help="Look the question up in the run's documents first.")
    ] = True,
    as_json: JsonOption = False,
    project: ProjectOption = None,
) -> None:
    """Say at which tokens of an answer student and teacher part, and what the teacher would say."""
    from potstill import display
    from potstill.disagreeing import disagreement_on
    from potstill.pipeline import open_run

    found = disagreement_on(open_run(run_name, project), question, answer, passages=passages)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (
            repr(one.text)[1:-1],
            f"{one.kl:.3f}",
            f"{one.probability:.1%}",
            "" if one.agree else repr(one.instead)[1:-1],
        )
        for one in found
    ]
    titles = ("token", "KL, nats", "student's probability", "teacher would say")
    out().print(display.table(titles, rows))
