"""The quickstart models in plain PyTorch: same sizes, same arithmetic, written as a PyTorch user would."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own habit)


class LSTM(nn.Module):
    """Embedding, LSTM, tied projection with bias."""

    def __init__(self, vocabulary_size: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding_dim, embedding_dim, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits and the next state."""
        hidden, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return F.linear(self.dropout(hidden), self.embedding.weight, self.bias), state


class Block(nn.Module):
    """RMS norm, rotary attention, SwiGLU."""

    def __init__(self, dim: int, heads: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_1, self.norm_2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(dim, intermediate, bias=False) for _ in range(2))
        self.down = nn.Linear(intermediate, dim, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Output and the keys and values so far."""
        h = self.norm_1(x)
        query, key, value = (
            p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)
        x = x + self.dropout(self.out(heads.transpose(1, 2).flatten(2)))
        h = self.norm_2(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h))), (key, value)


class Transformer(nn.Module):
    """LLaMA-shaped decoder with tied embeddings."""

    def __init__(
        self, vocabulary_size: int, dim: int, layers: int, heads: int, intermediate: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, intermediate, dropout) for _ in range(layers))
        self.norm, self.half = nn.RMSNorm(dim), dim // heads // 2

    def forward(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Logits and the next state: a cache for each block."""
        start = 0 if state is None else state[0][0].shape[2]
        places = torch.arange(start, start + tokens.shape[1])[:, None].float()
        angles = places * 10_000.0 ** (-torch.arange(self.half) / self.half)
        x, caches = self.embedding(tokens), []
        for index, block in enumerate(self.blocks):
            x, cache = block(x, angles.cos(), angles.sin(), None if state is None else state[index])
            caches.append(cache)
        return F.linear(self.norm(x), self.embedding.weight), caches


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions in the half-split layout."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
