"""Small Transformers that read one sentence and write another: a decoder, and a pair of
encoder and decoder.

Both take the rows of tokens of `tasks.text`: source, padding up to a cut, `<to>`, and the
answer so far. They differ in how they read it and say the same kind of thing about it, so
that data, training and attacks need not know which it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require

PAD, TO, END = 0, 1, 2  # the first tokens of every vocabulary


def cut_of(x: Tensor) -> int:
    """Where the answer begins in rows of tokens: the place of `<to>`."""
    return int((x[:1] == TO).int().argmax())


class Attention(nn.Module):
    """Softmax attention with several heads; queries of x, keys and values of `memory`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, x: Tensor, memory: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """x (n, t, width), memory (n, s, width), mask bool (n, 1, 1, s): what may be seen."""
        q, k, v = (
            f(z).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(seen.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention to itself, in a decoder also to a memory, then two linear layers; each
    behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int, crossed: bool = False) -> None:
        super().__init__()
        self.norm1, self.own = nn.LayerNorm(width), Attention(width, heads)
        if crossed:
            self.norm2, self.cross = nn.LayerNorm(width), Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        h = self.norm1(x)
        x = x + self.own(h, h, None if causal else mask, causal)
        if memory is not None:
            x = x + self.cross(self.norm2(x), memory, mask)
        return x + self.narrow(F.gelu(self.wide(self.norm3(x))))


class _Reader(nn.Module):
    """Tokens and places as vectors, and the linear layer that gives the logits."""

    def __init__(self, classes: int, width: int, heads: int, length: int, tied: bool) -> None:
        super().__init__()
        require.whole("width", width, 1, 1024)
        require.whole("heads", heads, 1, 64)
        require.whole("length", length, 2, 10_000)
        require.truth("tied", tied)
        if width % heads:
            raise ValueError(f"the width, {width}, must be a multiple of the {heads} heads.")
        self.words, self.places = nn.Embedding(classes, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=not tied)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)
        if tied:
            self.head.weight = self.words.weight

    def read(self, tokens: Tensor) -> Tensor:
        """Tokens (n, m) as vectors (n, m, width)."""
        m = tokens.shape[1]
        if m > len(self.places.weight):
            raise ValueError(
                f"rows have {m} tokens, but the network has places for "
                f"{len(self.places.weight)}; build it with length={m}."
            )
        return self.words(tokens) + self.places.weight[:m]


def _rows(x: Tensor) -> Tensor:
    """What forward was handed, if it is tokens: their number would say nothing as floats."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.ndim != 2:
        raise ValueError(
            f"the network takes tokens, int64 of shape (n, s + t), not {require.kind(x)}."
        )
    return x


class GPT(_Reader):
    """A decoder that reads source, `<to>` and answer as one sentence.

    Padding between source and answer is moved behind both, so that no place depends on
    how wide a set is, and no mask is needed beside the causal one.
    """

    def __init__(
        self, classes: int, width: int, layers: int, heads: int, length: int, tied: bool
    ) -> None:
        super().__init__(classes, width, heads, length, tied)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, s + t) to logits (n, t, k) for the t places of the answer."""
        x = _rows(x)
        t = x.shape[1] - cut_of(x)
        order = (x == PAD).int().argsort(dim=1, stable=True)
        h = self.read(x.gather(1, order))
        for block in self.blocks:
            h = block(h)
        back = order.argsort(1)[:, -t:, None].expand(-1, -1, h.shape[2])
        return self.head(self.norm(h.gather(1, back)))


class Seq2Seq(_Reader):
    """An encoder that reads the source, and a decoder that looks at it and at what it
    has written; one table of words serves both and, tied, the logits."""

    def __init__(
        self, classes: int, width: int, layers: int, heads: int, length: int, tied: bool
    ) -> None:
        super().__init__(classes, width, heads, length, tied)
        self.encoder = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.between = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(Block(width, heads, True) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, s + t) to logits (n, t, k) for the t places of the answer."""
        x = _rows(x)
        source, answer = x.tensor_split([cut_of(x)], 1)
        seen = (source != PAD)[:, None, None]
        h = self.read(source)
        for block in self.encoder:
            h = block(h, None, seen, False)
        memory, h = self.between(h), self.read(answer)
        for block in self.decoder:
            h = block(h, memory, seen)
        return self.head(self.norm(h))


def gpt(
    classes: int = 200,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    length: int = 40,
    tied: bool = False,
) -> nn.Module:
    """A small decoder-only Transformer, about 130,000 weights for the drawn vocabulary.

    Args:
        length: tokens that a row may have.
        tied: the table of words is also the weight of the last linear layer.
    """
    return GPT(classes, width, layers, heads, length, tied)


def seq2seq(
    classes: int = 200,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    length: int = 40,
    tied: bool = True,
) -> nn.Module:
    """A small encoder-decoder Transformer, `layers` each, with tied words as is usual.

    Args:
        length, tied: see :func:`gpt`.
    """
    return Seq2Seq(classes, width, layers, heads, length, tied)


NETWORKS = {f.__name__: f for f in (gpt, seq2seq)}
