"""Definition of `best_slots`."""

import torch


def best_slots(scores, num_nodes, lengths, limit, done, nodes, total):
    """Which nodes of all trees a pass runs over, see `ops.best_slots`."""
    remaining = (limit - lengths).clamp(min=0).masked_fill(done, 0)
    weight = remaining.float().sqrt()[:, None]
    priority = scores[:, :nodes] * weight
    priority = torch.where(priority > 0, priority, 0.0)  # a NaN is none, either
    priority[:, :1] = torch.where(weight > 0, torch.inf, 0.0)
    order = priority.flatten().argsort(descending=True, stable=True)
    slots = order[:total].sort().values
    row = torch.arange(total, device=slots.device)
    rows = torch.full_like(order, -1).index_copy_(0, slots, row).view_as(priority)
    used = torch.arange(nodes, device=slots.device) < num_nodes[:, None]
    return slots, rows, ((rows >= 0) & used).sum(dim=1, dtype=torch.int32)
