"""Causal language models of transformers as the loop's target.

`FusedPass` runs the layers where it can read them. Otherwise - other kinds of layers, or some that
were quantized, adapted or changed, or no kernels - the model's own run; only their attention
function is ours, through transformers' pluggable attention interface: it writes the keys and values
into our cache and calls `tree_attention`.
"""

import threading
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface

from .._library import ops
from ..cache import KVCache
from ..packing import Packing, pack
from .attention import causal_attention
from .fused_pass import FusedPass
from .kinds import check_model, experts_of, head_dim, hooks_of, logit_cap, logit_scale

ATTENTION = "dspark"
OWN = object()  # a window that a layer does not pass on
# one by decoder module: held while it, which others may share, has our attention
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


class Pass(NamedTuple):
    """What the attention layers of one forward pass share."""

    cache: KVCache
    slots: tuple[torch.Tensor, torch.Tensor]  # where the new keys and values go
    ancestors: torch.Tensor | None  # None: prefill, causal over the prompt itself
    rows: torch.Tensor | None  # of the nodes which take part, see `tree_attention`; None: all
    met: list[int]  # the layers that have come here


def _attention(
    module, query, key, value, attention_mask, scaling, sliding_window=OWN, softcap=None,
    s_aux=None, dspark: Pass | None = None, **_,
):  # fmt: skip
    """Attention of a layer: query [B, Hq, N, E], key, value [B, Hkv, N, E] -> [B, N, Hq, E].

    With packed rows B is 1 and N is their number, outside as in what is returned. s_aux [Hq]: the
    scores of attention sinks, which take their share of the weights and have no values.
    """
    if dspark is None:
        raise RuntimeError(
            "the model was called while a decoder runs its layers, in another thread perhaps, or "
            "its layers do not pass on what they are given: wait until the decoder is done, or "
            "give it a model of its own"
        )
    cache, slots, ancestors, rows, met = dspark
    met.append(module.layer_idx)
    k_cache, v_cache = cache.keys[module.layer_idx], cache.values[module.layer_idx]
    if sliding_window is OWN:  # whose layers leave it to the mask
        sliding_window = getattr(module, "sliding_window", None)
    layer_types = getattr(module.config, "layer_types", None)
    if layer_types and layer_types[module.layer_idx] == "sliding_attention" and not sliding_window:
        raise ValueError(
            f"model must say the window of its sliding attention, got none in layer "
            f"{module.layer_idx}"
        )
    width = value.shape[-1]
    query, key, value = (_widened(part, k_cache.shape[-1]) for part in (query, key, value))
    k_cache.index_put_(slots, key.transpose(1, 2))
    v_cache.index_put_(slots, value.transpose(1, 2))
    if ancestors is None:
        own = causal_attention(query, key, value, scaling, sliding_window, s_aux, softcap)
        return own[..., :width], None
    query = query.transpose(1, 2)
    out, lse = ops.tree_attention.default(
        query if rows is None else query[0], k_cache, v_cache, cache.seqlens, ancestors, scaling,
        cache.block_table, sliding_window or 0, softcap or 0.0, None, None, rows,
    )  # fmt: skip
    if s_aux is not None:
        out = (out * (lse - s_aux).sigmoid()[..., None]).to(out.dtype)
    out = out[..., :width]
    return out if rows is None else out[None], None


def _widened(x, width):
    """x [..., E] with zeros up to a width: latent attention has keys and values of two."""
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


AttentionInterface.register(ATTENTION, _attention)


class TransformersTarget:
    """A causal language model of transformers, seen through what the decoding loop needs."""

    def __init__(self, model):
        check_model(model)
        config = model.config
        self.model = model.eval()
        self.decoder = model.get_decoder()
        self.embedding = model.get_input_embeddings().weight  # [V, D]
        self.lm_head = model.get_output_embeddings().weight  # [V, D]
        self.lm_head_bias = model.get_output_embeddings().bias
        self.logit_scale = logit_scale(config)
        self.logit_cap = logit_cap(config)
        self.max_length = config.max_position_embeddings
        self.name = getattr(config, "_name_or_path", "") or config.model_type
        self.feature_layers: tuple[int, ...] = ()
        self.num_layers = config.num_hidden_layers
        self.kv_heads = config.num_key_value_heads
        self.head_dim = head_dim(config)
        self.fused = FusedPass(self.decoder) if FusedPass.supports(self.decoder) else None
        configs = (getattr(module, "config", None) for module in self.decoder.modules())
        # one, but for layers that were copied
        self._configs = {id(c): c for c in configs if hasattr(c, "_attn_implementation")}.values()
        self._lock = _LOCKS.setdefault(self.decoder, threading.RLock())
        self._parts = self._read_parts()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of the cache."""
        return self.embedding.dtype

    @property
    def identity(self) -> tuple[int, int, int]:
        """(hidden size, vocabulary size, number of layers): what a draft must be made for."""
        return self.lm_head.shape[1], self.lm_head.shape[0], self.num_layers

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied weights counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _read_parts(self) -> list:
        """The model's modules with what was put in place of their own, how it runs experts, and
        where its parameters lie."""
        modules = [
            (module, hooks_of(module), vars(module).get("forward"))
            for module in self.model.modules()
        ]
        places = (parameter.data_ptr() for parameter in self.model.parameters())
        return [*modules, experts_of(self.model), *places]

    def check_unchanged(self) -> None:
        """Raise a ValueError if the model is not what it was when it was given: what was read from
        it then, and captured over its weights, would be of another model."""
        if self._read_parts() != self._parts:
            raise ValueError(
                "model must stay as it was when its decoder was made; it has other modules, hooks, "
                "dtype or device by now: make a new decoder"
            )

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty contiguous cache for this model."""
        return KVCache.contiguous(
            self.num_layers, batch, capacity, self.kv_heads, self.head_dim, self.dtype, self.device
        )

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        ancestors: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the model over N tokens per request and write their keys and values into the cache.

        tokens, positions: int64 [B, N]; ancestors: int64 [B, N, ceil(N / 64)] of a tree, or None
        for a prompt at an empty cache. packing: the slots of the trees which take part; None for
        all of them, T = B·N. Returns the last hidden states after the
        final norm [T, D], and those of `feature_layers` side by side, [T, len(feature_layers)·D]
        (None without any).
        """
        if self.fused is not None:
            return self.fused(tokens, positions, cache, ancestors, self.feature_layers, packing)
        slots = cache.slots(tokens.shape[1])
        rows = None
        if packing is not None:
            rows = packing.rows
            tokens, positions = pack(tokens, packing)[None], pack(positions, packing)[None]
            slots = tuple(pack(part, packing)[None] for part in slots)
        met = []
        with self._lock, _our_attention(self._configs):
            out = self.decoder(
                input_ids=tokens,
                position_ids=positions,
                use_cache=False,
                output_hidden_states=bool(self.feature_layers),
                dspark=Pass(cache, slots, ancestors, rows, met),
            )
        if met != list(range(self.num_layers)):
            raise RuntimeError(
                f"model must attend through transformers' attention interface in each of its "
                f"{self.num_layers} layers, in order; it did in layers {met}"
            )
        hidden = out.last_hidden_state.flatten(0, 1)
        if not self.feature_layers:
            return hidden, None
        features = [out.hidden_states[layer].flatten(0, 1) for layer in self.feature_layers]
        return hidden, torch.cat(features, dim=-1)


@contextmanager
def _our_attention(configs):
    """Use our attention function within the block; outside it the model works as before."""
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
