"""The Triton backend of `accept_` on a GPU."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from scipy.stats import chisquare
from torch import Tensor

from rsd_fast.kernels.accept import AcceptParams, RoundState, accept_
from rsd_fast.kernels.accept.triton import accept_triton_
from rsd_fast.kernels.accept.triton_launch import Launch, largest_pack, launch_choice
from rsd_fast.kernels.registry import pick
from tests.kernels.accept_cases import Case, cases, copy_state, random_case
from tests.kernels.test_accept_reference import assert_same

pytestmark = pytest.mark.gpu

GREEDY = AcceptParams(3, "element", "distance", 1, 0.0, "main", "middle", False, 0.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((5, 3, 8, 7, 5), (4, 8, 8, 16, 7), (3, 5, 3, 11, 9), (2, 1, 1, 1, 1), (2, 4, 64, 3, 20))
GUARD = 64  # elements on each side of a guarded buffer


def assert_agrees(case: Case) -> None:
    got = case.to("cuda").run("triton").to("cpu")
    assert_same(got, case.run("reference"))
    assert_same(case.to("cuda").run("reference").to("cpu"), got)


def test_triton_is_what_runs_on_a_gpu():
    assert pick("accept", "cuda").name == "triton"


@pytest.mark.parametrize("mid_round", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", ["distance", "typical"])
@pytest.mark.parametrize("granularity", ["element", "layer", "all"])
def test_numerics(granularity, rule, dtype, mid_round):
    for seed, sizes in enumerate(SIZES):
        elements = sizes[2] * sizes[3]
        params = replace(
            GREEDY,
            stop=sizes[1],
            granularity=granularity,
            rule=rule,
            log_tau=-0.5,
            need=max(1, elements // 2),
            expected=seed % 2 == 0,
        )
        hidden = (0, 64, 5)[seed % 3]
        assert_agrees(
            random_case(params, sizes, seed, dtype=dtype, ties=True, broken=0.1, hidden=hidden, mid_round=mid_round)
        )


@pytest.mark.parametrize("mid_round", [False, True])
@pytest.mark.parametrize("with_probs", [False, True])
def test_sampling_is_the_references_to_the_bit(with_probs, mid_round):
    for seed, sizes in enumerate(SIZES):
        need = sizes[2] * sizes[3]
        params = replace(GREEDY, stop=sizes[1], granularity="layer", need=need, temperature=0.7)
        assert_agrees(random_case(params, sizes, seed, with_probs=with_probs, mid_round=mid_round))


@given(cases(dtypes=DTYPES))
@settings(max_examples=100)
def test_calls_of_every_kind(case):
    assert_agrees(case)


def test_the_largest_sizes():
    params = replace(GREEDY, stop=16, need=1500)
    assert_agrees(random_case(params, (3, 16, 64, 32, 32), 0, dtype=torch.bfloat16, hidden=64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype):
    params = replace(GREEDY, stop=4, rule="typical", log_tau=-0.5, need=20)
    case = random_case(params, (3, 4, 5, 6, 7), 1, dtype=dtype).to("cuda")
    wanted = case.run("triton")
    for order in ((4, 3, 2, 1, 0), (0, 2, 3, 4, 1), (1, 0, 4, 2, 3)):
        back = [order.index(i) for i in range(5)]
        logits = case.logits.permute(order).contiguous().permute(back)
        assert not logits.is_contiguous()
        assert_same(replace(case, logits=logits).run("triton"), wanted)


@pytest.mark.parametrize("granularity", ["element", "layer", "all"])
def test_nothing_is_written_beside_the_buffers(granularity):
    params = replace(GREEDY, granularity=granularity, need=20, stop=3)
    case = random_case(params, (5, 3, 5, 7, 5), 2).to("cuda")
    buffers: list[Tensor] = []

    def guarded(tensor: Tensor) -> Tensor:
        whole = torch.full((tensor.numel() + 2 * GUARD,), 77, dtype=tensor.dtype, device="cuda")
        buffers.append(whole)
        return whole[GUARD:-GUARD].view(tensor.shape).copy_(tensor)

    state = RoundState(**{f.name: guarded(getattr(case.state, f.name)) for f in fields(RoundState)})
    actions = guarded(case.actions)
    accept_(
        case.logits,
        state,
        case.codebook,
        case.slack,
        params,
        decoder=case.decoder,
        actions=actions,
        backend="triton",
    )
    for whole in buffers:
        assert (whole[:GUARD] == 77).all() and (whole[-GUARD:] == 77).all()
    assert_same(replace(case, state=state, actions=actions), case.run("reference"))


LAUNCHES = {  # samples, pack, eager, warps, unroll, and hold and late if not False
    (3, 8, 7, 5): (
        *((1, 1, True, 2, 3), (1, 1, False, 2, 1), (1, 2, True, 1, 3), (2, 2, False, 2, 3)),
        *((4, 4, False, 2, 3), (8, 4, False, 4, 1), (8, 4, True, 4, 3)),
    ),
    (8, 8, 16, 7): (
        *((1, 1, True, 4, 8), (1, 1, False, 4, 1), (1, 2, True, 2, 8), (2, 2, False, 4, 2)),
        *((1, 4, False, 1, 2), (4, 4, False, 4, 2), (4, 4, True, 4, 1), (4, 4, True, 4, 2, False, True)),
    ),
}


@pytest.mark.parametrize(
    ("granularity", "rule", "expected"),
    [("element", "distance", True), ("layer", "typical", False), ("all", "distance", True)],
)
@pytest.mark.parametrize("sizes", LAUNCHES, ids=str)
def test_every_launch_gives_the_same_bits(sizes, granularity, rule, expected):
    """Batches that fill no program, with finished samples among the others; the default launch is one of them."""
    layers, steps, dims, _ = sizes
    form = {"granularity": granularity, "rule": rule, "expected": expected}
    params = replace(GREEDY, stop=layers, log_tau=-0.5, need=steps * dims - 3, **form)
    for batch in (1, 67):
        hidden = 64 if dims == 16 else 0
        case = random_case(params, (batch, *sizes), batch, dtype=torch.bfloat16, hidden=hidden, mid_round=batch > 1)
        wanted, case = case.run("reference"), case.to("cuda")
        for launch in LAUNCHES[sizes]:
            assert_same(case.after(accept_triton_, launch=Launch(*launch)).to("cpu"), wanted)


def test_batches_choose_launches_of_their_own():
    logits = torch.zeros(2, 8, 8, 16, 7, dtype=torch.bfloat16, device="cuda")
    small, large = (launch_choice(batch, (8, 8, 16, 7), largest_pack(logits)) for batch in (1, 4096))
    assert small.eager and small.samples == 1
    assert large.pack == 4 and large.samples > 1


def test_the_same_bits_every_time_and_alone():
    params = replace(GREEDY, stop=8, granularity="layer", need=100)
    case = random_case(params, (64, 8, 8, 16, 7), 3, dtype=torch.bfloat16, hidden=64).to("cuda")
    wanted = case.run("triton")
    for _ in range(20):
        assert_bits(case.run("triton"), wanted)
    for b in (0, 31, 63):
        assert_bits(case.row(b).run("triton"), wanted.row(b))


def assert_bits(got: Case, wanted: Case) -> None:
    for field in fields(RoundState):
        assert torch.equal(getattr(got.state, field.name), getattr(wanted.state, field.name)), field.name
    torch.testing.assert_close(got.actions, wanted.actions, rtol=0, atol=0, equal_nan=True)


def test_capture_and_replay():
    params = replace(GREEDY, stop=8, granularity="layer", need=100)
    example = random_case(params, (9, 8, 8, 16, 7), 4, dtype=torch.bfloat16, hidden=64).to("cuda")
    example.run("triton")  # compiled before the capture
    static = replace(
        example,
        logits=example.logits.clone(),
        state=copy_state(example.state),
        actions=example.actions.clone(),
    )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        accept_(
            static.logits,
            static.state,
            static.codebook,
            static.slack,
            params,
            decoder=static.decoder,
            actions=static.actions,
            backend="triton",
        )
    for seed in range(5, 10):
        case = random_case(params, (9, 8, 8, 16, 7), seed, dtype=torch.bfloat16, mid_round=seed % 2 == 0)
        case = replace(case.to("cuda"), codebook=static.codebook, slack=static.slack, decoder=static.decoder)
        static.logits.copy_(case.logits)
        static.actions.copy_(case.actions)
        for field in fields(RoundState):
            getattr(static.state, field.name).copy_(getattr(case.state, field.name))
        graph.replay()
        assert_bits(static, case.run("triton"))


@pytest.mark.parametrize("with_probs", [True, False])
def test_samples_follow_mains_own_distribution(with_probs):
    """A toy main of 3 layers, V = 3, whose every layer depends on all below; 27 outcomes, chi-square."""
    generator = torch.Generator("cuda").manual_seed(5)
    batch, temperature = 400_000, 0.8

    def table(rows: int) -> Tensor:
        return torch.randn(rows, 3, generator=generator, device="cuda")

    main = [2 * table(3**layer) for layer in range(3)]
    q_tables = [table(3**layer).softmax(-1) for layer in range(2)]

    def below(codes: Tensor) -> list[Tensor]:  # index of the codes below each layer
        first, second = codes[:, 0].flatten().long(), codes[:, 1].flatten().long()
        return [torch.zeros_like(first), first, first * 3 + second]

    draft = torch.zeros(batch, 3, 1, 1, dtype=torch.int32, device="cuda")
    q = torch.zeros(batch, 3, 1, 1, 3, device="cuda")
    for layer in range(2):
        q[:, layer, 0, 0] = q_tables[layer][below(draft)[layer]]
        draft[:, layer, 0] = torch.multinomial(q[:, layer, 0, 0], 1, generator=generator).int()
    state = RoundState.new(batch, 3, 1, 1, "cuda")
    state.begin_(draft[:, :2].contiguous(), 2, 1)
    params = AcceptParams(3, "layer", "distance", 1, 0.0, "main", "middle", False, temperature)
    uniforms = torch.rand(batch, 3, 1, 1, 2, generator=generator, device="cuda")
    slack, codebook = torch.zeros(3, 1, dtype=torch.int32, device="cuda"), torch.zeros(3, 1, 3, device="cuda")
    for _ in range(3):
        logits = torch.stack([main[layer][below(state.codes)[layer]] for layer in range(3)], 1)
        accept_(
            logits.view(batch, 3, 1, 1, 3),
            state,
            codebook,
            slack,
            params,
            uniforms=uniforms,
            draft_probs=q if with_probs else None,
            backend="triton",
        )
    assert state.finished.all() and (state.passes == 1).any() and (state.passes > 1).any()

    p = [(rows.double() / temperature).softmax(-1) for rows in main]
    exact = p[0][0][:, None, None] * p[1][:, :, None] * p[2].view(3, 3, 3)
    codes = state.codes.view(batch, 3).long()
    seen = torch.bincount(codes[:, 0] * 9 + codes[:, 1] * 3 + codes[:, 2], minlength=27)
    assert chisquare(seen.cpu().numpy(), (exact.flatten() * batch).cpu().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("granularity", ["layer", "element"])
def test_ten_thousand_drafts_decode_to_the_sequential_codes(granularity):
    """A toy main whose logits of a layer are a hash of all codes below it."""
    batch, layers, steps, dims, levels = 10_000, 8, 8, 16, 7
    generator = torch.Generator("cuda").manual_seed(6)
    noise = torch.randn(997, layers, steps, dims, levels, generator=generator, device="cuda").bfloat16()
    weights = torch.randint(1, 997, (layers, steps, dims), generator=generator, device="cuda")
    offsets = torch.randint(0, 997, (batch, 1), generator=generator, device="cuda")
    codebook = torch.randn(layers, dims, levels, generator=generator, device="cuda")
    slack = torch.zeros(layers, dims, dtype=torch.int32, device="cuda")
    params = AcceptParams(layers, granularity, "distance", steps * dims, 0.0, "main", "middle", False, temperature=0.0)

    def main(codes: Tensor) -> Tensor:
        sums = ((codes + 1) * weights).sum((2, 3))
        rows = (sums.cumsum(1) - sums + offsets) % 997
        return noise[rows, torch.arange(layers, device="cuda")]

    def decode(draft: Tensor | None, redraft: str) -> RoundState:
        state = RoundState.new(batch, layers, steps, dims, "cuda")
        state.begin_(draft, 0 if draft is None else layers - 1, levels // 2)
        for _ in range(layers):
            logits = main(state.codes)
            accept_(logits, state, codebook, slack, replace(params, redraft=redraft), backend="triton")
        assert state.finished.all()
        return state

    sequential = decode(None, redraft="none")
    assert (sequential.passes == layers).all()
    # Drafts that are right up to some layer and noise above it.
    depth = torch.randint(0, layers, (batch, 1, 1, 1), generator=generator, device="cuda")
    layer = torch.arange(layers, device="cuda")[:, None, None]
    guess = torch.randint(0, levels, sequential.codes.shape, generator=generator, device="cuda", dtype=torch.int32)
    draft = torch.where(layer < depth, sequential.codes, guess)[:, : layers - 1].contiguous()
    drafted = decode(draft, redraft="middle")
    assert len(drafted.passes.unique()) >= 3
    if granularity == "layer":
        assert torch.equal(drafted.codes, sequential.codes)
        assert torch.equal(drafted.latents, sequential.latents)
    else:  # an element's early code was main's answer to another context: fewer passes, other codes
        assert (drafted.passes <= sequential.passes).all()
