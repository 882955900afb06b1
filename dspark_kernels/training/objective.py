"""What heads and GLM are trained on: the target's own continuations.

Half cross-entropy on the tokens, half distillation of the target's distribution, over a sampled
part of the vocabulary: for the GLM given the true path (teacher forcing), and again for the heads'
own logits, because they alone pick the candidates.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import DraftModel
from ..reference.glm_tree import glm_state


@dataclass
class Batch:
    """S segments of T + H consecutive positions of continuations."""

    hidden: Tensor  # [S, T + H, D], the target's state which drew the token at the same place
    layers: Tensor | None  # [S, T + H, len(feature_layers)·D]
    tokens: Tensor  # int64 [S, T + H], -1 behind the end

    def to(self, device) -> "Batch":
        """The batch on another device."""
        layers = None if self.layers is None else self.layers.to(device)
        return Batch(self.hidden.to(device), layers, self.tokens.to(device))


@dataclass
class VocabularySample:
    """The tokens a softmax is taken over: the frequent ones, some of the others, all targets."""

    ids: Tensor  # int64 [V'], increasing
    offset: Tensor  # [V'], log of how many tokens a sampled one stands for
    column: Tensor  # int64 [V], place in `ids`, -1 if absent

    def to(self, device) -> "VocabularySample":
        """The sample on another device."""
        return VocabularySample(self.ids.to(device), self.offset.to(device), self.column.to(device))

    @classmethod
    def draw(cls, always: Tensor, others: Tensor, count: int, targets: Tensor, generator):
        """All of `always` (a mask bool [V]), `count` of `others` (ids) and all `targets` (ids)."""
        chosen = always.clone()
        chosen[targets] = True
        sampled = others[torch.randperm(len(others), generator=generator)[:count]]
        fresh = sampled[~chosen[sampled]]
        chosen[fresh] = True
        offset = torch.zeros(len(always))
        offset[fresh] = torch.tensor(max(len(others), 1) / max(count, 1)).log()
        ids = chosen.nonzero()[:, 0]
        column = torch.full((len(always),), -1)
        column[ids] = torch.arange(len(ids))
        return cls(ids, offset[ids], column)


class _HalfDistillation(torch.autograd.Function):
    """Σ_rows weight · (½ CE(target) + ½ CE(teacher)), gradient made in the forward pass."""

    @staticmethod
    def forward(ctx, logits, teacher, target, weight, share):
        """logits, teacher (probabilities) [M, V']; target int64 [M]; weight [M]."""
        logsumexp = logits.logsumexp(-1).float()
        hard = logits.gather(1, target[:, None])[:, 0].float()
        soft = torch.linalg.vecdot(logits, teacher).float()
        gradient = torch.softmax(logits, -1).sub_(teacher, alpha=share)
        gradient.scatter_add_(
            1, target[:, None], torch.full_like(gradient[:, :1], share - 1).expand(len(target), 1)
        )
        ctx.save_for_backward(gradient.mul_(weight[:, None].to(gradient.dtype)))
        return ((logsumexp - (1 - share) * hard - share * soft) * weight).sum()

    @staticmethod
    def backward(ctx, grad):
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None, None


def half_distillation(logits, teacher, target, weight, share=0.5):
    """Σ weight · ((1 - share) · CE(target) + share · CE(teacher)), see `_HalfDistillation`."""
    return _HalfDistillation.apply(logits, teacher, target, weight, share)


@dataclass
class Losses:
    """Mean losses of a batch by depth [H]; `total` is what is minimised."""

    total: Tensor
    glm: Tensor
    heads: Tensor


def draft_loss(
    model: DraftModel,
    batch: Batch,
    embedding: Tensor,
    lm_head: Tensor,
    vocabulary: VocabularySample,
    *,
    heads_weight: float = 0.5,
    distillation: float = 0.5,
    depth_decay: float = 0.9,
    rollout_weight: float = 0.0,
    rollout_temperature: float = 0.5,
) -> Losses:
    """Teacher-forced loss of GLM and heads on every position of the batch.

    embedding, lm_head: the frozen target's [V, D]. rollout_weight: of minus the accepted length of
    the GLM's own choices, see `rollout_length`.
    """
    depths = model.config.num_heads
    length = batch.tokens.shape[1] - depths
    future = batch.tokens.unfold(1, depths + 1, 1).flatten(0, 1)  # [M, 1 + H], the root first
    hidden = batch.hidden[:, :length].flatten(0, 1)  # [M, D]
    layers = None if batch.layers is None else batch.layers[:, :length].flatten(0, 1)
    states = model.heads(hidden, layers, embedding[future[:, 0].clamp(min=0)])  # [M, H, D]
    gates = model.glm.gates(states)
    rows = lm_head[vocabulary.ids]  # [V', D]
    table_out = model.glm.rows_out(rows)  # [V', R]
    offset = vocabulary.offset.to(rows.dtype)
    with torch.no_grad():
        later = batch.hidden[:, 1:]  # [S, T + H - 1, D]
        teacher = F.linear(later.flatten(0, 1), rows).add_(offset).softmax(-1)
        teacher = teacher.unflatten(0, later.shape[:2])

    state = torch.zeros(len(future), model.config.rank, device=future.device)
    glm, heads, counts, keys = [], [], [], []
    for depth in range(depths):
        token = future[:, depth + 1]
        valid = (token >= 0).float()
        target = vocabulary.column[token.clamp(min=0)].clamp(min=0)
        soft = teacher[:, depth : depth + length].flatten(0, 1)
        token_in = model.glm.rows_in(embedding[future[:, depth].clamp(min=0)])
        state = glm_state(state, token_in, gates[:, depth], model.glm.mix)
        own = F.linear(states[:, depth], rows) + offset
        scores = own + F.linear(state * model.glm.depth_scale[depth], table_out)
        glm.append(half_distillation(scores, soft, target, valid, distillation))
        heads.append(half_distillation(own, soft, target, valid, distillation))
        counts.append(valid.sum().clamp(min=1))
        keys.append(own)
    count = torch.stack(counts)
    glm, heads = torch.stack(glm) / count, torch.stack(heads) / count
    weight = depth_decay ** torch.arange(depths, device=count.device)
    total = ((glm + heads_weight * heads) * weight).sum() / weight.sum()
    if rollout_weight:
        reward = rollout_length(
            model.glm, gates, keys, future, embedding, vocabulary, table_out, rollout_temperature
        )
        total = total - rollout_weight * reward
    return Losses(total, glm.detach(), heads.detach())


def rollout_length(
    glm, gates, keys, future, embedding, vocabulary, table_out, temperature, candidates=16
) -> Tensor:
    """Mean accepted length when the GLM follows its own choices, differentiable.

    At every depth it picks one of the heads' candidates by the straight-through Gumbel-Softmax
    estimator (Jang et al. 2017), and the relaxed pick is the parent of the next depth. A pick other
    than the true token ends the accepted path, so whatever follows it has no weight.

    gates [M, H, 2R]; keys: H of [M, V'], the heads' logits; future int64 [M, 1 + H], the root
    first; table_out [V', R].
    """
    token_in = glm.rows_in(embedding[future[:, 0].clamp(min=0)])
    state = torch.zeros_like(token_in)
    alive = torch.ones(len(future), device=future.device)
    total = torch.zeros_like(alive)
    for depth, own in enumerate(keys):
        state = glm_state(state, token_in, gates[:, depth], glm.mix)
        key, column = own.topk(candidates, dim=-1)  # [M, C]
        scale = (state * glm.depth_scale[depth])[:, None]
        scores = key + (scale @ table_out[column].mT)[:, 0]
        pick = F.gumbel_softmax(scores.float(), tau=temperature, hard=True)
        ids = vocabulary.ids[column]
        alive = alive * (pick * (ids == future[:, depth + 1, None])).sum(-1)
        total = total + alive
        token_in = (pick[:, None] @ glm.rows_in(embedding[ids]).float())[:, 0]
    return total.mean()
