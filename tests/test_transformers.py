"""Models of transformers as targets: which kinds, and what was made of their modules."""

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from tiny import KINDS, MIXED, PROMPTS, tiny_draft, tiny_model, tiny_tokenizer
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaRMSNorm

import dspark_kernels as dk
from dspark_kernels.integrations.decoder import SpeculativeDecoder
from dspark_kernels.integrations.kinds import FUSED_TYPES, MODEL_TYPES, experts_of
from dspark_kernels.integrations.loading import load_draft, load_model
from dspark_kernels.integrations.transformers import ATTENTION, TransformersTarget


def theirs(model, count):
    """What `generate` of transformers continues the prompts with."""
    out = (
        model.generate(torch.tensor([p]), max_new_tokens=count, do_sample=False) for p in PROMPTS
    )
    return [row[0, len(prompt) :].tolist() for prompt, row in zip(PROMPTS, out, strict=True)]


def ours(model, count):
    """What we continue them with, and whether the layers ran fused."""
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    out = decoder.generate(PROMPTS, max_new_tokens=count, num_nodes=20)
    return out.tokens, decoder.target.fused is not None


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_kind_of_model(model_type):
    model = tiny_model(model_type=model_type, **KINDS[model_type])
    assert ours(model, 40) == (theirs(model, 40), model_type in FUSED_TYPES)


@torch.no_grad()
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_are_products_of_the_lm_head_scaled_or_capped(model_type):
    model, ids = tiny_model(model_type=model_type, **KINDS[model_type]), torch.arange(10)[None]
    target, hidden = TransformersTarget(model), model.get_decoder()(ids).last_hidden_state
    products = torch.nn.functional.linear(hidden, target.lm_head, target.lm_head_bias)
    logits = products * target.logit_scale
    if target.logit_cap is not None:
        logits = target.logit_cap * torch.tanh(logits / target.logit_cap)
    torch.testing.assert_close(model(ids).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "cohere", "granite", "gemma2"])
@pytest.mark.parametrize("options", [{}, {"top_k": 5}])
def test_samples_are_of_the_models_own_logits(model_type, options):
    model, draws = tiny_model(model_type=model_type, **KINDS[model_type]), 40
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    out = decoder.generate(
        PROMPTS[:1] * draws, max_new_tokens=1, temperature=0.9, seed=range(draws), **options
    )
    options = {name: torch.full((draws,), k, dtype=torch.int32) for name, k in options.items()}
    logits = model(torch.tensor(PROMPTS[:1])).logits[:, -1].expand(draws, -1)
    expected = dk.sample_logits(
        logits, temperature=torch.full((draws,), 0.9), seed=torch.arange(draws),
        position=torch.full((draws,), len(PROMPTS[0])), **options,
    )  # fmt: skip
    assert [token for (token,) in out.tokens] == expected.tolist()
    assert len(set(expected.tolist())) > 2


@pytest.mark.cuda
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_kind_can_be_captured(model_type, device):
    model = tiny_model(model_type=model_type, **KINDS[model_type]).to(device)
    if experts_of(model):
        model.set_experts_implementation("batched_mm")  # grouped_mm asks a GPU what it is
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    options = {"max_new_tokens": 16, "temperature": 0.5}
    expected = decoder.generate(PROMPTS[:2], speculative=False, **options).tokens
    assert decoder.generate(PROMPTS[:2], num_nodes=8, **options).tokens == expected


def test_values_wider_than_keys():
    model = tiny_model(model_type="deepseek_v3", **(KINDS["deepseek_v3"] | {"v_head_dim": 16}))
    assert ours(model, 20)[0] == theirs(model, 20)


@pytest.mark.parametrize("field", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_what_a_config_holds_for_other_kinds_means_nothing(field):
    target = TransformersTarget(tiny_model(**{field: 0.1}))
    assert (target.logit_scale, target.logit_cap) == (1.0, None)


def test_a_window_that_is_not_said_is_refused():
    options = MIXED | {"use_sliding_window": False}
    decoder = SpeculativeDecoder(tiny_model(model_type="smollm3", **options), None, None)
    with pytest.raises(ValueError, match="window of its sliding attention, got none in layer 0"):
        decoder.generate(PROMPTS, max_new_tokens=2)


def test_an_unsupported_architecture_is_refused():
    model = tiny_model()
    model.config.model_type = "gpt2"
    with pytest.raises(ValueError, match=r"model_type must be one of llama.*, got 'gpt2'"):
        SpeculativeDecoder(model, None, None)


def test_a_model_without_an_lm_head_is_refused():
    with pytest.raises(ValueError, match="model must have an LM head, got a LlamaModel"):
        SpeculativeDecoder(tiny_model().model, None, None)


@pytest.mark.parametrize("change", ["adapter", "hook", "forward", "dtype"])
def test_a_model_that_was_changed_is_refused(change):
    model = tiny_model()
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    model(torch.tensor([[1, 2]]), output_hidden_states=True)  # leaves hooks of transformers' own
    decoder.generate(PROMPTS, max_new_tokens=4, num_nodes=4)
    attention = model.model.layers[0].self_attn
    if change == "adapter":
        attention.q_proj = torch.nn.Sequential(attention.q_proj)
    elif change == "hook":
        attention.register_forward_hook(lambda *_: None)
    elif change == "forward":
        attention.forward = lambda *_, **__: None
    else:
        model.bfloat16()
    with pytest.raises(ValueError, match="model must stay as it was when its decoder was made"):
        decoder.generate(PROMPTS, max_new_tokens=4, num_nodes=4)


def test_hooks_are_called():
    """The layers run as they are, not fused."""
    model, calls = tiny_model(), []
    expected = SpeculativeDecoder(model, None, tiny_draft()).generate(PROMPTS, max_new_tokens=8)
    model.model.layers[1].register_forward_hook(lambda *_: calls.append(0))
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    assert decoder.target.fused is None
    assert decoder.generate(PROMPTS, max_new_tokens=8).tokens == expected.tokens
    assert calls


def test_a_model_on_two_devices_is_refused():
    model = tiny_model()
    model.model.layers[1].to("meta")
    with pytest.raises(ValueError, match="model must be on one device, got cpu, meta"):
        SpeculativeDecoder(model, None, None)


def test_a_model_in_float64_is_refused():
    with pytest.raises(ValueError, match=r"must be float32, bfloat16 or float16, got .*float64"):
        SpeculativeDecoder(tiny_model().double(), None, None)


ROPES = {
    "linear": {"factor": 2.0}, "yarn": {"factor": 2.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_positions_up_to_the_end_of_the_context(rope):
    options = {"rope_type": rope, "rope_theta": 10000.0, **ROPES[rope]}
    model = tiny_model(rope_parameters=options)
    decoder = SpeculativeDecoder(model, None, tiny_draft())
    prompt = torch.randint(64, (1, 200), generator=torch.Generator().manual_seed(0))
    expected = model.generate(prompt, max_new_tokens=56, do_sample=False)[0, 200:].tolist()
    assert decoder.generate(prompt, max_new_tokens=56, num_nodes=20).tokens[0] == expected


def test_angles_that_depend_on_the_longest_position_are_refused():
    options = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match="rope_type 'dynamic'"):
        SpeculativeDecoder(tiny_model(rope_parameters=options), None, None)


class Scaled:
    """Makes of a class of modules one whose outputs are larger."""

    def forward(self, x):
        return 1.5 * super().forward(x)


class ScaledMLP(Scaled, LlamaMLP): ...


class ScaledNorm(Scaled, LlamaRMSNorm): ...


class ScaledLinear(Scaled, torch.nn.Linear): ...


def override(module):
    """As accelerate's hooks do it."""
    before = module.forward
    module.forward = lambda *args, **options: 1.5 * before(*args, **options)


CHANGES = {
    "subclass of the MLP": lambda layer: setattr(layer.mlp, "__class__", ScaledMLP),
    "subclass of a norm": lambda layer: setattr(layer.input_layernorm, "__class__", ScaledNorm),
    "subclass of a linear layer": lambda layer: setattr(
        layer.self_attn.q_proj, "__class__", ScaledLinear
    ),
    "forward of the MLP": lambda layer: override(layer.mlp),
    "forward of a linear layer": lambda layer: override(layer.self_attn.q_proj),
    "hook": lambda layer: layer.mlp.register_forward_hook(lambda module, given, out: 1.5 * out),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_layers_run_as_they_are(change):
    model = tiny_model()
    before = theirs(model, 12)
    CHANGES[change](model.model.layers[0])
    expected = theirs(model, 12)
    assert expected != before
    assert ours(model, 12) == (expected, False)


@pytest.mark.parametrize("part", ["model.layers.0.mlp", "lm_head"])
def test_hooks_of_accelerate_that_only_mind_the_device(part):
    model = tiny_model()
    module = model.get_submodule(part)
    add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    assert ours(model, 8) == (theirs(model, 8), True)
    remove_hook_from_module(module)
    assert ours(model, 8) == (theirs(model, 8), True)


class Negated(LlamaForCausalLM):
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        return out.__class__(logits=-out.logits)


def test_a_model_that_does_not_draw_from_its_lm_head_is_refused():
    model = tiny_model()
    model.__class__ = Negated
    with pytest.raises(ValueError, match="got a Negated with a forward of its own"):
        SpeculativeDecoder(model, None, None)
    model.__class__ = LlamaForCausalLM
    SpeculativeDecoder(model, None, None)
    model.peft_config = {"default": SimpleNamespace(is_prompt_learning=True)}
    with pytest.raises(ValueError, match="got one with hooks or prompts"):
        SpeculativeDecoder(model, None, None)
    del model.peft_config
    model.register_forward_hook(lambda module, given, out: None)
    with pytest.raises(ValueError, match="got one with hooks or prompts"):
        SpeculativeDecoder(model, None, None)


@pytest.mark.parametrize("change", ["subclass", "forward", "hook"])
def test_a_changed_lm_head_is_refused(change):
    """Its weight alone is read."""
    model = tiny_model()
    head, got = model.lm_head, "one that was changed"
    if change == "subclass":
        head.__class__, got = ScaledLinear, "a ScaledLinear"
    elif change == "forward":
        override(head)
    else:
        head.register_forward_hook(lambda module, given, out: -out)
    with pytest.raises(ValueError, match=f"plain linear layer as its LM head, got {got}"):
        SpeculativeDecoder(model, None, None)


def test_an_lm_head_of_another_dtype_is_refused():
    model = tiny_model()
    model.lm_head.bfloat16()
    with pytest.raises(ValueError, match="LM head of the embedding's dtype torch"):
        SpeculativeDecoder(model, None, None)


@pytest.mark.parametrize("what", [None, 5, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(what):
    with pytest.raises(ValueError, match="causal language model of transformers, got a"):
        SpeculativeDecoder.from_pretrained(what, None)


def test_a_model_on_no_device_is_refused():
    with pytest.raises(ValueError, match="on the CPU or a CUDA device, got meta"):
        SpeculativeDecoder(tiny_model().to("meta"), None, None)


def test_layers_with_a_configuration_of_their_own():
    """As quantizers leave them, and whoever stacks copies of layers."""
    model = tiny_model(model_type="gemma")
    model.model.layers[1] = copy.deepcopy(model.model.layers[0])
    model.model.layers[1].self_attn.layer_idx = 1
    assert ours(model, 20) == (theirs(model, 20), False)


def test_layers_that_attend_by_themselves_are_an_error():
    model = tiny_model(model_type="gemma")
    decoder = SpeculativeDecoder(model, None, None)
    own = decoder.target._configs
    decoder.target._configs = []
    with pytest.raises(RuntimeError, match=r"in each of its 2 layers, .* did in layers \[\]"):
        decoder.generate(PROMPTS, max_new_tokens=4)
    decoder.target._configs = own
    assert decoder.generate(PROMPTS, max_new_tokens=4).tokens == theirs(model, 4)


def test_a_model_that_decodes_must_not_be_called_meanwhile():
    model = tiny_model(model_type="gemma")
    model.config._attn_implementation = ATTENTION
    with pytest.raises(RuntimeError, match="the model was called while a decoder runs its layers"):
        model(torch.tensor([[1, 2]]))


def test_a_window_that_the_layers_do_not_look_at():
    """`generate` drops what is outside the window of the configuration; the layers see it."""
    model = tiny_model(sliding_window=6)
    expected = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    assert ours(model, 12) == (expected, True)


def test_bidirectional_attention_is_refused():
    options = KINDS["gemma3_text"] | {"use_bidirectional_attention": True}
    with pytest.raises(ValueError, match="attend to earlier tokens alone, got bidirectional"):
        SpeculativeDecoder(tiny_model(model_type="gemma3_text", **options), None, None)


@pytest.fixture
def folder(tmp_path):
    tiny_model(vocab_size=300).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_draft(vocab_size=300).save_pretrained(tmp_path / "draft")
    return tmp_path


def change(path, old, new):
    """Replace bytes of a file which are in it."""
    before = path.read_bytes()
    assert old in before
    path.write_bytes(before.replace(old, new, 1))


def test_files_cut_short_are_one_sentence(folder):
    for load, place in ((load_model, folder), (load_draft, folder / "draft")):
        file = place / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"'.*' cannot be loaded: .*(incomplete|[Ii]nvalid)"):
            load(place)


def test_kinds_are_refused_before_weights_are_read(folder):
    change(folder / "config.json", b'"llama"', b'"bitnet"')
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model_type must be one of .*, got 'bitnet'"):
        load_model(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(b'"rank": 8', b'"rank": 16', "size mismatch"), (b"{", b"{,", "Expecting property name")],
)
def test_drafts_that_do_not_fit_are_one_sentence(folder, old, new, message):
    change(folder / "draft" / "config.json", old, new)
    with pytest.raises(
        ValueError, match=f"draft must be .* cannot be loaded: .*{message}"
    ) as error:
        load_draft(folder / "draft")
    assert "\n" not in str(error.value)
