"""Small seeded models in the real architectures, for tests that need no trained weights."""

from functools import partial

import open_clip
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)


def small_clip(*, layers=8, vision_layers=None, patch_size=16, size=128, seed=0) -> open_clip.CLIP:
    """A CLIP with a ViT (or, with `vision_layers` a tuple, a ResNet); its weights are large enough
    for different inputs to give different features."""
    torch.manual_seed(seed)
    vision = {
        "image_size": size,
        "layers": vision_layers or layers,
        "width": 16 if vision_layers else 64,
    }
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 2}
    model = open_clip.CLIP(
        32, {**vision, "patch_size": patch_size, "head_width": 32}, text, quick_gelu=True
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return model.eval()


def small_sam(seed=0) -> Sam:
    """segment-anything's modules at 128 pixels."""
    torch.manual_seed(seed)
    channels, side, patch = 32, 128, 16
    sam = Sam(
        ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=32,
            depth=2,
            num_heads=2,
            mlp_ratio=2,
            out_chans=channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(side // patch, side // patch),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=2, mlp_dim=64),
            iou_head_hidden_dim=32,
        ),
    )
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return sam.eval()
