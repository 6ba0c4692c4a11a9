"""timm's mixup and cutmix, which leave pixels of 8 bits whole numbers."""

from __future__ import annotations

from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch import Tensor, uint8

from lsa_kernels import pictures


class WholeMixup(Mixup):  # type: ignore[misc]  # timm has no types
    """timm's Mixup of whole batches: the same draws; bytes come out as by timm's collate."""

    def _mix_batch(self, x: Tensor) -> float:
        if x.dtype != uint8:
            return float(super()._mix_batch(x))
        share, cuts = self._params_per_batch()
        if share == 1.0:
            return 1.0
        if cuts:
            (top, bottom, left, right), share = cutmix_bbox_and_lam(
                x.shape, share, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam
            )
            box = x[:, :, top:bottom, left:right]
            box.copy_(box.flip(0))
        elif x.is_cpu and x.is_contiguous() and pictures.why_not_pictures() is None:
            pictures.mix(x.numpy(), share)
        else:
            x.copy_(x.float().mul_(share).add_(x.flip(0).float().mul_(1.0 - share)).round_())
        return float(share)
