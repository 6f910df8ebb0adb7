"""Codec, main model, drafts: trained on tiny demonstrations, exported, loaded, used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rsd_fast.codec import RFSQCodec, codec_preset
from rsd_fast.engine import RSDInferenceEngine
from rsd_fast.models.checkpoints import load_policy
from rsd_fast.models.draft import DRAFTS
from rsd_fast.train import all as all_training
from rsd_fast.train import codec, draft, main
from rsd_fast.train.augment import blur_proprio, random_colour, random_shift
from rsd_fast.train.card import command_line, commands, describe_demos, success_table
from rsd_fast.train.config import AllTraining, AugmentOptions, CodecTraining, DraftTraining, MainTraining
from rsd_fast.train.dataset import DemoData
from rsd_fast.train.markdown import table
from rsd_fast.train.offline import ARGMAX, evaluate_offline
from tests.train.demo_files import QUICK, SEEING, SIZE, write_demos


def train_codec(config: MainTraining, data: DemoData) -> RFSQCodec:
    codec.run(CodecTraining(demos=config.demos, out=config.out, device="cpu"), data)
    return RFSQCodec.from_pretrained(config.out / "codec")


def test_codec_reports_every_layer_and_takes_statistics_of_the_training_split(
    main_config: MainTraining, data: DemoData
):
    fitted = train_codec(main_config, data)
    report = json.loads((main_config.work / "codec" / "report.json").read_text())
    assert [row["layers"] for row in report["layers"]] == [1, 2, 3]
    assert report["layers"][-1]["mae"] <= report["layers"][0]["mae"]
    assert all(row["latent_max"] <= row["latent_bound"] + 1e-6 for row in report["layers"])
    expected = np.quantile(data.actions[data.in_training].numpy(), 0.99, axis=0)[:3]
    assert fitted.normalizer.q99[:3].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert not fitted.normalizer.mask[6]


def test_codec_clips_as_much_as_it_is_told(main_config: MainTraining, data: DemoData):
    options = {"demos": main_config.demos, "out": main_config.out, "device": "cpu"}
    codec.run(CodecTraining(**options, quantile=0.0), data)
    fitted = RFSQCodec.from_pretrained(main_config.out / "codec")
    trained = data.actions[data.in_training]
    assert torch.allclose(fitted.normalizer.q01[:6], trained.amin(0)[:6])
    assert torch.allclose(fitted.normalizer.q99[:6], trained.amax(0)[:6])
    with pytest.raises(ValueError, match=r"got quantile 0\.5, expected from 0"):
        CodecTraining(quantile=0.5)


def test_the_original_codec_learns_its_autoencoder(main_config: MainTraining, data: DemoData):
    settings = {**QUICK, "batch": 64, "steps": 150, "eval_every": 50, "learning_rate": 1e-2}
    config = CodecTraining(demos=main_config.demos, out=main_config.out, codec="original", **settings)
    untrained = codec.reconstruction(RFSQCodec(codec_preset("original")), data.actions)["layers"][-1]["mae"]
    report = codec.run(config, data)
    assert report["layers"][-1]["mae"] < 0.3 * untrained
    assert (config.work / "codec" / "curves.png").is_file()


def test_perturbed_prefixes_of_a_batch_are_valid(main_config: MainTraining, data: DemoData):
    fitted = train_codec(main_config, data)
    config = replace(main_config, perturb=1.0)
    objective = main.objective(main.build_main(config, fitted, data), fitted, data, config)
    drawn = objective.batch(torch.Generator().manual_seed(0))
    assert (drawn.perturbed.prefix != drawn.nearest).any()
    value, nearest = fitted.decode(drawn.perturbed.prefix), fitted.decode(drawn.nearest)
    # Both are within the last bound of the same latent.
    assert ((value - nearest).abs() <= 2 * fitted.remaining_bound(3) + 1e-5).all()


def test_main_learns_what_the_images_show(main_config: MainTraining, data: DemoData):
    train_codec(main_config, data)
    config = replace(main_config, steps=60, eval_every=30, learning_rate=3e-3)
    outcome = main.run(config, data)
    rows = [json.loads(line) for line in (config.work / "main" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    # Guessing without looking errs by 0.8 on average.
    assert outcome.best["action_mae"] < 0.3
    assert {"accuracy_0", "accuracy_1", "accuracy_2", "action_mae_parallel"} <= outcome.best.keys()
    exported = load_policy(config.out, draft=None).main
    assert exported.tokenizer is not None
    assert exported.config.head.steps == 4


WITH_DRAFT = (("rsd, ", ""), ("conditioned, ", ""), ("", " alone"))
ALL_HEADS = ("hierarchical", "parallel", "regression", "conditioned_queries")


def test_four_heads_learn_together_and_are_told_apart(main_config: MainTraining, data: DemoData):
    fitted = train_codec(main_config, data)
    config = replace(main_config, heads=ALL_HEADS, steps=60, eval_every=30, learning_rate=3e-3)
    outcome = main.run(config, data)
    rows = [json.loads(line) for line in (config.work / "main" / "metrics.jsonl").read_text().splitlines()]
    for head in ALL_HEADS:
        losses = [row[head] for row in rows if row["split"] == "train"]
        assert losses[-1] < 0.7 * losses[0], head
    # Guessing without looking errs by 0.8 on average.
    assert outcome.best["action_mae_regression"] < 0.3
    assert 0 < outcome.best["accuracy_conditioned"] <= 1
    policy = load_policy(config.out, draft=None)
    assert tuple(policy.main.heads) == ALL_HEADS
    with torch.no_grad():
        report = evaluate_offline(policy.main, {}, fitted, data, data.held_out_sample(24, 4))
    told = {row["decoding"]: row for row in report["table"]}
    assert told.keys() == {"sequential", ARGMAX, "jacobi", "parallel", "regression"}
    assert told["regression"]["mae"] == pytest.approx(outcome.best["action_mae_regression"], abs=0.02)
    assert told["regression"]["passes"] == 1


def test_what_each_head_learns_from(main_config: MainTraining, data: DemoData):
    """The losses of a batch, from the definitions."""
    fitted = train_codec(main_config, data)
    config = replace(main_config, heads=ALL_HEADS, baseline_weight=0.25, parallel_weight=0.0)
    model = main.build_main(config, fitted, data)
    objective = main.objective(model, fitted, data, config)
    drawn = objective.batch(torch.Generator().manual_seed(0))
    total, parts = objective.loss(model, drawn)
    assert parts.keys() == set(ALL_HEADS) - {"parallel"}
    wanted = parts["hierarchical"] + 0.25 * (parts["regression"] + parts["conditioned_queries"])
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)
    prefix = model.prefill(drawn.inputs)
    assert parts["regression"].item() == pytest.approx((model.actions(prefix) - drawn.actions).abs().mean().item())
    last = model.decode(prefix, drawn.perturbed.prefix, "conditioned_queries")[:, -1].log_softmax(-1)
    likelihood = last.gather(-1, drawn.perturbed.targets[:, -1, ..., None].long()).mean()
    assert parts["conditioned_queries"].item() == pytest.approx(-likelihood.item(), rel=1e-4)
    # The given codes and the target of the last layer decode to the expert's action; the gripper is not normalised.
    given = torch.cat([drawn.perturbed.prefix[:, :-1], drawn.perturbed.targets[:, -1:]], 1)
    expert = fitted.normalizer.unnormalize(drawn.actions)
    bound = fitted.action_bound(3) + 1e-5
    assert ((fitted.decode_actions(given) - expert).abs() <= bound).float().mean() > 0.99
    assert set(drawn.actions[..., 6].unique().tolist()) <= {-1.0, 1.0}


class Looks(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers that are read, shapes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_with_four_heads_looks_at_no_number(main_config: MainTraining, data: DemoData):
    """As a CUDA graph needs it."""
    fitted = train_codec(main_config, data)
    config = replace(main_config, heads=ALL_HEADS)
    model = main.build_main(config, fitted, data)
    objective = main.objective(model, fitted, data, config)
    with Looks() as looks:
        drawn = objective.batch(torch.Generator().manual_seed(0))
        objective.loss(model, drawn)[0].backward()
    assert looks.seen == []


@pytest.mark.parametrize("heads", [("parallel",), ("hierarchical", "hierarchical"), ("hierarchical", "l1"), ()])
def test_heads_that_cannot_be_trained_are_refused(main_config: MainTraining, heads: tuple[str, ...]):
    for settings in (MainTraining, AllTraining):
        with pytest.raises(ValueError, match=r"got heads .*, expected 'hierarchical' and others of .*none twice"):
            settings(heads=heads)


def test_main_resumes_to_the_same_weights(main_config: MainTraining, data: DemoData, monkeypatch: pytest.MonkeyPatch):
    train_codec(main_config, data)
    main.run(main_config, data)
    whole = load_policy(main_config.out, draft=None).main.state_dict()
    other = replace(main_config, out=main_config.out.with_name("other"))
    train_codec(other, data)
    draw = main.Sampler.draw
    calls = iter(range(6))

    def killed(sampler: main.Sampler, generator: torch.Generator):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return draw(sampler, generator)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(main.Sampler, "draw", killed)
        main.run(other, data)
    main.run(other, data)
    resumed = load_policy(other.out, draft=None).main.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_parts_must_be_trained_in_order(main_config: MainTraining, data: DemoData):
    with pytest.raises(FileNotFoundError, match="rsd-fast train codec"):
        main.run(main_config, data)
    train_codec(main_config, data)
    with pytest.raises(FileNotFoundError, match="rsd-fast train main"):
        draft.run(DraftTraining(demos=main_config.demos, out=main_config.out, device="cpu"), data)
    with pytest.raises(ValueError, match="expected the main model's 128"):
        main.run(replace(main_config, preset="nano"), data)
    with pytest.raises(ValueError, match=r"'nano', 'small', 'tiny'"):
        main.run(replace(main_config, preset="huge"), data)


@pytest.fixture(scope="module")
def trained(demos: Path, data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> AllTraining:
    out = tmp_path_factory.mktemp("all") / "policy"
    settings = {"preset": "tiny", "chunk": 4, "held_out": 0.25, "steps": 60, "eval_every": 30, "draft_steps": 60}
    config = AllTraining(demos=demos, out=out, learning_rate=3e-3, heads=ALL_HEADS, **settings, **QUICK, **SEEING)
    all_training.run(config, data)
    return config


def test_all_writes_a_folder_that_loads(trained: AllTraining):
    for kind in DRAFTS:
        assert load_policy(trained.out, kind).draft is not None
    half = (trained.out / "main" / "model.safetensors").stat().st_size
    assert half < 2.5 * sum(p.numel() for p in load_policy(trained.out, None).main.parameters())


@pytest.mark.parametrize("mode", ["sequential", "rsd", "parallel"])
def test_the_engine_acts_with_it(trained: AllTraining, data: DemoData, mode: str):
    engine = RSDInferenceEngine.from_pretrained(trained.out, mode=mode, device="cpu")
    frame = int(data.frames(False, 4)[0])
    cameras = dict(zip(("full_image", "wrist_image"), data.images[frame].numpy(), strict=True))
    actions, info = engine.generate_action({**cameras, "state": data.proprio[frame].numpy()}, data.instructions[0])
    wanted = data.chunks(torch.tensor([frame]), 4)[0].numpy()
    assert np.abs(actions - wanted).mean() < 0.4
    assert 1 <= info["passes"] <= 3


def test_offline_table_has_every_decoding(trained: AllTraining):
    metrics = json.loads((trained.out / "metrics.json").read_text())
    rows = {row["decoding"]: row for row in metrics["offline"]["table"]}
    with_draft = {f"{way}{kind} draft{end}" for kind in DRAFTS for way, end in WITH_DRAFT}
    assert rows.keys() == {"sequential", ARGMAX, "jacobi", "parallel", "regression"} | with_draft
    assert rows["sequential"]["passes"] == 3
    one_pass = ("parallel", "regression", *(f"conditioned, {kind} draft" for kind in DRAFTS))
    assert all(rows[name]["passes"] == 1 for name in one_pass)
    assert all(1 <= rows[f"rsd, {kind} draft"]["passes"] <= 3 for kind in DRAFTS)
    assert all(0 < row["mae"] < 1 for row in rows.values())
    coarse = metrics["offline"]["drafts"]["coarse"]
    assert len(coarse["match"]) == 2 and all(a <= b for a, b in zip(coarse["match"], coarse["within_one"], strict=True))
    assert len(metrics["offline"]["main"]["accuracy"]) == 3


def test_soft_cross_entropy_of_certain_targets_is_that_of_codes():
    logits, codes = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    certain = torch.nn.functional.one_hot(codes, 5).float()
    assert torch.isclose(draft.soft_cross_entropy(logits, certain), main.cross_entropy(logits, codes))
    assert draft.soft_cross_entropy(torch.zeros(1, 4), torch.full((1, 4), 0.25)) == pytest.approx(np.log(4))


def test_consult_decodes_as_the_engine_does(trained: AllTraining, data: DemoData):
    policy = load_policy(trained.out, None)
    engine = RSDInferenceEngine(policy.main, None, policy.codec, mode="sequential", device="cpu", dtype=torch.float32)
    frame = data.frames(False, 4)[:1]
    with torch.no_grad():
        view = draft.consult(policy.main, policy.codec, data.inputs(frame, data.tokenize(policy.main.tokenizer)))
    cameras = dict(zip(("full_image", "wrist_image"), data.images[frame[0]].numpy(), strict=True))
    instruction = data.instructions[int(data.task[frame[0]])]
    actions, info = engine.generate_action({**cameras, "state": data.proprio[frame[0]].numpy()}, instruction)
    assert np.array_equal(view.codes[0].numpy(), info["codes"])
    assert torch.equal(view.probs.argmax(-1).int(), view.codes) and torch.allclose(view.probs.sum(-1), torch.ones(()))
    assert policy.codec.latents_to_actions(view.latents)[0].numpy() == pytest.approx(actions, abs=1e-4)


def test_the_card_tells_data_accuracy_errors_and_commands(trained: AllTraining, data: DemoData, tmp_path: Path):
    card = (trained.out / "README.md").read_text()
    told = ("do the Lift task", "| main | accuracy |", "| sequential |", "Not measured yet", "rsd-fast train all")
    assert all(text in card for text in told)
    assert all(f"| {row} |" in card for row in ("parallel", "regression", "conditioned, coarse draft"))
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"rows": [{"task": "Lift", "mode": "rsd", "success": 0.95}]}))
    all_training.run(replace(trained, success=summary), data)  # complete parts are taken as they are
    assert "| Lift | rsd | 0.9500 |" in (trained.out / "README.md").read_text()


def test_card_pieces(tmp_path: Path):
    assert table([{"a": 1}, {"b": 0.5}]).splitlines() == ["| a | b |", "|---|---|", "| 1 |  |", "|  | 0.5000 |"]
    heads = ("hierarchical", "regression")
    config = MainTraining(demos=Path("d"), out=Path("p"), perturb=0.2, heads=heads, resume=False)
    assert command_line("train main", config) == (
        "rsd-fast train main --demos d --out p --no-resume --perturb 0.2 --heads hierarchical regression"
    )
    with pytest.raises(FileNotFoundError, match="rsd-fast eval"):
        success_table(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="without rows"):
        success_table(tmp_path / "other.json")


def test_the_card_says_how_each_folder_was_recorded(tmp_path: Path):
    write_demos(tmp_path / "first" / "robosuite")
    second = write_demos(tmp_path / "second" / "robosuite", every=3)
    with h5py.File(second, "r+") as file:
        attributes = file["data"].attrs
        attributes["settings"] = json.dumps({"image_size": SIZE, "push": 0.5, "seed": 900, "every": 3})
    described = describe_demos(tmp_path)
    config = AllTraining(demos=Path("demos"), out=Path("p"))
    assert commands(config, described) == [
        f"rsd-fast demos --suite robosuite --episodes 8 --push 0.6 --slips 0.35 --seed 0 --image-size {SIZE} "
        "--out demos/first",
        "rsd-fast demos --suite robosuite --episodes 8 --push 0.5 --seed 900 --no-render --out recorded/second",
        f"rsd-fast render recorded/second/robosuite --image-size {SIZE} --every 3 --out demos/second",
        "rsd-fast train all --demos demos --out p",
        "rsd-fast eval --suite robosuite --checkpoint p --modes sequential rsd",
    ]


def test_the_card_loops_over_seeds_where_nothing_else_differs(tmp_path: Path):
    for seed, name in ((500, "s500"), (0, "s0"), (7, "other")):
        with h5py.File(write_demos(tmp_path / name / "robosuite"), "r+") as file:
            file["data"].attrs["settings"] = json.dumps({"push": 0.5, "seed": seed, "image_size": SIZE})
    lines = commands(AllTraining(demos=Path("demos"), out=Path("p")), describe_demos(tmp_path))
    one = f"rsd-fast demos --suite robosuite --episodes 8 --push 0.5 --seed {{}} --image-size {SIZE} --out demos/{{}}"
    assert lines[:-2] == [
        one.format(7, "other"),
        "for seed in 0 500; do",
        "    " + one.format("$seed", "s$seed"),
        "done",
    ]


def test_augmentation_moves_and_tints_and_keeps_type():
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(64, 2, 16, 16, 3, dtype=torch.uint8)
    images[:, :, 8, 8] = 200
    moved = random_shift(images, 2, generator)
    assert (moved.long().sum((2, 3, 4)) == 600).all()  # the dot is still there
    rows = moved[..., 0].amax(3).argmax(2)
    assert set(rows.flatten().tolist()) == {6, 7, 8, 9, 10}
    tinted = random_colour(images, 0.2, generator)
    assert tinted.dtype == torch.uint8 and len(tinted[:, 0, 8, 8].unique(dim=0)) > 32


def test_dropped_proprio_is_the_centre(main_config: MainTraining, data: DemoData):
    normalizer = main.build_main(main_config, train_codec(main_config, data), data).proprio_normalizer
    generator = torch.Generator().manual_seed(0)
    options = AugmentOptions(proprio_noise=0.0, proprio_dropout=0.5)
    seen = blur_proprio(data.proprio, normalizer, options, generator)
    dropped = (seen != data.proprio).any(1)
    assert 0.3 < dropped.float().mean() < 0.7
    assert normalizer.normalize(seen[dropped]).abs().max() < 1e-6
