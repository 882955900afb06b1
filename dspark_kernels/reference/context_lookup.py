"""Definition of `context_lookup`."""

import torch


def context_lookup(history, lengths, max_ngram, min_ngram, num_paths, path_length):
    """Continuations of earlier occurrences of the current suffix, see `ops.context_lookup`."""
    batch, capacity = history.shape
    lengths = lengths.long()[:, None]  # [B, 1]
    end = torch.arange(capacity + 1, device=history.device)  # an occurrence ends here
    padded = torch.nn.functional.pad(history, (0, path_length + 1))

    matching = (end < lengths - 1).expand(batch, -1)
    matches = torch.zeros_like(matching, dtype=torch.int64)  # tokens in common, from the end
    for back in range(max_ngram):
        token = padded.gather(1, (lengths - 1 - back).clamp(min=0))
        matching = matching & (end >= back) & (padded[:, (end - back).clamp(min=0)] == token)
        matches += matching

    offset = torch.arange(path_length, device=history.device)
    inside = (end[:, None] + 1 + offset) < lengths[..., None]  # [B, S + 1, Q]
    continuations = padded.unfold(1, path_length, 1)[:, 1:]  # [B, S + 1, Q]
    rank = torch.where(matches >= min_ngram, matches * (capacity + 1) + end, -1)
    paths, match_length = [], []
    for _ in range(num_paths):
        best = rank.argmax(dim=1, keepdim=True)
        found = rank.gather(1, best) >= 0  # [B, 1]
        best_row = best[..., None].expand(-1, -1, path_length)
        path, in_path = continuations.gather(1, best_row), inside.gather(1, best_row)  # [B, 1, Q]
        period = (lengths - 1 - best).clamp(min=1)[..., None]
        repeated = path.gather(2, offset % period)
        paths.append(torch.where(found[..., None], repeated, -1))
        match_length.append(torch.where(found, matches.gather(1, best), 0))
        agrees = ((continuations == path) | ~inside | ~in_path).all(dim=2)
        rank = rank.masked_fill(agrees, -1)
    return torch.cat(paths, 1), torch.cat(match_length, 1).int()
