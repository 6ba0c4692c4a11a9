"""Stems: how an image becomes tokens, by one convolution or by four."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.layers.format import Format, nchw_to
from torch import Tensor, nn

from lsa_study.config.networks import STEM_STRIDE, Stem


class ConvStem(PatchEmbed):  # type: ignore[misc]  # timm ships no types
    r"""Three convolutions at half the image's size, then one as wide as what is left of a patch.

    .. math:: tokens = W_4 *_{p/2} (f(W_3 * f(W_2 * f(W_1 *_2 x)))), \quad f = ReLU \circ BN

    W_1 is 7 x 7 with stride 2, the next two are 3 x 3; none of them has a bias. It is VOLO's stem.

    Args:
        img_size: side or sides of the image in pixels, multiples of the patch.
        patch_size: p, even.
        in_chans: channels of the image.
        embed_dim: channels of a token.
        hidden: channels of the first three convolutions.
        norm: whether f has its batch norm.
        act: whether f has its ReLU.
        options: further ones of timm's ``PatchEmbed``: ``norm_layer`` of the tokens, ``bias`` of
            the last convolution, ``flatten`` and ``output_fmt`` for maps instead of a list of
            tokens, ``strict_img_size``.

    Shape: (B, in_chans, H, W) to (B, tokens, embed_dim).

    Raises:
        ValueError: the patch is odd or none, or the image is not whole patches.
    """

    def __init__(
        self, *, img_size: int | tuple[int, int] | None = 224, patch_size: int = 16,
        in_chans: int = 3, embed_dim: int, hidden: int = 64, norm: bool = True, act: bool = True,
        **options: Any,
    ) -> None:  # fmt: skip
        if patch_size < 1 or patch_size % STEM_STRIDE:
            raise ValueError(
                f"patch_size={patch_size}: the first convolution halves the image; give an even "
                "one, from 2"
            )
        _check_whole(img_size, patch_size)
        super().__init__(img_size, patch_size // STEM_STRIDE, hidden, embed_dim, **options)
        layers: list[nn.Module] = []
        for inputs, kernel, stride in ((in_chans, 7, STEM_STRIDE), (hidden, 3, 1), (hidden, 3, 1)):
            layers.append(nn.Conv2d(inputs, hidden, kernel, stride, kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(hidden)] if norm else []
            layers += [nn.ReLU(inplace=True)] if act else []
        self.conv = nn.Sequential(*layers)
        # Of the image, not of what the last convolution sees.
        self.patch_size = (patch_size, patch_size)
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None
    ) -> None:
        """Take images of another size.

        Raises:
            ValueError: the patch would change, or the image is not whole patches.
        """
        if patch_size not in (None, *self.patch_size):
            raise ValueError(f"patch_size={patch_size}: cannot change once built; drop it")
        _check_whole(img_size, self.patch_size[0])
        super().set_input_size(img_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to tokens."""
        height, width = x.shape[2:]
        patch, size = self.patch_size[0], self.img_size
        torch._assert(
            (height, width) == size if size and self.strict_img_size else True,
            f"images of {height} x {width} pixels, built for {size}",
        )
        torch._assert(
            height % patch == 0 and width % patch == 0,
            f"images of {height} x {width} pixels are not whole patches of {patch} x {patch}",
        )
        maps = self.proj(self.conv(x))
        if self.flatten:
            maps = maps.flatten(2).transpose(1, 2)
        elif self.output_fmt != Format.NCHW:
            maps = nchw_to(maps, self.output_fmt)
        tokens: Tensor = self.norm(maps)
        return tokens


def _check_whole(img_size: int | tuple[int, int] | None, patch: int) -> None:
    sides = (img_size,) if isinstance(img_size, int | None) else tuple(img_size)
    if any(side % patch for side in sides if side is not None):
        raise ValueError(
            f"img_size={img_size} is not whole patches of {patch} x {patch}; give multiples of "
            f"{patch}"
        )


def embed_layer(stem: Stem) -> Callable[..., nn.Module]:
    """What a network builds its stem with, as timm's ``embed_layer``."""
    if stem.kind == "patchify":
        return PatchEmbed  # type: ignore[no-any-return]
    return partial(ConvStem, hidden=stem.hidden, norm=stem.norm == "bn", act=stem.act == "relu")
