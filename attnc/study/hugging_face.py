"""Hugging Face's models with random weights, where `transformers` is installed. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import torch
from torch import Tensor, nn

from attnc.study.models import Size, initialize_embeddings
from attnc.study.tasks import Task


class WithHead(nn.Module):
    """A Hugging Face model and the head of the others."""

    def __init__(self, model: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N) to logits (B, N, classes)."""
        logits: Tensor = self.head(self.model(input_ids=tokens).last_hidden_state)
        return logits


def has_transformers() -> bool:
    """Tell whether the library is there, without importing it."""
    return importlib.util.find_spec("transformers") is not None


def transformers_version() -> str | None:
    """Return the version of the library, for reports; None where it is not there."""
    return version("transformers") if has_transformers() else None


def gpt2(task: Task, size: Size, seed: int) -> nn.Module:
    """Make a GPT-2 of these sizes."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=task.vocabulary,
        n_positions=task.length,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        n_inner=size.hidden,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,  # the vocabulary of a task has no such tokens
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2Model(config)
        initialize_embeddings(model.wte, model.wpe)
        return WithHead(model, size.width, task.classes)


def bert(task: Task, size: Size, seed: int) -> nn.Module:
    """Make a BERT of these sizes."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=task.vocabulary,
        max_position_embeddings=task.length,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
        initialize_embeddings(model.embeddings.word_embeddings, model.embeddings.position_embeddings)
        return WithHead(model, size.width, task.classes)
