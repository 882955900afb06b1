"""The layers of a Llama-like model: six calls each, on the model's own weights; of a mixture of
experts four, and its own experts.

Few rows go through a layer when a tree is verified. What stands between its products - norms,
rotation, gate, residuals, the cache - are then some thirty more kernels on a GPU, and calls that
cost as much as the arithmetic on a CPU, where torch's linear layers run at half of its speed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._library import backend_of, ops
from ..cache import KVCache
from ..packing import Packing, pack
from .attention import causal_attention
from .kinds import FUSED_TYPES, as_made, is_linear

WINDOW_IN_CONFIG = ("mistral", "phi3", "mixtral")  # where an attention block does not hold it


def _parts(module, merged: str, *names: str) -> list[nn.Linear]:
    """The linear layers of these names, or the one of all their rows, as Phi-3 has it."""
    return [getattr(module, name) for name in ([merged] if hasattr(module, merged) else names)]


def _attention_parts(layer):
    """The linear layers of the attention block: queries, keys, values; output."""
    attention = layer.self_attn
    return _parts(attention, "qkv_proj", "q_proj", "k_proj", "v_proj"), [attention.o_proj]


def _mlp_parts(layer):
    """The linear layers of a gated MLP: gate, up; down. Nothing of a mixture of experts."""
    mlp = layer.mlp
    if not hasattr(mlp, "down_proj"):
        return ()
    return _parts(mlp, "gate_up_proj", "gate_proj", "up_proj"), [mlp.down_proj]


def _weights(linears: list[nn.Linear]):
    """The weights and biases of linear layers, as `fused_linear` takes them."""
    biases = [linear.bias for linear in linears]
    return [linear.weight for linear in linears], [] if biases[0] is None else biases


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rows of x [T, D], normalized by their root mean square."""
    return F.rms_norm(x, x.shape[1:], weight, eps)


class FusedLayer:
    """One decoder layer: attention block and gated MLP, or a mixture of experts as it is.

    The end of each block norms its rows for the next one, the last for `next_norm`, another layer's
    or the decoder's.
    """

    def __init__(self, layer, next_norm):
        attention, parts = layer.self_attn, _mlp_parts(layer)
        self.qkv, self.out = map(_weights, _attention_parts(layer))
        self.experts = None if parts else layer.mlp
        if parts:
            (gate_up, biases), self.down = map(_weights, parts)
            if len(gate_up) == 1:
                gate_up = gate_up[0].detach().chunk(2)
            self.gate_up = list(gate_up), biases
        norms = layer.post_attention_layernorm, next_norm
        self.norm, self.next_norm = ((norm.weight, norm.variance_epsilon) for norm in norms)
        head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.head_norms = [None if norm is None else norm.weight for norm in head_norms]
        self.head_eps = getattr(head_norms[0], "variance_epsilon", 0.0)
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        of = attention.config if attention.config.model_type in WINDOW_IN_CONFIG else attention
        self.window = getattr(of, "sliding_window", None)

    def __call__(
        self, x: Tensor, normed: Tensor, angles, positions: Tensor, keys: Tensor, values: Tensor,
        cache, ancestors, slots, rows,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The states x [T, D] and their norm become those behind this layer.

        angles: cos and sin of all positions; positions: [B, N]; keys, values: this layer's.
        slots: where a prompt's keys and values go, see `KVCache.slots`; not read with a tree.
        rows: of the nodes which take part, see `tree_attention`, and positions [T]; None: all.
        """
        (qkv,) = ops.fused_linear.default(normed, *self.qkv, False, None, None, 0.0)
        q = ops.rotary_append.default(
            qkv.view(*positions.shape, -1, self.head_dim), *angles, positions, *self.head_norms,
            self.head_eps, keys, values, cache.seqlens, cache.block_table, rows,
        )  # fmt: skip
        if ancestors is None:
            heads = (tensor.transpose(1, 2) for tensor in (q, keys[slots], values[slots]))
            out = causal_attention(*heads, self.scaling, self.window)
        else:
            out, _lse = ops.tree_attention.default(
                q, keys, values, cache.seqlens, ancestors, self.scaling, cache.block_table,
                self.window or 0, 0.0, None, None, rows,
            )  # fmt: skip
        out = out.reshape(len(x), -1)
        x, normed = ops.fused_linear.default(out, *self.out, False, x, *self.norm)
        if self.experts is not None:
            x = x + self.experts(normed[None])[0]
            return x, _norm(x, *self.next_norm)
        (hidden,) = ops.fused_linear.default(normed, *self.gate_up, True, None, None, 0.0)
        x, normed = ops.fused_linear.default(hidden, *self.down, False, x, *self.next_norm)
        return x, normed


class FusedPass:
    """All layers of a decoder (`LlamaModel` or one like it), sharing its weights."""

    def __init__(self, decoder):
        self.decoder = decoder
        norms = [*(layer.input_layernorm for layer in decoder.layers), decoder.norm]
        self.layers = list(map(FusedLayer, decoder.layers, norms[1:]))
        self.first_norm = norms[0].weight, norms[0].variance_epsilon
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}  # by number of positions

    @staticmethod
    def supports(decoder) -> bool:
        """Whether a kernel serves, and every layer is here, of the plain kind, and runs alone."""
        config = decoder.config
        rope = getattr(config, "rope_parameters", None) or {}
        rotated = rope.get("partial_rotary_factor", 1.0)
        if config.model_type not in FUSED_TYPES or rotated != 1.0:
            return False
        kinds = {(parameter.device, parameter.dtype) for parameter in decoder.parameters()}
        device = decoder.embed_tokens.weight.device.type
        if len(kinds) > 1 or device not in ("cpu", "cuda") or config.hidden_act != "silu":
            return False
        if not all(as_made(module) for module in decoder.modules()):
            return False
        if backend_of("fused_linear", device)[0] not in ("native", "triton"):
            return False
        return all(
            is_linear(linear)
            for layer in decoder.layers
            for part in (*_attention_parts(layer), *_mlp_parts(layer))
            for linear in part
        )

    def angles(self, capacity: int) -> tuple[Tensor, Tensor]:
        """cos and sin [S, E] of the rotary angles at all positions of a cache, S >= capacity.

        Nine small kernels, once instead of in every pass. Kept for good, since captured passes read
        them; sizes are powers of two, so that together they are no more than twice the largest.
        """
        size = 1 << (capacity - 1).bit_length()
        if size not in self._angles:
            weight = self.decoder.embed_tokens.weight  # for its dtype and device
            cos, sin = self.decoder.rotary_emb(
                weight, torch.arange(size, device=weight.device)[None]
            )
            self._angles[size] = cos[0], sin[0]
        return self._angles[size]

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: KVCache,
        ancestors: Tensor | None,
        feature_layers: tuple[int, ...],
        packing: Packing | None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `TransformersTarget.forward`."""
        decoder = self.decoder
        x, states = decoder.embed_tokens(pack(tokens, packing)), []  # [T, D]
        normed = _norm(x, *self.first_norm)
        rows = None
        if packing is not None:
            rows, positions = packing.rows, pack(positions, packing)
        angles = self.angles(cache.capacity)
        slots = cache.slots(tokens.shape[1]) if ancestors is None else None
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            states.append(x)
            x, normed = layer(
                x, normed, angles, positions, keys, values, cache, ancestors, slots, rows
            )
        if not feature_layers:
            return normed, None
        states.append(normed)
        return normed, torch.cat([states[layer] for layer in feature_layers], dim=-1)
