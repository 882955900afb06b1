"""Random models and a random draft, small enough for exact checks."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dspark_kernels.heads import DraftConfig, DraftModel

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "eos_token_id": None,
    "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0] * 3, [11, 12, 11, 12, 11]]
WINDOW, EXPERTS = {"sliding_window": 6}, {"num_experts": 5, "num_experts_per_tok": 2}
LOCAL_EXPERTS = EXPERTS | {"num_local_experts": 5}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], **WINDOW}
LATENT = {  # attention, with keys of 12 numbers, 4 of them rotated
    "head_dim": 4,
    "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
ALPHA = {
    "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0,
    },
}  # fmt: skip
GROWING = {  # queries, with their positions
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.5,
}  # fmt: skip
KINDS = {  # of models, and options which bring out what is special about them
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": WINDOW,
    "ministral": MIXED,
    "qwen2": {},
    "qwen3": {},
    "seed_oss": {"attention_bias": True, "attention_out_bias": True},
    "phi3": WINDOW,
    "mixtral": LOCAL_EXPERTS,
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 16, "mlp_only_layers": [0]},
    "apertus": {},
    "arcee": {"attention_bias": True},
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True},
    "cohere2": MIXED | {"logit_scale": 3.0},
    "ernie4_5": {"use_bias": True},
    "ernie4_5_moe": {
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 1,
    },
    "deepseek_v2": LATENT | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": LATENT,
    "glm4_moe_lite": LATENT,
    "exaone4": MIXED,
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"attention_bias": True},
    "glm4_moe": {
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
    },
    "gpt_oss": MIXED | LOCAL_EXPERTS,
    "granite": {
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.5,
    },
    "granitemoe": LOCAL_EXPERTS | {"logits_scaling": 0.5, "residual_multiplier": 0.5},
    "helium": {},
    "hunyuan_v1_dense": ALPHA,
    "hunyuan_v1_moe": ALPHA | {"num_experts": 5, "moe_topk": 2},
    "minimax_m2": LOCAL_EXPERTS,
    "ministral3": {"rope_parameters": GROWING},
    "olmo": {"clip_qkv": 2.0},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "qwen2_moe": EXPERTS
    | MIXED
    | {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
    },
    "gemma": {},
    "gemma2": MIXED
    | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 4},
    "gemma3_text": MIXED | {"query_pre_attn_scalar": 4},
    "olmo2": {},
    "olmo3": MIXED,
    "olmoe": EXPERTS,
    "smollm3": {"no_rope_layers": [1, 0]},
    "starcoder2": WINDOW,
}


def tiny_model(vocab_size=64, seed=0, model_type="llama", **options):
    """A float32 model with weights large enough that its next token depends on the context.

    Biases are not 0, and weights of norms are not 1.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **(SIZES | options))
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, std=0.25)
    return model


def tiny_draft(vocab_size=64, seed=1, **options):
    """A draft with random weights for `tiny_model`, with scores for the paths of its context."""
    torch.manual_seed(seed)
    sizes = {"num_heads": 3, "num_candidates": min(16, vocab_size), "feature_size": 8, "rank": 8}
    config = DraftConfig(
        hidden_size=SIZES["hidden_size"], vocab_size=vocab_size,
        num_layers=SIZES["num_hidden_layers"], feature_layers=[1], **(sizes | options),
    )  # fmt: skip
    draft = DraftModel(config)
    if draft.lookup is not None:
        length = torch.arange(1, config.lookup_length + 1)
        draft.lookup.table[:, 1:] = 0.6 ** length.float()
    return draft


def tiny_tokenizer(vocab_size=300):
    """A byte-level tokenizer with a chat template and an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<end>", *alphabet])}
    vocab |= {f"<{index}>": index for index in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '\n' }}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", chat_template=template
    )
