"""Which models of transformers can be targets, and which of their modules are as they were made."""

from torch import nn

from .. import graph
from ..ops._check import FLOATS

# whose layers are two pre-normalised blocks, attention and MLP, with rotary angles on all of a head
FUSED_TYPES = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "seed_oss", "phi3", "mixtral", "qwen3_moe",
)  # fmt: skip
MODEL_TYPES = (
    *FUSED_TYPES, "apertus", "arcee", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5",
    "ernie4_5_moe", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe",
    "glm4_moe_lite", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "minimax_m2", "ministral3", "olmo", "olmo2", "olmo3", "olmoe", "phi",
    "qwen2_moe", "smollm3", "starcoder2",
)  # fmt: skip
LENGTH_DEPENDENT = ("dynamic", "longrope")  # rope types whose angles depend on the longest position
TORCH, TRANSFORMERS = "torch.nn.", "transformers."  # modules of classes and functions
WRAPPERS = (TRANSFORMERS, "torch.", "peft.")  # whose models draw from the logits of the LM head


def hooks_of(module) -> list:
    """The functions that run before and after a module.

    Without transformers' own, which stay where a call once asked for all hidden states.
    """
    hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
    return [
        hook for hook in hooks if not str(getattr(hook, "__module__", "")).startswith(TRANSFORMERS)
    ]


def _has_own_forward(module) -> bool:
    """Whether `forward` is that of the module's class, also behind a hook of accelerate that does
    no more than move what comes to the module's device, or after one was removed."""
    own = vars(module)
    hook, forward = own.get("_hf_hook"), own.get("forward")
    if type(hook).__name__ == "AlignDevicesHook" and not hook.offload:
        forward = own.get("_old_forward")
    return forward is None or forward == type(module).forward.__get__(module)


def as_made(module) -> bool:
    """Whether a module does what its class in torch or transformers does, and no more."""
    known = type(module).__module__.startswith((TORCH, TRANSFORMERS))
    return known and _has_own_forward(module) and not hooks_of(module)


def is_parameter(tensor) -> bool:
    """Whether a weight is one as torch makes them, not a quantized one."""
    return type(tensor) is nn.Parameter


def is_linear(module) -> bool:
    """Whether this is a linear layer as torch made it, not a quantized or adapted one."""
    return type(module) is nn.Linear and is_parameter(module.weight) and as_made(module)


def _rope_types(config) -> list[str]:
    """Of all layers, or of each kind of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if config.model_type.startswith("hunyuan") and parameters.get("alpha"):
        return []  # "dynamic" by name, with angles that do not change
    kinds = [parameters] if "rope_type" in parameters else parameters.values()
    return [kind["rope_type"] for kind in kinds if isinstance(kind, dict) and "rope_type" in kind]


def head_dim(config) -> int:
    """Width of a model's keys and values; of latent attention the larger of both."""
    if hasattr(config, "qk_head_dim"):
        return max(config.qk_head_dim, config.v_head_dim)
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def logit_scale(config) -> float:
    """What a model multiplies the products of its LM head with to have its logits."""
    if config.model_type in ("cohere", "cohere2"):
        return config.logit_scale
    if config.model_type in ("granite", "granitemoe"):
        return 1 / config.logits_scaling
    return 1.0


def logit_cap(config) -> float | None:
    """c of a model whose logits are c·tanh(l / c), or None."""
    capped = config.model_type in ("gemma2", "gemma3_text")
    return config.final_logit_softcapping if capped else None


def check_config(config) -> None:
    """Raise a ValueError unless models of this configuration can be targets."""
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"model_type must be one of {', '.join(MODEL_TYPES)}, got {config.model_type!r}"
        )
    for kind in _rope_types(config):
        if kind in LENGTH_DEPENDENT:
            raise ValueError(
                f"model must have rotary angles which depend on the position alone, got rope_type "
                f"{kind!r}: the nodes of a tree would change those of the text before them"
            )
    if logit_scale(config) <= 0:
        raise ValueError(f"model must scale its logits by more than 0, got {logit_scale(config)}")
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError("model must attend to earlier tokens alone, got bidirectional attention")


def experts_of(model) -> str | None:
    """How a mixture of experts runs them; None of another model."""
    config = model.config
    return config._experts_implementation if hasattr(config, "num_experts_per_tok") else None


def check_model(model) -> None:
    """Raise a ValueError unless a model can be a target."""
    if not hasattr(model, "config") or not hasattr(model, "get_output_embeddings"):
        raise ValueError(
            f"model must be a causal language model of transformers, got a {type(model).__name__}"
        )
    check_config(model.config)
    head, dtype = model.get_output_embeddings(), model.get_input_embeddings().weight.dtype
    if head is None:
        raise ValueError(f"model must have an LM head, got a {type(model).__name__}")
    if not is_linear(head):
        changed = "one that was changed" if type(head) is nn.Linear else f"a {type(head).__name__}"
        raise ValueError(
            f"model must have a plain linear layer as its LM head, got {changed}: its weight is "
            "all that is read of it, so merge adapters, and leave it out where you quantize"
        )
    prompted = getattr(model, "peft_config", {}).values()
    if hooks_of(model) or any(
        getattr(adapter, "is_prompt_learning", False) for adapter in prompted
    ):
        raise ValueError("model must draw from its LM head's logits, got one with hooks or prompts")
    if not type(model).forward.__module__.startswith(WRAPPERS):
        raise ValueError(
            f"model must draw from its LM head's logits, got a {type(model).__name__} with a "
            "forward of its own"
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ValueError(f"model must be on one device, got {', '.join(devices)}")
    if dtype not in FLOATS:
        raise ValueError(f"model must be float32, bfloat16 or float16, got {dtype}")
    if head.weight.dtype != dtype:
        raise ValueError(
            f"model must have an LM head of the embedding's dtype {dtype}, got {head.weight.dtype}"
        )
    if experts_of(model) == "eager" and devices[0].startswith("cuda") and graph.captures_steps():
        raise ValueError(
            "model must run its experts without waiting for the GPU, got the "
            "experts_implementation 'eager': load it with 'grouped_mm'"
        )
