"""A small GPT in PyTorch, dense or with the straight-through gate, as one would write it by hand.

The training rows are compared with it. It computes what `attnsparse` computes: causal attention, LayerNorm
first, tanh GELU, learned positions; gated, a hard gate with logistic noise whose backward pass is that of the
sigmoid, patterns that are not renormalised, and the expected edges in the loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnsparse import Config


class Attention(nn.Module):
    """Attention of one layer; `forward` returns its output [B, T, E] and its expected edges (0 if dense)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.n_head * config.d_head
        self.n_head, self.d_head, self.gated = config.n_head, config.d_head, config.gated
        self.qkv = nn.Linear(config.d_model, 3 * width)
        self.out = nn.Linear(width, config.d_model)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n_batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(n_batch, length, 3, self.n_head, self.d_head).permute(2, 0, 3, 1, 4)
        if self.gated:
            z, expected = gated_attention(q, k, v)
        else:
            z, expected = F.scaled_dot_product_attention(q, k, v, is_causal=True), x.new_zeros(())
        return self.out(z.transpose(1, 2).reshape(n_batch, length, -1)), expected


def gated_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """z [B, H, T, D] and the sum of sigmoid(score) over causal pairs; q, k, v [B, H, T, D]."""
    length = q.shape[-2]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    pattern = scores.masked_fill(~causal, -math.inf).softmax(-1)
    uniform = torch.rand_like(scores).clamp_(1e-7, 1 - 1e-7)
    soft = torch.sigmoid(scores + torch.logit(uniform))
    gate = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
    return (pattern * gate) @ v, (torch.sigmoid(scores) * causal).sum()


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.attn = Attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.d_model, config.d_mlp),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.d_mlp, config.d_model),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, expected = self.attn(self.ln_1(x))
        x = x + out
        return x + self.mlp(self.ln_2(x)), expected


class GPT(nn.Module):
    """The whole model; `forward` returns logits [B, T, V] and the expected edges of all layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.n_vocab, config.d_model)
        self.wpe = nn.Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.n_vocab, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        if config.tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        expected = x.new_zeros(())
        for block in self.blocks:
            x, edges = block(x)
            expected = expected + edges
        return self.head(self.ln_f(x)), expected


class TorchTrainer:
    """Optimiser steps of a GPT on one batch: tokens and targets int64 [B, T]."""

    def __init__(
        self, config: Config, tokens: Tensor, targets: Tensor, multiplier: float, tau: float
    ) -> None:
        self.config, self.tokens, self.targets = config, tokens, targets
        self.multiplier, self.tau = multiplier, tau
        self.model = GPT(config)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-8, fused=True)

    def step(self) -> float:
        """Forward, backward, clipping by the global norm, AdamW; returns the loss."""
        logits, expected = self.model(self.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        if self.config.gated:
            n_sequences, length = self.tokens.shape
            pairs = self.config.n_layer * self.config.n_head * n_sequences * length * (length + 1) / 2
            loss = (expected / pairs + self.multiplier * (loss - self.tau)) / (1 + self.multiplier)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()
