"""Hugging Face transformers: encoders and decoders of three or four layers."""

from __future__ import annotations

from torch import Tensor, nn

from entry import Entry, Input, builder, entries, tokens

_LENGTH = 16
_VOCABULARY = 500


class Plain(nn.Module):
    """Calls a part of a model with tensors in the order of `names`, and gives tensors."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """What the model gives, without the fields that are not there."""
        return self.model(**dict(zip(self.names, values, strict=True)), return_dict=False)


def transformers_model(
    kind: str, config: str, names: tuple[str, ...], attention: str, part: str, **options: object
) -> nn.Module:
    """A model, or its `part`, with random weights and a small configuration."""
    import transformers

    settings = getattr(transformers, config)(**options)
    settings._attn_implementation = attention
    settings.use_cache = False
    model = getattr(transformers, kind)(settings)
    if part:
        model = model.get_submodule(part)
    return Plain(model, names)


_IDS = tokens(_LENGTH, _VOCABULARY)
_MASK = Input("attention_mask", (-1, _LENGTH), "INT64", (0, 1))
_SAMPLES = Input("input_values", (-1, 4000))

_BERT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2}
_DECODER = {"vocab_size": _VOCABULARY, "hidden_size": 64}
_PIXELS = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_AUDIO = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (64, 64, 64, 64, 64, 64, 64),
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
_BART = {
    "vocab_size": _VOCABULARY,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
}
_T5 = {
    "vocab_size": _VOCABULARY,
    "d_model": 64,
    "num_layers": 4,
    "num_heads": 4,
    "d_ff": 128,
    "d_kv": 16,
}


def _hf(
    model: str,
    kind: str,
    config: str,
    inputs: list[Input],
    *,
    attention: str = "sdpa",
    part: str = "",
    keywords: tuple[str, ...] | None = None,
    **options: object,
) -> list[Entry]:
    names = keywords or tuple(value.name for value in inputs)
    build = builder(transformers_model, kind, config, names, attention, part, **options)
    return entries("transformers", f"hf_{model}", build, inputs, "tr")


def _encoders() -> list[Entry]:
    pair = [_IDS, _MASK]
    distil = {"vocab_size": _VOCABULARY, "dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 128}
    found = []
    for attention in ("eager", "sdpa"):
        found += _hf(
            f"bert_{attention}",
            "BertForSequenceClassification",
            "BertConfig",
            pair,
            attention=attention,
            **_BERT,
        )
    found += _hf("bert_mlm", "BertForMaskedLM", "BertConfig", [_IDS], **_BERT)
    found += _hf(
        "distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", pair, **distil
    )
    found += _hf("roberta", "RobertaForSequenceClassification", "RobertaConfig", pair, **_BERT)
    found += _hf("albert", "AlbertModel", "AlbertConfig", pair, embedding_size=32, **_BERT)
    found += _hf("electra", "ElectraForTokenClassification", "ElectraConfig", pair, **_BERT)
    mobile = {**_BERT, "hidden_size": 128, "intra_bottleneck_size": 64, "embedding_size": 64}
    found += _hf("mobilebert", "MobileBertModel", "MobileBertConfig", pair, **mobile)
    found += _hf(
        "mpnet", "MPNetForSequenceClassification", "MPNetConfig", pair, attention="eager", **_BERT
    )
    found += _hf("camembert", "CamembertForMaskedLM", "CamembertConfig", [_IDS], **_BERT)
    found += _hf(
        "squeezebert",
        "SqueezeBertModel",
        "SqueezeBertConfig",
        pair,
        attention="eager",
        embedding_size=64,
        **_BERT,
    )
    found += _hf(
        "deberta_v2", "DebertaV2Model", "DebertaV2Config", pair, attention="eager", **_BERT
    )
    return found + _hf("t5_encoder", "T5EncoderModel", "T5Config", [_IDS], **_T5)


def _decoders() -> list[Entry]:
    ids = [_IDS]
    gpt2 = {"vocab_size": _VOCABULARY, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64}
    neo = {
        **_DECODER,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "max_position_embeddings": 64,
    }
    opt = {
        **_DECODER,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 128,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 64,
    }
    found = []
    for attention in ("eager", "sdpa"):
        found += _hf(
            f"gpt2_{attention}", "GPT2LMHeadModel", "GPT2Config", ids, attention=attention, **gpt2
        )
    found += _hf("gpt_neo", "GPTNeoForCausalLM", "GPTNeoConfig", ids, attention="eager", **neo)
    found += _hf("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", ids, **_BERT)
    found += _hf("opt", "OPTForCausalLM", "OPTConfig", ids, **opt)
    found += _hf(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        ids,
        attention="eager",
        n_layer=4,
        n_head=4,
        **_DECODER,
    )
    found += _hf("llama", "LlamaForCausalLM", "LlamaConfig", ids, **_LLAMA)
    found += _hf("mistral", "MistralForCausalLM", "MistralConfig", ids, **_LLAMA)
    found += _hf("qwen2", "Qwen2ForCausalLM", "Qwen2Config", ids, **_LLAMA)
    found += _hf("gemma", "GemmaForCausalLM", "GemmaConfig", ids, head_dim=16, **_LLAMA)
    found += _hf("phi", "PhiForCausalLM", "PhiConfig", ids, **_BERT)
    return found


def _encoder_decoders() -> list[Entry]:
    pair = [_IDS, tokens(8, _VOCABULARY, "decoder_input_ids")]
    found = _hf("bart", "BartForConditionalGeneration", "BartConfig", pair, **_BART)
    return found + _hf("t5", "T5ForConditionalGeneration", "T5Config", pair, **_T5)


def _images() -> list[Entry]:
    pixels = [Input("pixel_values", (-1, 3, 64, 64))]
    found = _hf("vit", "ViTForImageClassification", "ViTConfig", pixels, **_PIXELS)
    found += _hf("deit", "DeiTForImageClassification", "DeiTConfig", pixels, **_PIXELS)
    found += _hf("dinov2", "Dinov2Model", "Dinov2Config", pixels, **_PIXELS)
    found += _hf("clip_vision", "CLIPVisionModel", "CLIPVisionConfig", pixels, **_PIXELS)
    found += _hf("siglip_vision", "SiglipVisionModel", "SiglipVisionConfig", pixels, **_PIXELS)
    found += _hf(
        "resnet",
        "ResNetForImageClassification",
        "ResNetConfig",
        pixels,
        attention="eager",
        depths=[1, 1, 1, 1],
    )
    found += _hf(
        "convnext",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        pixels,
        attention="eager",
        depths=[1, 1, 2, 1],
        hidden_sizes=[32, 64, 96, 128],
    )
    found += _hf(
        "swin",
        "SwinForImageClassification",
        "SwinConfig",
        pixels,
        image_size=64,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    )
    found += _hf(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pixels,
        depths=[1, 1, 1, 1],
    )
    return found + _hf(
        "mobilevit",
        "MobileViTForImageClassification",
        "MobileViTConfig",
        pixels,
        attention="eager",
        image_size=64,
    )


def _speech() -> list[Entry]:
    features = [Input("input_features", (-1, 40, 100))]
    whisper = {**_BART, "num_mel_bins": 40, "max_source_positions": 50, "pad_token_id": 0}
    whisper |= {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    found = _hf("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", [_SAMPLES], **_AUDIO)
    found += _hf("hubert", "HubertForCTC", "HubertConfig", [_SAMPLES], **_AUDIO)
    found += _hf(
        "whisper_encoder", "WhisperModel", "WhisperConfig", features, part="encoder", **whisper
    )
    text = [_IDS]
    return found + _hf(
        "clip_text", "CLIPTextModel", "CLIPTextConfig", text, eos_token_id=_VOCABULARY - 1, **_BERT
    )


def all_entries() -> list[Entry]:
    """The rows of transformers."""
    return _encoders() + _decoders() + _encoder_decoders() + _images() + _speech()
