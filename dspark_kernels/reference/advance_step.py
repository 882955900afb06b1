"""Definition of `advance_step`."""

import torch


def advance_step(
    tokens, num_tokens, node, rows, hidden, stop, limit, history, lengths, cache_seqlens, root,
    done, kept,
):  # fmt: skip
    """The end of a step: the emitted tokens join the history, see `ops.advance_step`."""
    (batch, columns), capacity = tokens.shape, history.shape[1]
    most = (capacity - lengths).clamp(max=columns).masked_fill(done, 0)
    count = torch.minimum(num_tokens, most).clamp(min=0)
    column = torch.arange(columns, device=tokens.device)
    emitted = column < count[:, None]  # [B, P]

    slots = torch.where(emitted, lengths[:, None] + column, capacity)
    padded = torch.nn.functional.pad(history, (0, 1)).scatter_(1, slots, tokens)
    history.copy_(padded[:, :capacity])
    for source, target in zip(hidden, kept, strict=True):
        per_request = len(source) // max(batch, 1)
        first = torch.arange(batch, device=tokens.device) * per_request
        row = first + node if rows is None else rows.gather(1, node.long()[:, None])[:, 0]
        target.copy_(torch.where(done[:, None], target, source[row]))
    if columns:
        last = tokens.gather(1, (count.long() - 1).clamp(min=0)[:, None])[:, 0]
        root.copy_(torch.where(count > 0, last, root))
    lengths += count
    cache_seqlens += count
    stopped = (emitted[..., None] & (tokens[..., None] == stop)).flatten(1).any(dim=1)
    done |= stopped | (lengths >= limit)
    return count
