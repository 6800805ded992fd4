"""The search over fake stages: suggestions, pruning, kills, changes, failures, what is kept."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from potstill import pipeline
from potstill.core.files import read_json
from potstill.errors import StoreError, TrainingError, UsageError
from potstill.recipe import Recipe
from potstill.tune import Study, read_study, run_study, search
from potstill.tune.trials import pareto

Events = list[dict[str, Any]]


def study_of(fakes: ModuleType, **changes: Any) -> Study:
    return Study.from_dict({**fakes.STUDY, **changes})


def drafts(project: Path) -> list[str]:
    return sorted(one.stem for one in (project / "store" / "distill").glob("*.draft"))


def test_a_study_runs_its_trials_and_leaves_best_recipe_and_page(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    seen: Events = []
    found = run_study(study_of(fakes, trials=8), tmp_path, watch=seen.append)

    assert found.complete
    assert [one.number for one in found.trials] == list(range(8))
    assert {one.state for one in found.trials} == {"complete"}
    values = [one.figures["validation_kl"] for one in found.trials]
    assert found.best[0].figures["validation_kl"] == min(values)
    assert found.best[0].figures["validation_kl"] == pytest.approx(
        min(fakes.curve(found_recipe)[-1] for found_recipe in runs.calls)
    )
    recipe = Recipe.load(found.recipes[0])
    assert found.recipes[0].name == "best.yaml"
    assert recipe.name == "fake-best"
    assert recipe.distill.learning_rate == found.best[0].values["distill.learning_rate"]
    # Of all drafts the best student's alone is left, and it is that recipe's.
    assert drafts(tmp_path) == [found.best[0].notes["draft"]]
    count = len(found.trials)
    assert read_json(found.folder / "status.json") == {"trials": count, "complete": count}
    page = (found.folder / "report.html").read_text("utf-8")
    for trial in found.trials:
        assert f"trial {trial.number}:" in page
        assert f"<td>{trial.number}</td>" in page
    assert "<script" not in page
    assert "://" not in page
    finished = [event for event in seen if event["kind"] == "trial_finished"]
    assert [event["ended"] for event in finished] == list(range(1, 9))
    assert run_study(study_of(fakes, trials=8), tmp_path).trials == found.trials
    assert len(runs.calls) == 8


def test_a_teacher_with_another_tokenizer_is_searched_by_the_figures_of_spans(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    study = study_of(
        fakes,
        set=["distill.alignment.method=spans"],
        objective={"validation_span_kl": "minimize"},
        prune={"warmup_trials": 2, "warmup_validations": 0},
    )
    found = run_study(study, tmp_path)
    assert found.complete
    for trial in (one for one in found.trials if one.state == "complete"):
        figures = trial.notes["figures"]
        assert figures["validation_span_kl"] == trial.curve[-1][1]
        assert figures["validation_bits_per_byte"] == trial.curve[-1][1] / 2
        assert "validation_kl" not in figures
    assert "Span KL to the teacher" in (found.folder / "report.html").read_text("utf-8")


def test_suggestions_follow_the_seed_alone(tmp_path: Path, fakes: ModuleType, runs: Any) -> None:
    tried = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        found = run_study(study_of(fakes, seed=seed, trials=5), _made(tmp_path / name))
        tried.append([one.values for one in found.trials])
    assert tried[0] == tried[1] != tried[2]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_poor_trial_is_given_up_and_its_draft_deleted(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    prune = {"warmup_trials": 2, "warmup_validations": 0}
    found = run_study(study_of(fakes, trials=12, prune=prune), tmp_path)
    poor = [one for one in found.trials if one.state == "pruned"]
    assert poor
    for trial in poor:
        earlier = [one for one in found.trials[: trial.number] if one.state == "complete"]
        assert len(earlier) >= 2
        # Given up at the first validation after the start where it is beyond the median.
        place = len(trial.curve) - 1
        at_that_place = sorted(one.curve[place][1] for one in earlier)
        middle = len(at_that_place)
        median = (at_that_place[(middle - 1) // 2] + at_that_place[middle // 2]) / 2
        assert trial.curve[-1][1] > median
        assert "not among the best 50%" in trial.notes["reason"]
        assert trial.notes["draft"] not in drafts(tmp_path)
    assert found.best[0].state == "complete"
    assert "given up" in (found.folder / "report.html").read_text("utf-8")


def test_a_draft_that_another_run_works_on_is_left_to_it(
    tmp_path: Path, fakes: ModuleType, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that took a trial's draft over holds its lock while it goes on from there."""
    monkeypatch.setattr("potstill.core.store.DISCARD_PATIENCE", 0.05)
    store = pipeline.store_of(tmp_path)
    search = {"distill.learning_rate": {"choices": [1e-5, 1e-4, 1e-3]}}  # the best one last
    held: list[str] = []
    taken = contextlib.ExitStack()

    def take(event: dict[str, Any]) -> None:
        if event["kind"] == "trial_finished" and not held:
            held.append(event["notes"]["draft"])
            taken.enter_context(store.locked("distill", held[0], 0))

    with taken:
        study = study_of(fakes, search=search, trials=12)
        found = run_study(study, tmp_path, watch=take)
        assert found.complete
        assert held[0] != found.best[0].notes["draft"]
        assert drafts(tmp_path) == sorted([held[0], found.best[0].notes["draft"]])


def test_a_draft_that_was_there_before_the_trial_is_not_deleted(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    """It is another study's best student, or that of a run that was interrupted."""
    search = {"distill.learning_rate": {"choices": [1e-5, 1e-4, 1e-3]}}
    rates = {"distill.learning_rate": {"choices": [1e-5, 1e-4]}}
    first = run_study(study_of(fakes, name="first", search=rates, trials=8), tmp_path)
    theirs = drafts(tmp_path)
    assert theirs == [first.best[0].notes["draft"]]
    found = run_study(study_of(fakes, search=search, trials=12), tmp_path)
    best = found.best[0].notes["draft"]
    assert best not in theirs
    assert drafts(tmp_path) == sorted([*theirs, best])


def test_warmup_validations_are_lived_through(tmp_path: Path, fakes: ModuleType, runs: Any) -> None:
    prune = {"warmup_trials": 2, "warmup_validations": 2}
    found = run_study(study_of(fakes, trials=12, prune=prune), tmp_path)
    shortest = min(len(one.curve) for one in found.trials)
    assert shortest == 4  # before the first step, two of warm-up, and the one that judged


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fakes
from potstill import pipeline
from potstill.core.files import read_json
from potstill.tune import Study, run_study
pipeline.run = fakes.FakeRuns()
if sys.argv[3] != "never":
    pipeline.run.kill_at = (int(sys.argv[3]), 2)
run_study(Study.from_dict(fakes.STUDY), Path(sys.argv[2]))
"""


def test_a_study_that_is_killed_goes_on_as_an_undisturbed_one(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    calm = run_study(study_of(fakes), _made(tmp_path / "calm"))
    project = _made(tmp_path / "killed")
    folder = Path(__file__).parent
    for kill_at, code in (("3", -9), ("2", -9), ("never", 0)):
        command = [sys.executable, "-c", KILLED, str(folder), str(project), kill_at]
        assert subprocess.run(command, timeout=120, check=False).returncode == code
        if code:
            left = read_study(study_of(fakes), project)
            assert not left.complete
            assert [one.state for one in left.trials].count("running") == 1
            assert len(left.trials[-1].curve) == 3
    found = read_study(study_of(fakes), project)
    assert found.complete

    def said(one: Any) -> Any:
        return one.number, one.state, one.values, one.figures, one.curve

    assert [said(one) for one in found.trials] == [said(one) for one in calm.trials]


def test_another_recipe_space_or_objective_is_another_study(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    run_study(study_of(fakes, trials=1), tmp_path)
    wider = json.loads(json.dumps(fakes.STUDY["search"]))
    wider["distill.learning_rate"]["high"] = 0.02
    for changes, name in (
        ({"set": ["distill.epochs=1"]}, "recipe.distill.epochs"),
        ({"search": wider}, "search.distill.learning_rate.high"),
        ({"objective": {"validation_perplexity": "minimize"}}, "objective.validation_perplexity"),
    ):
        with pytest.raises(UsageError, match=name):
            run_study(study_of(fakes, **changes), tmp_path)
    found = run_study(study_of(fakes, trials=2, seed=9, minutes=5), tmp_path)
    assert len(found.trials) == 2


def test_changed_documents_are_noticed(tmp_path: Path, fakes: ModuleType, runs: Any) -> None:
    run_study(study_of(fakes, trials=1), tmp_path)
    file = tmp_path / "studies" / "fake" / "study.db"
    from potstill.tune.trials import Trials

    trials = Trials(study_of(fakes), file)
    with pytest.raises(UsageError, match="result of curate"):
        trials.check("data", {"result of curate": "another"})
    trials.close()


def test_a_failed_trial_is_recorded_and_the_study_goes_on(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    search = {"distill.learning_rate": {"low": 1e-4, "high": 0.9, "log": True}}
    found = run_study(study_of(fakes, search=search, trials=10), tmp_path)
    failed = [one for one in found.trials if one.state == "failed"]
    assert failed
    assert len(failed) < 10
    assert {one.notes["reason"] for one in failed} == {"The loss is not finite."}
    assert "The loss is not finite." in (found.folder / "report.html").read_text("utf-8")


def test_a_study_whose_first_trials_all_fail_stops_with_the_reason(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    search = {"distill.learning_rate": {"low": 0.1, "high": 0.9}}
    with pytest.raises(TrainingError, match=r"first 3 trials .* not finite") as caught:
        run_study(study_of(fakes, search=search), tmp_path)
    assert caught.value.hint == "Lower distill.learning_rate."
    assert len(runs.calls) == 3


def test_a_full_disk_stops_the_study_and_not_the_trial(
    tmp_path: Path, fakes: ModuleType, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(recipe: Any, *arguments: Any, until: str, **named: Any) -> Any:
        if until == "distill" and len(runs.calls) == 2:
            raise StoreError("No space left on device.")
        return runs(recipe, *arguments, until=until, **named)

    monkeypatch.setattr(pipeline, "run", full)
    with pytest.raises(StoreError, match="No space"):
        run_study(study_of(fakes), tmp_path)
    monkeypatch.setattr(pipeline, "run", runs)
    found = run_study(study_of(fakes), tmp_path)
    assert [one.state for one in found.trials] == ["complete"] * 6


def test_equal_values_are_not_trained_twice(tmp_path: Path, fakes: ModuleType, runs: Any) -> None:
    search = {"distill.temperature": {"choices": [1.0, 2.0]}}
    found = run_study(study_of(fakes, search=search, parallel=2), tmp_path)
    assert len(found.trials) == 6
    assert len(runs.calls) == 2
    copies = [one for one in found.trials if "the same values" in one.notes.get("reason", "")]
    assert len(copies) == 4
    assert {one.figures["validation_kl"] for one in copies} <= {
        one.figures["validation_kl"] for one in found.trials[:2] + copies
    }


def test_two_figures_give_a_pareto_front_of_recipes(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    study = study_of(
        fakes,
        objective={"validation_agreement": "maximize", "parameters": "minimize"},
        search={
            "distill.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "distill.student.parameters_ratio": {"choices": [0.6, 0.75, 0.9]},
        },
        trials=10,
    )
    found = run_study(study, tmp_path)
    best = {one.number for one in found.best}
    for one in found.trials:
        better = [
            other
            for other in found.trials
            if other.figures["validation_agreement"] >= one.figures["validation_agreement"]
            and other.figures["parameters"] <= one.figures["parameters"]
            and other.figures != one.figures
        ]
        assert (one.number in best) == (not better)
    assert [path.name for path in found.recipes] == [f"best-{n + 1}.yaml" for n in range(len(best))]
    assert Recipe.load(found.recipes[0]).name == "fake-best-1"
    assert "Pareto front" in (found.folder / "report.html").read_text("utf-8")


def test_of_equal_points_one_stands_for_all() -> None:
    assert pareto({3: (1.0, 2.0), 1: (1.0, 2.0), 2: (2.0, 1.0), 4: (2.0, 2.0)}) == {1, 2}


def test_parallel_trials_run_at_the_same_time_on_their_share_of_cores(
    tmp_path: Path, fakes: ModuleType, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, threads = threading.Barrier(2, timeout=30), set()

    def meeting(recipe: Any, *arguments: Any, until: str, **named: Any) -> Any:
        if until == "distill":
            threads.add(named["threads"])
            together.wait()  # one alone would wait in vain
        return runs(recipe, *arguments, until=until, **named)

    monkeypatch.setattr(pipeline, "run", meeting)
    monkeypatch.setattr("potstill.tune.search.usable_cores", lambda: 6)
    found = run_study(study_of(fakes, parallel=2), tmp_path)
    assert found.complete
    assert threads == {3}


def test_parallel_trials_correct_their_teachers_one_after_the_other(
    tmp_path: Path, fakes: ModuleType, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trials with one `correct` key would wait for each other, and then stop the study."""
    busy = threading.Lock()
    corrected: list[float] = []

    def staged(recipe: Any, *arguments: Any, until: str, **named: Any) -> Any:
        if until == "correct":
            assert busy.acquire(blocking=False), "two at once"
            time.sleep(0.05)
            corrected.append(recipe.correct.learning_rate)
            busy.release()
        if until == "distill":
            assert recipe.correct.learning_rate in corrected
        return runs(recipe, *arguments, until=until, **named)

    monkeypatch.setattr(pipeline, "run", staged)
    search = {
        "correct.learning_rate": {"choices": [1e-5, 5e-5]},
        "distill.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    }
    study = study_of(fakes, set=["correct.method=full"], search=search, parallel=2)
    assert study.shared_stages == ["ingest", "generate", "curate"]
    found = run_study(study, tmp_path)
    assert [one.state for one in found.trials] == ["complete"] * 6
    assert len(corrected) == 6


def test_auto_takes_what_cores_and_memory_allow(
    fakes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    from potstill.tune import slots

    def planned(*_: Any) -> Any:
        return [
            SimpleNamespace(
                name=name,
                estimate={"memory_bytes": {"generate": 99e9, "correct": 8e9}.get(name, 4e9)},
            )
            for name in ("generate", "curate", "correct", "distill", "evaluate")
        ]

    monkeypatch.setattr(pipeline, "plan", planned)
    monkeypatch.setattr(slots, "usable_cores", lambda: 8)
    for memory, most in ((64e9, 6), (16e9, 3), (2e9, 1)):
        monkeypatch.setattr(slots, "memory_bytes", lambda memory=memory: int(memory))
        assert slots.trials_at_once(study_of(fakes, parallel="auto"), tmp_path, print) == most
    # A stage that all share is done before; one that each trial needs for itself counts.
    own = study_of(
        fakes,
        set=["correct.method=full"],
        search={"correct.learning_rate": {"low": 1e-6, "high": 1e-4}},
        parallel="auto",
    )
    monkeypatch.setattr(slots, "memory_bytes", lambda: 32 * 10**9)
    assert slots.trials_at_once(own, tmp_path, print) == 3
    assert slots.trials_at_once(study_of(fakes, parallel="auto"), tmp_path, print) == 6
    monkeypatch.setattr(slots, "memory_bytes", lambda: 2 * 10**9)
    said: Events = []
    assert slots.trials_at_once(study_of(fakes, parallel=9), tmp_path, said.append) == 9
    assert ["of memory" in one["message"] for one in said] == [True, False]


def test_what_is_under_way_when_the_time_is_over_goes_on_later(
    tmp_path: Path, fakes: ModuleType, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]  # seconds, by a clock that only this test moves: the machine may be slow

    def endless(recipe: Any, *arguments: Any, until: str, pulse: Any, **named: Any) -> Any:
        if until == "distill" and len(runs.calls) == 2:
            now[0] = 61.0
            while True:
                pulse()
                time.sleep(0.01)
        return runs(recipe, *arguments, until=until, pulse=pulse, **named)

    monkeypatch.setattr(pipeline, "run", endless)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(search, "time", clock)
    found = run_study(study_of(fakes, minutes=1), tmp_path)
    assert [one.state for one in found.trials] == ["complete", "complete", "running"]
    assert not found.complete
    monkeypatch.setattr(pipeline, "run", runs)
    assert len(run_study(study_of(fakes), tmp_path).trials) == 6


def test_a_second_process_is_refused_and_a_damaged_file_named(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    from filelock import FileLock

    with pytest.raises(StoreError, match="has not begun"):
        read_study(study_of(fakes), tmp_path)
    folder = tmp_path / "studies" / "fake"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(StoreError, match="already running"):
        run_study(study_of(fakes), tmp_path)
    (folder / "study.db").write_bytes(b"no database at all, but long enough to be one" * 40)
    with pytest.raises(StoreError, match="cannot be read"):
        run_study(study_of(fakes), tmp_path)


def test_equal_figures_say_nothing_of_importance_and_warn_of_nothing(
    tmp_path: Path, fakes: ModuleType, runs: Any
) -> None:
    study = study_of(fakes, objective={"parameters": "minimize"}, trials=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run_study(study, tmp_path)
    assert len({one.figures["parameters"] for one in found.trials}) == 1
    assert "Importance</h2>" not in (found.folder / "report.html").read_text("utf-8")
