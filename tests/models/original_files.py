"""The original RSD project's files at toy size, from networks written from their description."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.models.openvla_files import make_networks, write_oft

LAYERS, STEPS, DIMS, LEVELS, WIDTH = 8, 4, 6, 7, 64


class Autoencoder(nn.Module):
    def __init__(self, actions: int = 7, dims: int = DIMS) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(actions, 12), nn.Mish(), nn.Linear(12, dims), nn.Tanh())
        self.rfsq = nn.Module()
        self.rfsq.layers = nn.ModuleList(nn.Module() for _ in range(LAYERS))
        for layer in self.rfsq.layers:
            layer.register_buffer("boundaries", torch.linspace(-1, 1, LEVELS))
        self.decoder = nn.Sequential(nn.Linear(dims, 12), nn.Mish(), nn.Linear(12, actions))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `[B, T, D, L]`, layer last, to normalised actions."""
        total = torch.zeros(codes.shape[:-1])
        for layer in range(LAYERS):
            total = total + self.rfsq.layers[layer].boundaries[codes[..., layer]]
        return self.decoder(total)


def perceptron(inputs: int, *widths: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for width in widths[:-1]:
        modules += [nn.Linear(inputs, width), nn.GELU(), nn.LayerNorm(width)]
        inputs = width
    return nn.Sequential(*modules, nn.Linear(inputs, widths[-1]))


class Head(nn.Module):
    """Variants a to d. `forward` takes the state `[B, width]` and for d the codes `[B, T, D, 3]`."""

    def __init__(self, variant: str, dims: int = DIMS, width: int = WIDTH) -> None:
        super().__init__()
        self.variant, self.shape = variant, (LAYERS, STEPS, dims, LEVELS)
        outputs = STEPS * dims * LEVELS
        if variant == "a":
            self.classification_heads = nn.ModuleList(nn.Linear(width, outputs) for _ in range(LAYERS))
        elif variant == "b":
            self.classification_heads = nn.ModuleList(perceptron(width, 24, 16, outputs) for _ in range(LAYERS))
        else:
            self.feature_proj = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.LayerNorm(20))
            self.layer_heads = nn.ModuleList(perceptron(20, 10, outputs) for _ in range(LAYERS))
        if variant == "d":
            self.token_embedding = nn.Embedding(LEVELS, 5)
            self.token_proj = nn.Sequential(nn.Linear(STEPS * dims * 3 * 5, 20), nn.GELU(), nn.LayerNorm(20))
            self.fusion = nn.Sequential(nn.Linear(40, 20), nn.GELU(), nn.LayerNorm(20))

    def forward(self, state: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.variant in "ab":
            logits = [head(state) for head in self.classification_heads]
        else:
            features = self.feature_proj(state)
            if self.variant == "d":
                assert condition is not None
                tokens = self.token_proj(self.token_embedding(condition).reshape(len(state), -1))
                features = self.fusion(torch.cat([features, tokens], -1))
            logits = [head(features) for head in self.layer_heads]
        return torch.stack(logits, 1).view(-1, *self.shape)


class Draft(nn.Module):
    """With a projection (from one state) or without (from T * D states)."""

    def __init__(self, projects: bool, dims: int = DIMS, width: int = WIDTH) -> None:
        super().__init__()
        self.dims, own = dims, 16 if projects else width
        if projects:
            self.input_projection = nn.Linear(width, own)
        self.decoder = nn.Module()
        self.decoder.position_encoding = nn.Parameter(torch.randn(1, 256, own))
        self.decoder.decoder_layer = nn.TransformerDecoderLayer(
            own, 8, 24, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder.output_norm = nn.LayerNorm(own)
        outputs = LEVELS * (STEPS * dims if projects else 1)
        self.classification_heads = nn.ModuleList(perceptron(own, own // 2, outputs) for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        """States `[B, n, width]` to logits `[B, 3, T, D, V]`."""
        x = self.input_projection(states) if hasattr(self, "input_projection") else states
        x = x + self.decoder.position_encoding[:, : x.shape[1]]
        x = self.decoder.output_norm(self.decoder.decoder_layer(x, x))
        logits = torch.stack([head(x) for head in self.classification_heads], 1)
        return logits.reshape(-1, 3, STEPS, self.dims, LEVELS)


def make(network: type[nn.Module], *arguments: object, seed: int = 1, **settings: object) -> nn.Module:
    """A network with random weights, norms and biases included."""
    torch.manual_seed(seed)
    made = network(*arguments, **settings).eval()
    for parameter in made.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return made


def write(path: Path, network: nn.Module, wrap: str | None = "model_state_dict", **config: object) -> Path:
    """Bare (wrap None), or wrapped beside a configuration and what training left there."""
    state = network.state_dict()
    torch.save({wrap: state, "config": config, "epoch": 3, "val_accuracy": 0.9} if wrap else state, path)
    return path


def write_everything(folder: Path) -> Path:
    """An OpenVLA-OFT folder `oft`, and beside it an autoencoder, a conditioned head and a draft."""
    write_oft(folder / "oft", make_networks())
    write(folder / "rfsq.pt", make(Autoencoder), use_layernorm=False)
    write(folder / "head.pt", make(Head, "d"))
    write(folder / "draft.pt", make(Draft, True, seed=4))
    return folder


def parts(folder: Path) -> dict[str, Path]:
    """`write_everything`'s files as arguments of `from_openvla`."""
    return {"rfsq_head": folder / "head.pt", "draft": folder / "draft.pt", "rfsq": folder / "rfsq.pt"}
