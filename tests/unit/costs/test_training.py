"""Memory, messages and time of a step, by hand and by properties."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.costs.binding import Phase, bound, phase_seconds
from potstill.costs.cluster import accelerators, parse_cluster
from potstill.costs.decoder import published
from potstill.costs.fitting import nearest_change
from potstill.costs.signals import cheapest, crossing, reading, sources
from potstill.costs.training import Training, fits, memory_of, sent_of, step_of

SEVEN, SEVENTY = published()["Llama-2-7B"], published()["Llama-3-70B"]
SMALL = published()["SmolLM2-135M"]
ONE, EIGHT = parse_cluster("H100"), parse_cluster("8xH100")
SIXTEEN = parse_cluster("2x8xH100")
LESSON = Training(SEVEN, SEVENTY, "live", micro_tokens=4096, step_tokens=8 * 4096)
AMOUNT = st.floats(0, 1e18)


def test_memory_of_whole_copies_and_of_shards_by_hand() -> None:
    whole = memory_of(LESSON, EIGHT)
    assert whole["weights"] == (16 + 2) * SEVEN.weights  # fp32 training, and bf16 copies
    assert whole["teacher"] == 2 * SEVENTY.weights
    assert whole["activations"] == 4096 * SEVEN.kept_bytes()
    assert whole["gathered"] == 0
    shards = memory_of(LESSON, EIGHT, sharded=True)
    assert shards["weights"] * 8 == 16 * SEVEN.weights
    assert shards["teacher"] == whole["teacher"]  # it is whole on every rank
    assert shards["activations"] == whole["activations"]
    assert shards["gathered"] == (2 * 4 + 4) * SEVEN.layer_weights
    away = memory_of(replace(LESSON, offloaded=True), EIGHT, sharded=True)
    assert away["weights"] * 8 == 4 * SEVEN.weights  # moments and gradients are elsewhere


def test_memory_of_deepspeeds_parts_by_hand() -> None:
    one = memory_of(replace(LESSON, zero=1), EIGHT)["weights"]
    assert one == (4 + 2 + 4 + (4 + 8) / 8) * SEVEN.weights  # whole: weights, copies, gradients
    two = memory_of(replace(LESSON, zero=2), EIGHT)["weights"]
    assert two == (4 + 2 + (4 + 4 + 8) / 8) * SEVEN.weights
    offloaded = memory_of(replace(LESSON, zero=2, offloaded=True), EIGHT)["weights"]
    assert offloaded == (4 + 2) * SEVEN.weights
    alone = memory_of(replace(LESSON, zero=2), ONE)
    assert alone == memory_of(LESSON, ONE)  # nothing is shared


@pytest.mark.parametrize(("zero", "sharded"), [(0, True), (2, False)])
def test_adapters_are_proposed_without_parts(zero: int, sharded: bool) -> None:
    """For a device on which nothing else helps: a recipe with both would be refused."""
    one = replace(LESSON, zero=zero, teacher=None, teacher_held="nothing", micro_tokens=1024,
                  checkpointed=True)  # fmt: skip
    there = parse_cluster("2xRTX-4090")
    changes = nearest_change(one, there, 1.5e9, "distill", sharded=sharded)
    assert any(change.startswith("distill.adapter=") for change in changes), changes
    assert "distill.sharding=none" in changes


def test_messages_by_hand() -> None:
    alone = replace(LESSON, teacher=None, teacher_held="nothing")
    assert sent_of(alone, ONE) == 0
    assert sent_of(alone, EIGHT) == 2 * 7 / 8 * 4 * SEVEN.weights
    # one micro-batch a rank: fp32 weights gathered forward and backward, gradients scattered
    assert sent_of(alone, EIGHT, sharded=True) == 7 / 8 * (2 * 4 + 4) * SEVEN.weights
    twice = replace(alone, micro_tokens=alone.step_tokens / EIGHT.ranks / 2)
    once = replace(alone, micro_tokens=alone.step_tokens / EIGHT.ranks)
    assert sent_of(twice, EIGHT, sharded=True) == 2 * 7 / 8 * (2 * 4 + 4) * SEVEN.weights
    assert sent_of(replace(once, zero=1), EIGHT) == 7 / 8 * (4 + 4) * SEVEN.weights
    assert sent_of(replace(twice, zero=2), EIGHT) == 7 / 8 * (2 * 4 + 4) * SEVEN.weights
    lora = replace(alone, adapter="lora")
    assert sent_of(lora, EIGHT) == pytest.approx(0.02 * sent_of(alone, EIGHT))


def test_a_step_is_three_passes_of_the_student_and_one_of_the_teacher() -> None:
    step = step_of(LESSON, EIGHT)
    student, teacher = (one.forward(4096, 256, 4096) for one in (SEVEN, SEVENTY))
    assert step.flops == 3 * student + teacher
    states = step_of(replace(LESSON, teacher_held="output"), EIGHT)
    assert states.flops == 3 * student + 2 * 4096 * SEVENTY.output_weights
    words = step_of(replace(LESSON, teacher_held="nothing", checkpointed=True), EIGHT)
    assert words.flops == 4 * student


@given(AMOUNT, AMOUNT, AMOUNT, AMOUNT)
def test_a_phase_waits_for_its_slowest_resource(a: float, b: float, c: float, d: float) -> None:
    phase = Phase("x", flops=a, traffic=b, sent=c, storage=d)
    taken = phase_seconds(phase, EIGHT)
    spent = bound([phase, phase], EIGHT)
    assert spent.seconds == 2 * max(taken.values())
    assert not spent.seconds or taken[spent.binds] == max(taken.values())


def test_what_binds_changes_with_the_size_and_the_network() -> None:
    def binds(step_tokens: float, cluster: str) -> str:
        there = parse_cluster(cluster)
        one = replace(LESSON, teacher_held="nothing", step_tokens=step_tokens)
        return bound([step_of(one, there)], there).binds

    assert binds(1 << 22, "8xH100") == "compute"
    assert binds(1 << 9, "H100") == "bandwidth"
    assert binds(1 << 15, "2x8xL40S") == "interconnect"
    fast = replace(LESSON, student=SMALL, teacher_held="output", signal_bytes=1.4 * 8192)
    assert bound([step_of(replace(fast, step_tokens=1 << 20), EIGHT)], EIGHT).binds == "storage"


@given(st.floats(1, 100), st.sampled_from(["8xH100", "L40S", "2x8xA100-80GB", "cpu"]))
def test_sources_cost_the_same_where_they_cross(passes: float, name: str) -> None:
    cluster = parse_cluster(name)
    found = sources(LESSON, 1e9, cluster)
    for kind in ("hidden_bf16", "hidden_int8", "top_k", "sampled"):
        live, file = found["live"], found[kind]
        point = crossing(live, file)
        if math.isinf(point):
            assert file.seconds(passes) > live.seconds(passes)
            continue
        assert file.seconds(point) == pytest.approx(live.seconds(point))
        if passes > point * 1.001:
            assert file.seconds(passes) < live.seconds(passes)
        elif passes < point * 0.999:
            assert file.seconds(passes) > live.seconds(passes)
    fitting = [one for one in found.values() if one.fits]
    if fitting:
        best = cheapest(fitting, passes)
        assert all(best.seconds(passes) <= one.seconds(passes) for one in fitting)
    if found["live"].fits:
        assert cheapest(list(found.values()), passes, room=0.0).kind == "live"


def test_a_file_saves_the_teachers_passes_from_the_second_on() -> None:
    lesson = replace(LESSON, teacher_precision="4bit", checkpointed=True)
    found = sources(lesson, 1e9, EIGHT)
    assert found["live"].fits
    assert not sources(LESSON, 1e9, EIGHT)["live"].fits
    assert 1 <= crossing(found["live"], found["top_k"]) < 1.1
    assert found["hidden_bf16"].file_bytes == pytest.approx(1.4 * 8192 * 1e9)


@pytest.mark.parametrize("cluster", ["RTX-4090", "A100-40GB", "H100", "8xH100", "8xL40S", "T4"])
@pytest.mark.parametrize("teacher", ["Llama-2-7B", "CodeLlama-34B", "Llama-3-70B"])
@pytest.mark.parametrize("student", ["SmolLM2-135M", "SmolLM2-1.7B", "Llama-2-7B", "Llama-2-13B"])
def test_what_is_proposed_makes_it_fit(cluster: str, teacher: str, student: str) -> None:
    known, there = published(), parse_cluster(cluster)
    one = replace(LESSON, student=known[student], teacher=known[teacher])

    def held(one: Training, there: object) -> bool:
        return any(
            fits(1.5e9 + sum(memory_of(one, there, sharded=way).values()), there)  # type: ignore[arg-type]
            for way in ((False, True) if one.adapter == "none" else (False,))
        )

    if held(one, there):
        return
    changes = nearest_change(one, there, 1.5e9, "distill")
    assert changes
    for change in changes:
        if change.startswith("--cluster "):
            there = parse_cluster(change.removeprefix("--cluster "))
            continue
        field, _, value = change.removeprefix("distill.").partition("=")
        if field == "sharding":
            continue  # `held` tries both
        name, kept = {
            "micro_tokens": ("micro_tokens", float(value) if value.isdigit() else 0),
            "gradient_checkpointing": ("checkpointed", True),
            "signal": ("teacher_held", "output"),
            "teacher_precision": ("teacher_precision", value),
            "adapter": ("adapter", value),
        }[field]
        one = replace(one, **{name: kept})  # type: ignore[arg-type]
    assert held(one, there)


def test_one_setting_is_proposed_where_one_is_enough() -> None:
    one = replace(LESSON, student=SMALL, teacher_held="live")
    (change,) = nearest_change(one, parse_cluster("A100-40GB"), 1.5e9, "distill")
    assert change == "distill.signal=hidden_bf16"


def test_the_table_is_there_for_all_that_the_documentation_names() -> None:
    wanted = {"H100", "A100-80GB", "A100-40GB", "L40S", "RTX-4090", "T4", "B200", "cpu"}
    assert set(accelerators()) == wanted


def test_a_teacher_that_does_not_fit_is_read_through_the_disk() -> None:
    whole, layered = (
        reading(SEVENTY, 1e6, 256, 0.0, parse_cluster(name)) for name in ("B200", "H100")
    )
    assert whole.storage == 0
    assert layered.storage == 1e6 * 80 * 2 * 2 * 8192  # each layer's states written and read
    assert reading(SEVENTY, 1e6, 256, 0.0, ONE, "4bit").storage == 0
