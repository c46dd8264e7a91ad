"""Cutters around models of transformers: SAM 2.1, EdgeTAM and SAM-HQ.

Their prompt encoders and mask decoders are SAM's with additions and other names, so the decoding is
that of `sam/decoder.py`: many prompts together, padding attended to by none. transformers itself is
not imported here.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from clip2sam.errors import ConfigError
from clip2sam.kernels.device import (
    MASK_PIXELS_PER_BATCH,
    budget,
    to_device,
)
from clip2sam.sam.decoder import Parts, in_order, upscale_twice
from clip2sam.sam.hiera import encode_stages
from clip2sam.sam.prompted import PromptedCutter
from clip2sam.sam.prompts import embed_points, embed_sparse
from clip2sam.types import Embeddings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels, 0 to 1, of ImageNet: what these models were trained with."""


class TransformersCutter(PromptedCutter):
    """What these models have in common.

    Args:
        model: on its device; the vision encoder may be in bfloat16 or float16, the rest is in fp32.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._transformer = _named_as_sam(model.mask_decoder.transformer)
        self._prompts = _prompts_named_as_sam(model.prompt_encoder)

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def dtype(self) -> torch.dtype:
        return next(self._model.vision_encoder.parameters()).dtype

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the image encoder takes (1024 for the published
        models)."""
        return int(self._model.prompt_encoder.input_image_size)

    def preprocess(
        self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float[Tensor, "images 3 side side"]:
        """Resized images as normalised pixels on the device, padded with 0 at the right and the
        bottom where the frame is not filled."""
        mean, std = (torch.tensor(x, device=self.device)[:, None, None] for x in (MEAN, STD))
        side = self.input_side
        pixels = []
        for frame in frames:
            one = (to_device(frame, self.device).permute(2, 0, 1) / 255 - mean) / std
            pixels.append(F.pad(one, (0, side - one.shape[2], 0, side - one.shape[1])))
        return torch.stack(pixels)

    def _embed(
        self,
        coords: Float[Tensor, "prompts points 2"],
        labels: Int[Tensor, "prompts points"],
        boxes: Float[Tensor, "prompts 4"] | None,
    ) -> tuple[Float[Tensor, "prompts tokens channels"], Bool[Tensor, "prompts tokens"]]:
        return embed_sparse(self._prompts, coords, labels, boxes)

    def _embed_masks(
        self, mask_inputs: Float[Tensor, "prompts low low"]
    ) -> Float[Tensor, "prompts channels rows cols"]:
        return self._model.prompt_encoder.mask_embed(mask_inputs[:, None])

    def _around(self) -> tuple[Float[Tensor, "channels rows cols"], Float[Tensor, "channels"]]:
        model = self._model
        positions = model.get_image_wide_positional_embeddings()[0]
        return positions, model.prompt_encoder.no_mask_embed.weight[0]


class SAM2(TransformersCutter):
    """SAM 2.1 and EdgeTAM: transformers' `Sam2Model` and `EdgeTamModel`.

    Images are stretched to a square. The encoder gives three levels; the finer two are added while
    the decoder upscales.
    """

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The whole square: images are stretched."""
        return self.input_side, self.input_side

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        taken = set(model.vision_encoder.neck.fpn_top_down_levels)
        if taken != {2, 3} or model.vision_encoder.num_feature_levels != 3:
            raise ConfigError(
                "sam must merge the levels 2 and 3 and give three, as SAM 2's models do, but this "
                f"{type(model).__name__} merges {sorted(taken)}; give one of the published form"
            )

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "images 3 side side"]) -> Embeddings:
        """Three levels, (images, channels, rows, cols): the coarsest first, then the finest and
        the one between. What transformers' `get_image_embeddings` gives, up to rounding."""
        model = self._model
        neck, backbone = model.vision_encoder.neck, model.vision_encoder.backbone
        stages = self._stages(backbone, pixels.to(self.dtype))
        # The neck's convolutions are in the order from coarse to fine; each is one linear layer.
        coarsest, coarse, half, full = neck.convs
        above = _pointwise(coarsest, stages[3]).float()
        merged = _pointwise(coarse, stages[2]).float() + F.interpolate(above, scale_factor=2.0)
        merged = merged + model.no_memory_embedding.float().view(1, -1, 1, 1)
        decoder = model.mask_decoder
        return (
            merged,
            _pointwise_twice(full, decoder.conv_s0, stages[0]),
            _pointwise_twice(half, decoder.conv_s1, stages[1]),
        )

    @staticmethod
    def _stages(backbone: Any, pixels: Float[Tensor, "images 3 side side"]) -> Sequence[Tensor]:
        """The backbone's four stages, (images, rows, cols, channels), the finest first."""
        if hasattr(backbone, "stage_ends"):
            return encode_stages(backbone, pixels)
        # EdgeTAM's is a network of timm, with the channels first.
        return [x.permute(0, 2, 3, 1) for x in backbone(pixels).last_hidden_state]

    def _embed(
        self,
        coords: Float[Tensor, "prompts points 2"],
        labels: Int[Tensor, "prompts points"],
        boxes: Float[Tensor, "prompts 4"] | None,
    ) -> tuple[Float[Tensor, "prompts tokens channels"], Bool[Tensor, "prompts tokens"]]:
        # Unlike SAM, SAM 2 ends with "not a point" also when there is a box.
        end = torch.zeros_like(coords[:, :0])
        tokens, attended = super()._embed(coords, labels, boxes)
        if boxes is not None:
            last = embed_points(self._prompts, end, labels[:, :0])
            tokens = torch.cat([tokens, last], dim=1)
            attended = F.pad(attended, (0, 1), value=True)
        return tokens, attended

    def _decoder(self, levels: Sequence[Tensor]) -> Parts:
        decoder = self._model.mask_decoder
        full, half = (_by_places(level, times) for level, times in zip(levels, (4, 2), strict=True))

        def finish(
            tokens: Tensor, keys: Tensor, size: tuple[int, int], index: Tensor
        ) -> tuple[Tensor, Tensor]:
            hyper = _hyper(decoder, tokens[:, 2:])
            iou = decoder.iou_prediction_head(tokens[:, 1])[:, 1:]
            norm = decoder.upscale_layer_norm
            x = upscale_twice(decoder.upscale_conv1, keys) + _of(half, index)
            x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
            x = upscale_twice(decoder.upscale_conv2, decoder.activation(x)) + _of(full, index)
            x = decoder.activation(x).flatten(1, -2)
            return in_order(x @ hyper.transpose(1, 2), size), iou

        own = (decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens)
        return Parts(torch.cat([x.weight for x in own]), self._transformer, finish)

    @torch.no_grad()
    def upscale(
        self, logits: Float[Tensor, "masks low low"], size: tuple[int, int]
    ) -> Iterator[Bool[Tensor, "some height width"]]:
        """Masks of one image at its (height, width), as many at once as memory allows, in order:
        one bilinear resize, as in `Sam2Processor.post_process_masks`."""
        pixels = budget(MASK_PIXELS_PER_BATCH, self.device)
        for chunk in logits.split(max(pixels // (size[0] * size[1]), 1)) if len(logits) else ():
            masks = F.interpolate(chunk[None], size, mode="bilinear", align_corners=False)[0]
            yield masks > self.mask_threshold


class SAMHQ(TransformersCutter):
    """SAM-HQ: transformers' `SamHQModel`.

    A candidate is the sum of one of SAM's and of the high-quality mask, in SAM's order. The decoder
    of transformers 5 upscales the image as it was ahead of the two-way transformer, with rows and
    columns exchanged; here it is the two-way transformer's output, as published.

    Source: Ke et al., 2023, https://arxiv.org/abs/2306.01567; https://github.com/SysCV/sam-hq,
    `segment_anything/modeling/mask_decoder_hq.py`.
    """

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "images 3 side side"]) -> Embeddings:
        """Two levels: SAM's, (images, channels, rows, cols), and the features for the high-quality
        mask at 4 times its resolution, made of the first global block's tokens too."""
        decoder = self._model.mask_decoder
        made = self._model.vision_encoder(pixels.to(self.dtype))
        images = made.last_hidden_state.float()
        early = made.intermediate_embeddings[0].float().permute(0, 3, 1, 2)
        activation = decoder.activation
        fine = activation(decoder.encoder_norm(decoder.encoder_conv1(images)))
        vit = activation(decoder.compress_vit_norm(decoder.compress_vit_conv1(early)))
        return images, decoder.encoder_conv2(fine) + decoder.compress_vit_conv2(vit)

    def _decoder(self, levels: Sequence[Tensor]) -> Parts:
        decoder, (features,) = self._model.mask_decoder, levels

        def finish(
            tokens: Tensor, keys: Tensor, size: tuple[int, int], index: Tensor
        ) -> tuple[Tensor, Tensor]:
            hyper, own = _hyper(decoder, tokens[:, 1:]), decoder.hq_mask_mlp(tokens[:, 5])
            iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
            norm = decoder.upscale_layer_norm
            x = upscale_twice(decoder.upscale_conv1, keys)
            x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
            x = decoder.activation(upscale_twice(decoder.upscale_conv2, decoder.activation(x)))
            x = x.flatten(1, -2)
            fine = decoder.mask_conv1(in_order(x, size))
            fine = decoder.mask_conv2(decoder.activation(decoder.mask_norm(fine)))
            added = torch.einsum("pc,pcij->pij", own, fine + _of(features, index))
            return in_order(x @ hyper.transpose(1, 2), size) + added[:, None], iou

        own = (decoder.iou_token, decoder.mask_tokens, decoder.hq_token)
        return Parts(torch.cat([x.weight for x in own]), self._transformer, finish)


CUTTERS: dict[str, type[TransformersCutter]] = {"sam2": SAM2, "edgetam": SAM2, "sam_hq": SAMHQ}
"""The cutters by transformers' `config.model_type`."""


def _hyper(
    decoder: Any, mask_tokens: Float[Tensor, "prompts tokens channels"]
) -> Float[Tensor, "prompts 3 low_channels"]:
    """The vector of each candidate; token 0 is the single-mask output."""
    mlps = decoder.output_hypernetworks_mlps
    return torch.stack([mlps[i](mask_tokens[:, i]) for i in range(1, 4)], dim=1)


def _of(level: Float[Tensor, "images *places"], index: Int[Tensor, "prompts"]) -> Tensor:
    """What belongs to each prompt's image; a single image is broadcast, without a copy."""
    return level if len(level) == 1 else level[index]


def _by_places(level: Float[Tensor, "images channels rows cols"], times: int) -> Tensor:
    """A level at 2 or 4 times the embedding's resolution in the order in which places are
    upscaled: (images, places, 2, 2, channels) or (images, places, 2, 2, 2, 2, channels)."""
    halves = (2,) * (times // 2)
    x = level.unflatten(3, (-1, *halves)).unflatten(2, (-1, *halves))
    if times == 2:
        return x.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
    return x.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(1, 2)


def _pointwise(
    convolution: Any, x: Float[Tensor, "images rows cols channels"]
) -> Float[Tensor, "images out rows cols"]:
    """A convolution of kernel 1 on channels that come last."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias).permute(0, 3, 1, 2)


def _pointwise_twice(
    first: Any, second: Any, x: Float[Tensor, "images rows cols channels"]
) -> Float[Tensor, "images out rows cols"]:
    """Two convolutions of kernel 1 as one, in fp32: nothing is between them, and the channels
    between are many more than before and after."""
    weight = second.weight.flatten(1) @ first.weight.flatten(1).float()
    bias = second.weight.flatten(1) @ first.bias.float() + second.bias
    return F.linear(x.float(), weight, bias).permute(0, 3, 1, 2)


def _named_as_sam(transformer: Any) -> SimpleNamespace:
    """transformers' two-way transformer under segment-anything's names."""

    def attention(own: Any) -> SimpleNamespace:
        out = own.o_proj if hasattr(own, "o_proj") else own.out_proj
        return SimpleNamespace(
            q_proj=own.q_proj,
            k_proj=own.k_proj,
            v_proj=own.v_proj,
            out_proj=out,
            num_heads=own.num_attention_heads,
        )

    def layer(own: Any) -> SimpleNamespace:
        return SimpleNamespace(
            self_attn=attention(own.self_attn),
            cross_attn_token_to_image=attention(own.cross_attn_token_to_image),
            cross_attn_image_to_token=attention(own.cross_attn_image_to_token),
            norm1=own.layer_norm1,
            norm2=own.layer_norm2,
            norm3=own.layer_norm3,
            norm4=own.layer_norm4,
            mlp=own.mlp,
            skip_first_layer_pe=own.skip_first_layer_pe,
        )

    return SimpleNamespace(
        layers=[layer(own) for own in transformer.layers],
        final_attn_token_to_image=attention(transformer.final_attn_token_to_image),
        norm_final_attn=transformer.layer_norm_final_attn,
    )


def _prompts_named_as_sam(encoder: Any) -> SimpleNamespace:
    """transformers' prompt encoder under segment-anything's names, as far as points and boxes need
    it."""

    embeddings = encoder.point_embed  # SAM 2 has one table, SAM-HQ a list of four
    if isinstance(embeddings, nn.Embedding):
        embeddings = [_Row(embeddings, i) for i in range(4)]
    side = int(encoder.input_image_size)
    return SimpleNamespace(
        pe_layer=_Positions(encoder.shared_embedding),
        input_image_size=(side, side),
        point_embeddings=embeddings,
        not_a_point_embed=encoder.not_a_point_embed,
    )


class _Positions:
    """transformers' positional encoding under segment-anything's name; it follows its device."""

    def __init__(self, embedding: Any) -> None:
        self._embedding = embedding

    @property
    def positional_encoding_gaussian_matrix(self) -> Tensor:
        matrix: Tensor = self._embedding.positional_embedding
        return matrix


class _Row:
    """One row of an embedding as an embedding of its own; it follows the table to its device."""

    def __init__(self, table: nn.Embedding, row: int) -> None:
        self._table, self._row = table, row

    @property
    def weight(self) -> Tensor:
        return self._table.weight[self._row][None]
