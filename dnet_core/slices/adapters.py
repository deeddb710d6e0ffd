"""Which architectures may be split into windows, and why the others may not.

`window.py` needs no code per architecture, but it is right only where what a window computes follows from the
output of the layer before it and from its own caches. Some architectures break that in ways that no error
would show (a later layer reads the token ids again, say). So an architecture is split only when a test has
compared its windows with the whole model, bit for bit; names are those of mlx-lm's modules, not
`model_type`s, of which many share a module.

A single window over all layers is mlx-lm itself and is never refused here.
"""

from __future__ import annotations

import mlx.nn as nn

from dnet_core.errors import UnsupportedModel

_VERIFIED = """
Klear afmoe apertus baichuan_m1 bailing_hybrid bailing_moe bailing_moe_linear bailing_moe_v3 cohere cohere2
deepseek deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe
falcon_h1 gear gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa
gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid helium hunyuan hunyuan_v1_dense
internlm2 internlm3 jamba kimi_k25 kimi_linear kimi_vl laguna lfm2 lfm2-vl lfm2_moe lille-130m llama llama4
llama4_text longcat_flash longcat_flash_ngram mamba mamba2 mellum mimo mimo_v2_flash minicpm minicpm3 minimax
minimax_m3_vl ministral3 mistral3 mistral4 mixtral muse_glimmer nanbeige nanochat nemotron nemotron-nas
nemotron_h olmo2 olmo3 olmo_hybrid olmoe openelm phi phi3 phimoe phixtral pixtral plamo plamo2 plamo3 qwen
qwen2 qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe recurrent_gemma
rwkv7 seed_oss smollm3 spark2_5 stablelm starcoder2 step3p5 telechat3 youtu_llm
"""
VERIFIED = frozenset(_VERIFIED.split())
"""Compared in `tests/golden/test_windows_all.py`: uneven windows, prompt chunks, single tokens."""

REFUSED = {
    "afm7": "its last layers attend to the keys and values of an earlier layer",
    "dbrx": "it picks its experts in Python, which reads the weights of every layer it passes",
    "deepseek_v41": "its layers share keys, values and an index through one table",
    "gemma3n": "its last layers share the KV cache of earlier ones, and every layer reads the token ids",
    "iquestloopcoder": "its layers run twice per token, the second time on the first loop's keys and values",
    "kimi_k3": "its layers read the outputs of many earlier layers",
    "muse_spark": "each layer applies the norm of the layer after it",
    "talkie": "every layer adds the embedding of the token",
}
"""Known to need more than the output of the layer before; `_refusal` adds what depends on the config."""


def check_splittable(model: nn.Module, name: str) -> None:
    """Raise UnsupportedModel unless windows of `model` are known to compute what the whole model does."""
    for architecture in sorted(architectures(model)):
        reason = _refusal(model, architecture)
        if reason is not None:
            raise UnsupportedModel(
                name, f"{architecture} cannot be split over devices: {reason}; run it on one"
            )
        if architecture not in VERIFIED:
            raise UnsupportedModel(
                name,
                f"no test has compared a split {architecture} with the whole model, so its answers might be"
                " wrong; run it on one device",
            )


def hands_on_hidden_only(model: nn.Module) -> bool:
    """Whether a layer takes only the first of the things the layer before it returned."""
    names = architectures(model)
    return "gemma4_text" in names or ("hunyuan" in names and not model.args.use_cla)


def _refusal(model: nn.Module, architecture: str) -> str | None:
    """Why this architecture, configured as `model` is, cannot be split."""
    if architecture == "nanbeige" and model.args.effective_num_loops > 1:
        return "its layers run several times per token"
    if architecture == "gemma4_text" and model.layers[0].config.num_kv_shared_layers:
        return "its last layers share the keys and values of earlier ones"
    if architecture == "gemma4_text" and model.layers[0].config.hidden_size_per_layer_input:
        return "every layer reads the token ids"
    return REFUSED.get(architecture)


def architectures(model: nn.Module) -> set[str]:
    """The mlx-lm modules whose code runs around and in the layers: a wrapper's and its text model's."""
    return {type(part).__module__.rpartition(".")[2] for part in (model, *model.layers)}
