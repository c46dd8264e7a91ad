"""Small seeded models of transformers' own classes with their processors: no weights, no network.

Imported by tests alone; transformers takes seconds.
"""

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertTokenizer,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    GroupViTConfig,
    GroupViTModel,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
    SwinConfig,
    ViTImageProcessor,
)

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}


def seeded(model, gain=1.5, seed=0):
    """Weights large enough for different inputs to give different outputs."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=gain / parameter[0].numel() ** 0.5)
    return model.eval()


def clip_tokenizer(context):
    """CLIP's with bytes as its only tokens; the end of a text has the highest id, as in CLIP."""
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=context)


def bert_tokenizer():
    """BERT's with letters as its only tokens; the four that end a phrase have BERT's own ids."""
    fixed = {100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-ßéкот猫"
    names = {"[PAD]": 0, **{name: i for i, name in fixed.items()}}
    for i, piece in enumerate([*letters, *(f"##{c}" for c in letters)], 1100):
        names[piece] = i
    used = set(names.values())
    names |= {f"[unused{i}]": i for i in range(max(used)) if i not in used}
    return BertTokenizer(vocab=names)


def text_settings(context):
    return {
        "vocab_size": 514,
        "num_hidden_layers": 2,
        "max_position_embeddings": context,
        "eos_token_id": 513,
        "bos_token_id": 512,
        "pad_token_id": 513,
        **SMALL,
    }


def grounding_dino(side=64, max_text_len=256):
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=side,
            window_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            out_indices=[2, 3, 4],
        ),
        text_config={
            "model_type": "bert",
            "vocab_size": 1300,
            "num_hidden_layers": 1,
            "max_position_embeddings": 256,
            **SMALL,
        },
        d_model=64,  # two channels for each of its 32 groups
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_n_points=2,
        decoder_n_points=2,
        num_queries=12,
        max_text_len=max_text_len,
    )
    images = GroundingDinoImageProcessor(size={"shortest_edge": side, "longest_edge": 2 * side})
    model = seeded(GroundingDinoForObjectDetection(config))
    return model, GroundingDinoProcessor(images, bert_tokenizer())


def owlv2(side=64):
    config = Owlv2Config(
        text_config=text_settings(16),
        vision_config={"image_size": side, "patch_size": 8, "num_hidden_layers": 2, **SMALL},
        projection_dim=32,
    )
    images = Owlv2ImageProcessor(size={"height": side, "width": side})
    model = seeded(Owlv2ForObjectDetection(config))
    return model, Owlv2Processor(images, clip_tokenizer(16))


def clipseg(side=64):
    config = CLIPSegConfig(
        text_config=text_settings(77),
        vision_config={"image_size": 32, "patch_size": 8, "num_hidden_layers": 3, **SMALL},
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    images = ViTImageProcessor(size={"height": side, "width": side})
    model = seeded(CLIPSegForImageSegmentation(config))
    return model, CLIPSegProcessor(images, clip_tokenizer(77))


def groupvit(side=64):
    config = GroupViTConfig(
        text_config=text_settings(77),
        vision_config={
            "image_size": side,
            "patch_size": 8,
            "depths": [1, 1, 1],
            "num_hidden_layers": 3,
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4],
            **SMALL,
        },
        projection_dim=32,
        projection_intermediate_dim=48,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return seeded(GroupViTModel(config)), CLIPProcessor(images, clip_tokenizer(77))


def sam3():
    part = {"hidden_size": 32, "num_attention_heads": 4}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "image_size": 112,
                "patch_size": 14,
                "num_hidden_layers": 2,
                "window_size": 4,
                "global_attn_indexes": [1],
                "pretrain_image_size": 56,
                **SMALL,
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            "model_type": "clip_text_model",
            "projection_dim": 32,
            **text_settings(32),
        },
        geometry_encoder_config={**part, "num_layers": 1, "intermediate_size": 32},
        detr_encoder_config={**part, "num_layers": 1, "intermediate_size": 32},
        detr_decoder_config={
            **part,
            "num_layers": 1,
            "intermediate_size": 32,
            "num_queries": 10,
        },
        mask_decoder_config={**part, "num_upsampling_stages": 2},
    )
    images = Sam3ImageProcessor(size={"height": 112, "width": 112})
    return seeded(Sam3Model(config)), Sam3Processor(images, clip_tokenizer(32))
