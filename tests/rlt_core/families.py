# ruff: noqa: E501
"""Tiny random models with the shape of real families, and templates with their templates' logic."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SIZE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2}


def turns(start: str, end: str, header: str = "", roles: str = "m['role']") -> str:
    """A template of the kind that writes every turn alike."""
    return (
        header + "{% for m in messages %}"
        f"{{{{ '{start}'.replace('ROLE', {roles}) + m['content'] | trim + '{end}' }}}}"
        "{% endfor %}{% if add_generation_prompt %}"
        f"{{{{ '{start}'.replace('ROLE', 'ASSISTANT').rstrip(' ') }}}}{{% endif %}}"
    )


CHATML = turns("<|im_start|>ROLE\n", "<|im_end|>\n").replace("ASSISTANT", "assistant")
LLAMA3 = turns("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", "{{ bos_token }}")
LLAMA3 = LLAMA3.replace("ASSISTANT", "assistant")
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string }}"
    "{{ '\n\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}"
) + LLAMA3.removeprefix("{{ bos_token }}")
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
) + turns(
    "<start_of_turn>ROLE\n", "<end_of_turn>\n", roles="m['role'].replace('assistant', 'model')"
).replace("ASSISTANT", "model")
GEMMA3 = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'].replace('assistant', 'model') + '\n' }}"
    "{{ (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = turns("<|ROLE|>\n", "<|end|>\n").replace("ASSISTANT", "assistant")
PHI4_MINI = (
    turns("<|ROLE|>", "<|end|>")
    .replace("ASSISTANT", "assistant")
    .replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
)
MISTRAL = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (first if loop.last else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'system' %}{{ m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
QWEN3_THINKING = QWEN3.replace(
    "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
)
GPT_OSS = (
    "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + m.content + '\n\n<|end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
COHERE = (
    turns(
        "<|START_OF_TURN_TOKEN|><|ROLE_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "{{ bos_token }}",
        "m['role'].upper().replace('ASSISTANT', 'CHATBOT')",
    )
    .replace("'ROLE', 'ASSISTANT'", "'ROLE', 'CHATBOT'")
)  # fmt: skip
GRANITE = (
    "{% if messages[0].role != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>Today is ' + "
    "strftime_now('%B %d, %Y') + '.<|end_of_text|>\n' }}{% endif %}"
) + turns("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n").replace(
    "ASSISTANT", "assistant"
)
NEMOTRON = turns("<extra_id_1>ROLE\n", "\n", roles="m['role'].title()")
NEMOTRON = NEMOTRON.replace("ASSISTANT", "Assistant")
GLM = turns("<|ROLE|>\n", "").replace("ASSISTANT", "assistant")


@dataclass(frozen=True)
class Family:
    """A family: its config class and what is particular to it."""

    name: str
    config: Callable[..., Any]
    template: str
    end: str
    """Token that ends a turn."""
    changes: dict[str, Any] = field(default_factory=dict)
    size: dict[str, Any] = field(default_factory=lambda: SIZE)
    unnamed: tuple[str, ...] = ()
    """Progress tokens that are special in added_tokens_decoder only."""
    eos: tuple[str, ...] = ("<eos>",)
    """Of the generation config."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the generation config, too."""
    format: str = "rlt"
    system: bool = True
    """The template has system turns."""
    padding: int = 0
    """Rows of embedding and head beyond the tokenizer."""


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024, "initializer_range": 0.3}
IM = ("<|im_start|>", "<|im_end|>")
EOT = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURN = ("<start_of_turn>", "<end_of_turn>")
FAMILIES = [
    Family("llama-3.1", t.LlamaConfig, LLAMA3, "<|eot_id|>", unnamed=EOT, eos=("<eos>", "<|eot_id|>")),
    Family("llama-3.2", t.LlamaConfig, DATED, "<|eot_id|>", {"tie_word_embeddings": True}, unnamed=EOT),
    Family(
        "llama-2-chat", t.LlamaConfig, LLAMA2, "<eos>",
        settings={"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    ),
    Family("vicuna", t.LlamaConfig, VICUNA, "<eos>", settings={"temperature": 0.9, "top_p": 0.6}),
    Family("r1-distill", t.Qwen2Config, R1, "<eos>", unnamed=("<|User|>", "<|Assistant|>"), format="r1"),
    Family("smollm3", t.SmolLM3Config, "{{ strftime_now('%d %B %Y') }}" + CHATML, "<|im_end|>", unnamed=IM),
    Family("qwen2.5", t.Qwen2Config, CHATML, "<|im_end|>", unnamed=IM, padding=37),
    Family("qwen3", t.Qwen3Config, QWEN3, "<|im_end|>", unnamed=IM, format="r1"),
    Family("qwen3-thinking", t.Qwen3Config, QWEN3_THINKING, "<|im_end|>", unnamed=IM, format="r1"),
    Family(
        "qwen3-moe", t.Qwen3MoeConfig, QWEN3, "<|im_end|>",
        {**MOE, "moe_intermediate_size": 16, "output_router_logits": True}, unnamed=IM,
    ),
    Family("gemma", t.GemmaConfig, GEMMA, "<end_of_turn>", unnamed=TURN, system=False),
    Family(
        "gemma-2", t.Gemma2Config, GEMMA, "<end_of_turn>",
        {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
        unnamed=TURN, system=False,
    ),
    Family(
        "gemma-3", t.Gemma3TextConfig, GEMMA3, "<end_of_turn>",
        {"query_pre_attn_scalar": 16, "sliding_window": 16},
        unnamed=TURN, eos=("<eos>", "<end_of_turn>"), padding=0,
    ),
    Family(
        "phi-3", t.Phi3Config, PHI3, "<|end|>", {"pad_token_id": None},
        unnamed=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), eos=("<eos>", "<|end|>"),
    ),
    Family(
        "phi-4-mini", t.Phi3Config, PHI4_MINI, "<|end|>",
        {"pad_token_id": None, "tie_word_embeddings": True},
        unnamed=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    Family("mistral", t.MistralConfig, MISTRAL, "<eos>", {"sliding_window": 64}, unnamed=("[INST]", "[/INST]")),
    Family(
        "mixtral", t.MixtralConfig, MISTRAL, "<eos>",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
    ),
    Family("gpt-neox", t.GPTNeoXConfig, VICUNA, "<eos>", {"tie_word_embeddings": False}),
    Family("gpt-2", t.GPT2Config, VICUNA, "<eos>", size=GPT2),
    Family(
        "gpt-oss", t.GptOssConfig, GPT_OSS, "<|return|>",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        unnamed=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
        eos=("<eos>", "<|return|>", "<|call|>"),
    ),
    Family("olmo-2", t.Olmo2Config, VICUNA, "<eos>"),
    Family("olmoe", t.OlmoeConfig, VICUNA, "<eos>", MOE),
    Family(
        "cohere", t.CohereConfig, COHERE, "<|END_OF_TURN_TOKEN|>", {"logit_scale": 0.25},
        unnamed=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    Family(
        "granite", t.GraniteConfig, GRANITE, "<|end_of_text|>",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
        unnamed=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    Family(
        "falcon-h1", t.FalconH1Config, CHATML, "<|im_end|>",
        {"lm_head_multiplier": 0.3, "embedding_multiplier": 2.0, "mamba_d_ssm": 32, "mamba_n_heads": 4,
         "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16},
        unnamed=IM,
    ),
    Family("nemotron", t.NemotronConfig, NEMOTRON, "<extra_id_1>", unnamed=("<extra_id_1>",), eos=("<eos>", "<extra_id_1>")),
    Family("glm-4", t.Glm4Config, GLM, "<|user|>", unnamed=("<|user|>", "<|assistant|>", "<|system|>"), eos=("<eos>", "<|user|>")),
]  # fmt: skip


def tokenizer_of(family: Family) -> t.PreTrainedTokenizerFast:
    """Byte-level; control tokens without a name are special in added_tokens_decoder only."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    backend.add_tokens(
        [AddedToken(each, special=True, normalized=False) for each in family.unnamed]
    )
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = family.template
    return tokenizer


def model_of(family: Family, tokenizer: t.PreTrainedTokenizerFast, seed: int = 0) -> Any:
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    rows = len(tokenizer) + family.padding
    config = family.config(**{**family.size, "vocab_size": rows, **special, **family.changes})
    torch.manual_seed(seed)
    return t.AutoModelForCausalLM.from_config(config).eval()


def write_family(family: Family, folder: Path, seed: int = 0) -> Path:
    """A model folder as its makers would publish it."""
    tokenizer = tokenizer_of(family)
    model = model_of(family, tokenizer, seed)
    settings, model.generation_config = family.settings, t.GenerationConfig()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    eos = tokenizer.convert_tokens_to_ids(list(family.eos))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, **settings}))
    return folder
