"""The OpenVLA bench at toy size on the CPU: what it runs, what it writes, and that its baselines do the same work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.gpu_openvla import RUNS, main
from bench.openvla_baselines import TransformersLlama, TransformersVision, oft_chunk, oft_chunk_transformers
from bench.openvla_chunks import SPECS, forced_draft, make_round, read_trace
from bench.openvla_floors import Cost, Rates, layer_flops, pass_cost, prefill_cost, vision_cost
from bench.openvla_random import Models, random_inputs, random_models
from rsd_fast.models.presets import OPENVLA_PRESETS
from rsd_fast.runtime import make_loop

SECTIONS = ["vision", "prefill", "draft", "pass", "tail", "chunk", "oft", "accuracy"]


@pytest.fixture(scope="module")
def models() -> Models:
    return random_models("openvla-tiny", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("openvla")
    trace = out / "trace.json"
    trace.write_text(json.dumps({"passes": [1, 1, 1, 2]}))
    where = ["--out", str(out), "--trace", str(trace), "--only", ",".join(SECTIONS)]
    main([*where, "--preset", "openvla-tiny", "--device", "cpu", "--quick", "--seconds", "0.02"])
    return out, [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_every_section_writes_rows_with_floors(rows):
    _, written = rows
    assert {row["section"] for row in written} == {"machine", *SECTIONS}
    assert not any("failed" in str(row.get("note")) for row in written)
    timed = [row for row in written if "ms" in row]
    assert all(0 < row["p10"] <= row["p90"] and row["wall_ms"] > 0 and row["floor_ms"] >= 0 for row in timed)
    assert set(RUNS) >= set(SECTIONS)


def test_rounds_take_the_passes_that_were_forced_and_give_the_sequential_codes(rows):
    forced = [row for row in rows[1] if row.get("passes_forced")]
    assert len(forced) == sum(spec.passes is not None for spec in SPECS)
    assert all(row["passes"] == row["passes_forced"] and row["codes_as_sequential"] for row in forced)
    passes = {row["work"]: row["passes"] for row in rows[1] if row["section"] == "chunk" and "passes" in row}
    assert passes["chunk, original, sequential, stop 8"] == 8
    assert passes["chunk, redundant, parallel, stop 3"] == 1


def test_a_trace_weighs_the_forced_times(rows):
    (one,) = [row for row in rows[1] if row["work"] == "chunk, redundant, rsd, stop 3, trace"]
    times = {row["passes"]: row["wall_ms"] for row in rows[1] if row["work"] == "chunk, redundant, rsd, stop 3"}
    assert one["wall_ms_mean"] == pytest.approx(0.75 * times[1] + 0.25 * times[2])
    assert one["passes_mean"] == 1.25 and one["passes_shares"] == {"1": 0.75, "2": 0.25}


def test_stages_json_has_what_a_replay_needs(rows):
    stages = json.loads((rows[0] / "stages.json").read_text())
    names = {f"{name}_ms" for name in ("vision", "prefill", "draft", "pass", "tail", "parallel")}
    assert names <= set(stages) and names == set(stages["original"])
    assert all(stages[name] > 0 for name in names)


def test_unknown_sections_and_traces_are_errors(tmp_path):
    with pytest.raises(SystemExit, match="visoin"):
        main(["--out", str(tmp_path), "--device", "cpu", "--only", "visoin"])
    trace = tmp_path / "trace.json"
    trace.write_text('{"passes": ["one"]}')
    with pytest.raises(ValueError, match="a whole number a chunk"):
        read_trace(trace)


@torch.inference_mode()
def test_transformers_computes_what_our_backbone_does(models):
    main_model = models.plain["redundant"]
    llama = TransformersLlama(main_model.backbone)
    inputs = random_inputs(main_model.config)
    x, mask = main_model.embed(inputs, main_model.encode_images(inputs.images))
    ours = main_model.prefill(inputs)
    theirs = llama.prefill(x)
    torch.testing.assert_close(theirs.last_hidden_state, ours.hidden, rtol=1e-4, atol=1e-4)
    head = main_model.heads["hierarchical"]
    codes = torch.ones(1, 3, 8, 7, dtype=torch.int32)
    cache, queries = llama.cache_of(theirs), head.queries(codes)
    for _ in range(2):  # the cache is left as it was
        hidden = llama.run_pass(queries, cache, x.shape[1], head.query_mask())
        torch.testing.assert_close(head.logits(hidden), main_model.decode(ours, codes), rtol=1e-3, atol=1e-3)
    assert mask.all()


@torch.inference_mode()
def test_ofts_chunk_over_transformers_is_ours_given_the_same_features(models):
    main_model = models.plain["oft"]
    inputs = random_inputs(main_model.config)
    llama = TransformersLlama(main_model.backbone)
    wanted = oft_chunk(main_model, inputs)
    got = oft_chunk_transformers(main_model, llama, main_model.vision_backbone, inputs)
    assert wanted.shape == (1, 8, 7)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    features = TransformersVision(main_model.vision_backbone)(inputs.images)
    assert features.shape == main_model.vision_backbone(inputs.images).shape


def test_activations_of_random_weights_stay_of_order_one(models):
    main_model = models.plain["original"]
    with torch.inference_mode():
        features = main_model.encode_images(random_inputs(main_model.config).images)
        hidden = main_model.prefill(random_inputs(main_model.config)).hidden
    for tensor in (features, hidden):
        assert 0.1 < tensor.std() < 10 and tensor.isfinite().all()


def test_a_forced_draft_proposes_what_it_was_told(models):
    spec = next(spec for spec in SPECS if spec.passes == 2)
    sequential = torch.zeros(1, 3, 8, 7, dtype=torch.int32)
    draft = forced_draft(models, spec, sequential)
    assert (draft.codes[:, 0] == 0).all() and (draft.codes[:, 1] == 1).all()
    made = make_round(models, models.plain, spec, draft)
    with torch.inference_mode():
        make_loop("eager", made.stages()).run()
    assert int(made.outputs.on_host["passes"][0]) >= 1


def test_floors_of_the_published_sizes():
    """6.48 B weights of the language model over 545 tokens; 0.7 TFLOP of vision; the pass reads 13 GB."""
    from bench.openvla_random import empty_main

    config = OPENVLA_PRESETS["openvla-7b"]
    backbone = config.backbone
    assert layer_flops(backbone, 1, 0) == pytest.approx(2 * 6.476e9, rel=1e-3)
    model = empty_main(config)
    assert vision_cost(model.vision_backbone, 2).flops == pytest.approx(0.73e12, rel=0.05)
    assert prefill_cost(model, 545).flops == pytest.approx(2 * 6.476e9 * 545, rel=0.05)
    assert pass_cost(model, "hierarchical", 545, 24).bytes == pytest.approx(4 * 6.5e9, rel=0.05)  # float32 here
    rates = Rates(copy=4e12, gemm=8e14)
    assert Cost(8e11, 8e9).floor_ms(rates) == pytest.approx(2.0) and Cost(8e11, 8e9).bound(rates) == "bytes"
