"""Tiny captioners and language models of Hugging Face with random weights, and a tokenizer with a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

CHAT = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = ['the dog barks at a man who plays the guitar: {"objects": ["dog", "man"], "sounding": ["dog"]}'] * 8
#: Reasoners: architecture → the classes of its configuration and its model.
REASONERS = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
             "qwen3": ("Qwen3Config", "Qwen3ForCausalLM")}  # fmt: skip
#: A model without scaled_dot_product_attention, and one that caps its logits and attends in windows.
OTHERS = {"bloom": ("BloomConfig", "BloomForCausalLM"), "gemma2": ("Gemma2Config", "Gemma2ForCausalLM")}


def byte_tokenizer(*more_special: str, template: str | None = CHAT) -> Any:
    """Return a byte-level BPE tokenizer whose turns are those of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[*SPECIAL, *more_special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(more_special),
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = template
    return fast


def sentencepiece_tokenizer() -> Any:
    """Return a BPE tokenizer with "▁" for blanks and bytes for unknown characters, and the turns of LLaMA-2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += ["▁a", "▁d", "og", "▁dog", "in", "st"]
    merges = [("▁", "a"), ("▁", "d"), ("o", "g"), ("▁d", "og"), ("i", "n"), ("s", "t")]
    model = models.BPE({piece: k for k, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.chat_template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for m in messages %}{% set said = system + m['content'] if loop.first else m['content'] %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + said + ' [/INST]' }}"
        "{% else %}{{ ' ' + said + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    return fast


def widened(model: Any, seed: int = 1) -> Any:
    """Scale the weights up so that tokens differ. With its initial weights, a tiny model repeats one token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5 * 1.1)
    return model.eval()


def text_sizes(vocabulary: int) -> dict[str, Any]:
    """Return the sizes of a tiny language model."""
    return {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def save_reasoner(folder: Path, architecture: str, tokenizer: Any | None = None) -> Any:
    """Save a language model in a folder."""
    import transformers

    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    config, kind = (getattr(transformers, name) for name in (REASONERS | OTHERS)[architecture])
    torch.manual_seed(0)
    sizes = text_sizes(len(tokenizer))
    sizes |= {"n_layer": 2, "n_head": 4} if architecture == "bloom" else {}
    model = widened(kind(config(**sizes)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_vision_encoder_decoder(folder: Path, decoder: str = "gpt2") -> Any:
    """Save a ViT with GPT-2, TrOCR's decoder or BERT."""
    from transformers import (
        BertConfig,
        GPT2Config,
        TrOCRConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    tokenizer = byte_tokenizer(template=None)
    seen = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
    )
    of_gpt2 = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    of_trocr = {
        "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
        "cross_attention_hidden_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    of_bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    kinds = {"gpt2": (GPT2Config, of_gpt2), "trocr": (TrOCRConfig, of_trocr), "bert": (BertConfig, of_bert)}
    kind, sizes = kinds[decoder]
    said = kind(
        vocab_size=len(tokenizer), add_cross_attention=True, is_decoder=True, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False, **sizes,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, said, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = widened(VisionEncoderDecoderModel(config))
    for of in (model.config, model.generation_config):
        of.decoder_start_token_id, of.eos_token_id, of.pad_token_id = 1, 2, 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def save_pix2struct(folder: Path) -> Any:
    """Save a pix2struct with a grid of at most 24 squares."""
    from transformers import Pix2StructConfig, Pix2StructForConditionalGeneration, Pix2StructImageProcessor

    tokenizer = byte_tokenizer(template=None)
    said = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0,
    }  # fmt: skip
    seen = {
        "hidden_size": 32, "patch_embed_hidden_size": 48, "d_ff": 48, "d_kv": 8, "num_hidden_layers": 2,
        "num_attention_heads": 4, "seq_len": 24,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Pix2StructConfig(text_config=said, vision_config=seen, is_vqa=False)
    model = widened(Pix2StructForConditionalGeneration(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = Pix2StructImageProcessor(max_patches=24, patch_size={"height": 4, "width": 4})
    processor.save_pretrained(folder)
    return model


def save_llava(folder: Path) -> Any:
    """Save a LLaVA of CLIP and LLaMA."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = byte_tokenizer("<image>")
    seen = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=seen,
        text_config=LlamaConfig(**text_sizes(len(tokenizer))),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    torch.manual_seed(0)
    model = widened(LlavaForConditionalGeneration(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def photograph(height: int = 40, width: int = 60, seed: int = 0) -> NDArray[np.uint8]:
    """Return a smooth picture (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20)) for _ in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)
