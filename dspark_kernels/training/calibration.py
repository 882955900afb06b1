"""Scores as probabilities: slope and shift of the GLM's log q, and the table of the lookup.

They are fitted from the root down (as the temperatures of DSpark's confidence head, arXiv
2607.05147): a depth is fitted where the true path is among the candidates above it. A temperature
alone is not enough: at every depth the candidates together are promised more than they get.
"""

import torch
from torch import Tensor

from ..heads import BoundDraft, DraftModel
from ..ops import linear_topk
from ..reference.glm_tree import glm_log_probs, glm_state
from .replay import future_tokens, lookup_paths
from .store import Continuation


def true_path_log_probs(draft: BoundDraft, item: Continuation):
    """log q of the candidates at every depth given the true path, before calibration.

    Returns (log_probs float32 [B, H, C], is_true bool [B, H, C], reached bool [B, H]) for the
    positions of one continuation; `reached`: the true path is among the candidates so far.
    """
    positions = torch.arange(len(item.tokens) - 1)
    states = item.states[positions].to(draft.vocab_weight.dtype)
    layers = states[:, 1:].flatten(1) if states.shape[1] > 1 else None
    parent = torch.tensor(item.tokens)[positions]
    head_states = draft.head_states(states[:, 0], layers, parent)
    batch, heads, _ = head_states.shape
    keys, ids, logsumexp = linear_topk(
        head_states.flatten(0, 1), draft.vocab_weight, draft.num_candidates, id_map=draft.id_map
    )
    keys, ids = keys.view(batch, heads, -1), ids.view(batch, heads, -1)
    logsumexp, gates = logsumexp.view(batch, heads), draft.gates(head_states)
    future = future_tokens(item, positions, heads)
    is_true = ids == future[..., None]
    log_probs, state = [], torch.zeros(batch, draft.mix.shape[1])
    for depth in range(heads):
        token_in = draft.table_in[parent].float()
        state = glm_state(state, token_in, gates[:, depth], draft.mix.float())
        token_out = draft.table_out[ids[:, depth]].float()
        scores = glm_log_probs(
            state[:, None], token_out, keys[:, depth], logsumexp[:, depth], draft.depth_scale[depth]
        )
        log_probs.append(scores[:, 0])
        parent = future[:, depth].clamp(min=0)
    reached = torch.cat((torch.ones(batch, 1), is_true.any(-1)[:, :-1]), 1).cumprod(1).bool()
    return torch.stack(log_probs, 1), is_true, reached


def calibration_error(probs: torch.Tensor, hits: torch.Tensor, bins: int = 20) -> float:
    """Expected calibration error: mean |predicted - observed| over bins of equal width."""
    index = (probs * bins).long().clamp(max=bins - 1)
    count = torch.bincount(index, minlength=bins)
    predicted = torch.bincount(index, probs, minlength=bins)
    observed = torch.bincount(index, hits.to(probs.dtype), minlength=bins)
    return float((predicted - observed).abs().sum() / count.sum())


@torch.no_grad()
def fit_log_probs(draft: BoundDraft, items: list[Continuation]) -> tuple[Tensor, dict]:
    """Slope and shift [H, 2] with which the scores of hits are likeliest, and the calibration error
    of the best child before and after: {"before": [H numbers], "after": [H numbers]}.

    Raises ValueError if no continuation has a second token, whose score would count.
    """
    parts = [true_path_log_probs(draft, item) for item in items if len(item.tokens) > 1]
    if not parts:
        raise ValueError(
            f"items must hold a continuation of at least two tokens, got {len(items)} shorter ones"
        )
    log_probs, is_true, reached = (torch.cat(part) for part in zip(*parts, strict=True))
    fitted, errors = [], {"before": [], "after": []}
    for depth in range(log_probs.shape[1]):
        rows = reached[:, depth]
        log_q, hit = log_probs[rows, depth].double(), is_true[rows, depth]
        fitted.append(fit_line(log_q.flatten(), hit.flatten().double()))
        top = log_q.argmax(-1, keepdim=True)
        for name, (slope, shift) in (("before", (1.0, 0.0)), ("after", fitted[-1])):
            probs = (slope * log_q.gather(1, top)[:, 0] + shift).exp().clamp(max=1)
            errors[name].append(calibration_error(probs, hit.gather(1, top)[:, 0]))
    return torch.stack(fitted).float(), errors


def fit_line(log_q: Tensor, hits: Tensor) -> Tensor:
    """(slope, shift) of greatest Poisson likelihood for hits (0 or 1) of rate exp(slope · log_q +
    shift), float64 [K] both: the rates then sum up to the hits.

    The slope is at least 0.1, or the order of the scores could turn round. Its prior N(1, 1) weighs
    about as much as one hit: it decides where the data do not, as with equal scores, or hits on the
    greatest scores only. (1, 0) without hits.
    """
    known = log_q.isfinite()
    log_q, hits = log_q[known], hits[known]
    if not hits.any():
        return log_q.new_tensor([1.0, 0.0])
    x = torch.stack((log_q, torch.ones_like(log_q)), 1)
    prior = x.new_tensor([1.0, 0.0])

    def loss(line):
        z = x @ line
        return (z.exp() - hits * z).sum() + ((line - prior) * prior).square().sum() / 2

    def at_slope(slope):  # the shift with which the rates sum up to the hits
        return x.new_tensor([slope, hits.sum().log() - (slope * log_q).logsumexp(0)])

    line = at_slope(1.0)
    for _ in range(100):  # Newton's method on a convex function, the step halved until it is lower
        rate = (x @ line).exp()
        curvature = x.T @ (rate[:, None] * x) + prior.diag()
        step = torch.linalg.solve(curvature, x.T @ (rate - hits) + (line - prior) * prior)
        while step.abs().max() > 1e-9 and not loss(line - step) < loss(line):
            step = step / 2
        if not step.abs().max() > 1e-9:
            break
        line = line - step
    return line if line[0] > 0.1 else at_slope(0.1)


@torch.no_grad()
def fit_lookup(
    window: dict, items: list[Continuation], max_new_tokens: int, prior: float = 20.0
) -> torch.Tensor:
    """Survival of lookup paths by rank, match length and depth: [P, max_ngram + 1, Q].

    Observed frequencies, drawn towards those of the first-ranked path where there are few.
    Positions whose future was cut off at `max_new_tokens` do not count.
    """
    paths_count, length = window["num_paths"], window["path_length"]
    shape = (paths_count, window["max_ngram"] + 1)
    hits, counts = torch.zeros(*shape, length), torch.zeros(shape)
    for item in items:
        cut_off = length if len(item.tokens) >= max_new_tokens else 1
        positions = torch.arange(max(len(item.tokens) - cut_off, 0))
        if not len(positions):
            continue
        paths, match_length = lookup_paths(window, item, positions)
        future = future_tokens(item, positions, length)
        agrees = (paths == future[:, None]) & (paths >= 0)
        survives = agrees.int().cumprod(2).float()  # [B, P, Q]
        index = torch.arange(paths_count) * shape[1] + match_length.long()  # [B, P]
        hits.view(-1, length).index_add_(0, index.flatten(), survives.flatten(0, 1))
        counts.view(-1).index_add_(0, index.flatten(), torch.ones(index.numel()))
    first = (hits[0] + 0.01) / (counts[0, :, None] + 1)  # [max_ngram + 1, Q]
    table = (hits + prior * first * (0.5 ** torch.arange(paths_count))[:, None, None]) / (
        counts[..., None] + prior
    )
    table[:, 0] = 0  # no match
    return table


def calibrate(
    model: DraftModel, embedding, lm_head, items: list[Continuation], max_new_tokens: int
) -> dict:
    """Fit both in place on held-out greedy continuations; returns the errors of `fit_log_probs`."""
    lines, errors = fit_log_probs(model.bind(embedding, lm_head), items)
    model.calibration.copy_(lines)
    if model.lookup is not None:
        model.lookup.table.copy_(fit_lookup(model.lookup.window, items, max_new_tokens))
    return errors
