"""Every input that `accept_` refuses: the right error, naming the input, what came and what was expected."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from rsd_fast.kernels.accept import AcceptParams, accept_
from tests.kernels.accept_cases import Case, random_case

B, L, T, D, V, H, A = 2, 3, 4, 2, 5, 6, 7
PARAMS = AcceptParams(L, "layer", "distance", T * D, 0.0, "main", "middle", False, 0.0)
STATE_SHAPES = {
    "codes": (B, L, T, D),
    "frontier": (B, T, D),
    "drafted": (B,),
    "finished": (B,),
    "passes": (B,),
    "latents": (B, T, D),
    "agreed": (B, L),
    "kept": (B, L),
}
SHAPES = {
    "codebook": (L, D, V),
    "slack": (L, D),
    "uniforms": (B, L, T, D, 2),
    "draft_probs": (B, L, T, D, V),
    "actions": (B, T, A),
}
DECODER_SHAPES = {"w1": (H, D), "b1": (H,), "w2": (A, H), "b2": (A,), "gain": (A,), "offset": (A,)}
NAMES = [
    *(f"state.{name}" for name in STATE_SHAPES),
    *SHAPES,
    *(f"decoder.{name}" for name in DECODER_SHAPES),
]


@pytest.fixture
def case() -> Case:
    return random_case(replace(PARAMS, temperature=1.0), (B, L, T, D, V), seed=0, hidden=H, with_probs=True)


def read(case: Case, name: str) -> torch.Tensor:
    owner, _, attribute = name.rpartition(".")
    return getattr(getattr(case, owner) if owner else case, attribute)


def put(case: Case, name: str, tensor: torch.Tensor) -> Case:
    owner, _, attribute = name.rpartition(".")
    if not owner:
        return replace(case, **{attribute: tensor})
    return replace(case, **{owner: replace(getattr(case, owner), **{attribute: tensor})})


def refuses(case: Case, error: type[Exception], message: str) -> None:
    """With every backend, before anything is written."""
    for backend in ("auto", "cpu", "reference"):
        with pytest.raises(error, match=re.escape(message)):
            case.call(accept_, backend=backend)
    if case.state.passes.device.type == "cpu":
        assert not case.state.passes.any()


def expected_shape(name: str) -> tuple[int, ...]:
    owner, _, attribute = name.rpartition(".")
    return {"state": STATE_SHAPES, "decoder": DECODER_SHAPES, "": SHAPES}[owner][attribute]


@pytest.mark.parametrize("name", NAMES)
def test_the_right_inputs_are_taken(case, name):
    assert read(case, name).shape == expected_shape(name)
    assert case.run("cpu").state.passes.tolist() == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(case, name):
    tensor = read(case, name)
    got, expected = (torch.float64, torch.float32) if tensor.is_floating_point() else (torch.int64, torch.int32)
    refuses(put(case, name, tensor.to(got)), TypeError, f"{name}: got {got}, expected {expected}")


@pytest.mark.parametrize("name", NAMES)
def test_shapes(case, name):
    tensor = read(case, name)
    wrong = torch.cat([tensor, tensor], -1)
    if name == "decoder.gain":  # it says what A is
        refuses(put(case, name, wrong), ValueError, f"decoder.w2: got shape ({A}, {H}), expected ({2 * A}, {H})")
    elif name == "decoder.b1":  # it says what H is
        refuses(put(case, name, wrong), ValueError, f"decoder.w1: got shape ({H}, {D}), expected ({2 * H}, {D})")
    else:
        expected = expected_shape(name)
        refuses(put(case, name, wrong), ValueError, f"{name}: got shape {tuple(wrong.shape)}, expected {expected}")
    refuses(put(case, name, tensor[None]), ValueError, "decoder." if name.startswith("decoder") else name)


@pytest.mark.parametrize("name", NAMES)
def test_devices(case, name):
    message = f"{name}: got device meta, expected cpu as the logits"
    refuses(put(case, name, read(case, name).to("meta")), ValueError, message)


@pytest.mark.parametrize("name", NAMES)
def test_layouts(case, name):
    tensor = read(case, name)
    scattered = torch.stack([tensor, tensor], -1)[..., 0]
    message = f"{name}: got strides {scattered.stride()}, expected a contiguous tensor"
    refuses(put(case, name, scattered), ValueError, message)


def test_logits(case):
    refuses(replace(case, logits=case.logits[0]), ValueError, f"logits: got shape ({L}, {T}, {D}, {V}), expected [B, L")
    refuses(replace(case, logits=case.logits.double()), TypeError, "logits: got torch.float64, expected one of")
    refuses(replace(case, logits=case.logits.long()), TypeError, "logits: got torch.int64, expected one of")
    refuses(replace(case, logits=case.logits[..., :0]), ValueError, "expected L, T, D, V of at least 1")
    wider = torch.cat([case.logits, case.logits], -1)
    refuses(replace(case, logits=wider), ValueError, f"codebook: got shape ({L}, {D}, {V}), expected ({L}, {D}, 10)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": 4}, "got stop 4, expected 1 to the 3 layers"),
        ({"need": 9, "temperature": 0.0}, "got need 9, expected at most T * D = 8"),
        ({"need": 7}, "got need 7 with a temperature, expected T * D = 8"),
    ],
)
def test_parameters(case, changes, message):
    refuses(replace(case, params=replace(case.params, **changes)), ValueError, message)


def test_a_temperature_needs_uniforms(case):
    refuses(replace(case, uniforms=None), ValueError, "got no uniforms with a temperature above 0")


def test_actions_are_latents_without_a_decoder(case):
    message = f"actions: got shape ({B}, {T}, {A}), expected ({B}, {T}, {D})"
    refuses(replace(case, decoder=None), ValueError, message)


@pytest.mark.parametrize("backend", ["triton", "tritn", ""])
def test_backends(case, backend):
    with pytest.raises(ValueError, match=rf"got backend {backend!r} from the caller, expected one of \['cpu', 'ref"):
        case.run(backend)
