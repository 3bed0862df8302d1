"""Better maps from more forward passes: a mirrored one, or the ten crops of the CAM authors.

The ten crops are those of the released demo of Zhou et al., arXiv 1512.04150. Ours differs in that
maps are upsampled bilinearly by default, as everywhere in this project (theirs: bicubic with a
mirrored border), and are summed once (theirs: over three identical channels, 3 times our values).
As in theirs the sum is not divided by the number of crops that cover a pixel: the rim is darker.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from camtrain.errors import CamtrainValueError, check_choice
from camtrain.inference.network import Network, display_maps
from camtrain.maps import CAMOutput
from camtrain.model.camnet import CAMNet
from camtrain.preprocessing import Preprocessing

TTA = Literal["none", "flip", "tencrop"]

CROP_PCT = 0.875  # 224 of 256


def ten_crops(images: Tensor, crop_hw: tuple[int, int] = (224, 224)) -> Tensor:
    """The four corners and the centre, then the same five mirrored.

    Args:
        images: (..., C, H, W); 256 x 256 in the authors' demo.
        crop_hw: (H, W) of a crop, in pixels, at most the images' size.

    Returns:
        (10, ..., C, *crop_hw), in the authors' order: top left, bottom left, top right, bottom
        right, centre. Of 256 and 224 pixels the offsets (y, x) are (0, 0), (32, 0), (0, 32),
        (32, 32), (16, 16).

    Raises:
        CamtrainValueError: The crop does not fit into the images.

    Example:
        >>> ten_crops(torch.arange(3.0).reshape(1, 1, 3), crop_hw=(1, 2)).flatten(1).tolist()[::2]
        [[0.0, 1.0], [1.0, 2.0], [0.0, 1.0], [1.0, 0.0], [2.0, 1.0]]
    """
    height, width = crop_hw
    offsets = _crop_offsets((images.shape[-2], images.shape[-1]), crop_hw)
    crops = torch.stack([images[..., y : y + height, x : x + width] for y, x in offsets])
    return torch.cat((crops, crops.flip(-1)))


def merge_ten_crops(
    maps: Tensor, *, size: tuple[int, int] = (256, 256), crop_hw: tuple[int, int] = (224, 224)
) -> Tensor:
    """The class maps of ten crops as one map of the whole image.

    Each crop's map is upsampled to the crop, and its absolute value is added where the crop lies;
    crops 6 to 10 are mirrored back.

    Args:
        maps: (10, ..., h, w), signed, in the order of ``ten_crops``. Maps that have the size of the
            crop are summed as they are, so that you may upsample them in your own way before.
        size: (H, W) of the image, in pixels.
        crop_hw: (H, W) of a crop, in pixels.

    Returns:
        (..., *size), not negative.

    Raises:
        CamtrainValueError: ``maps`` does not hold ten crops, or they do not fit into ``size``.

    Example:
        >>> maps = torch.zeros(10, 1, 2)
        >>> maps[0, 0, 0], maps[5, 0, 0] = 1.0, -2.0  # of the left crop, and of it mirrored
        >>> merge_ten_crops(maps, size=(1, 3), crop_hw=(1, 2)).tolist()
        [[1.0, 2.0, 0.0]]
    """
    if maps.ndim < 3 or len(maps) != 10:
        raise CamtrainValueError(f"maps must be (10, ..., h, w), got {tuple(maps.shape)}.")
    offsets = _crop_offsets(size, crop_hw)
    if maps.shape[-2:] != crop_hw:
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        flat = F.interpolate(flat, size=crop_hw, mode="bilinear", align_corners=False)
        maps = flat.reshape(*maps.shape[:-2], *crop_hw)
    straight, mirrored = maps.abs().chunk(2)
    both = straight + mirrored.flip(-1)
    merged = maps.new_zeros(*maps.shape[1:-2], *size)
    for crop, (y, x) in zip(both, offsets, strict=True):
        merged[..., y : y + crop_hw[0], x : x + crop_hw[1]] += crop
    return merged


def merge_flip(maps: Tensor, mirrored_maps: Tensor) -> Tensor:
    """The mean of an image's maps (..., h, w) and those of the mirrored image, mirrored back.

    Example:
        >>> merge_flip(torch.tensor([[4.0, 0.0]]), torch.tensor([[2.0, 4.0]])).tolist()
        [[4.0, 1.0]]
    """
    return (maps + mirrored_maps.flip(-1)) / 2


def ten_crop_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing of images whose ten crops are as large as the network's input.

    If ``resize_mode`` is ``crop``, the picture is resized as before and a larger centre is cut out:
    256 x 256 pixels instead of 224 x 224, for example.

    Example:
        >>> ten_crop_preprocessing(Preprocessing((224, 224), resize_mode="crop", crop_pct=0.875))
        ... # doctest: +ELLIPSIS
        Preprocessing(size=(256, 256), ... resize_mode='crop', crop_pct=1.0, channel_order='rgb')
    """
    height, width = preprocessing.size
    return replace(
        preprocessing,
        size=(round(height / CROP_PCT), round(width / CROP_PCT)),
        crop_pct=min(1.0, preprocessing.crop_pct / CROP_PCT),
    )


def tta_maps(
    net: CAMNet | Network,
    images: Tensor,
    *,
    tta: TTA = "none",
    top: int | None = None,
    classes: Tensor | None = None,
) -> CAMOutput:
    """Display maps from several views of each image, in one forward pass of all views.

    The logits are averaged over the views, and the best classes are those with the largest mean.
    (The authors average the softmax scores of the ten crops instead.)

    Args:
        net: The network.
        images: (B, C, H, W). For ``tencrop`` they must be larger than the network's input, since
            each crop has 7/8 of each side: 256 x 256 for a network of 224 x 224.
        tta: ``none``: the image itself. ``flip``: the image and its mirror image, which takes twice
            the time. ``tencrop``: ten crops, merged as the authors do, which takes ten times.
        top: As in ``CAMNet.display_maps``.
        classes: As in ``CAMNet.display_maps``.

    Returns:
        logits (B, K), maps, classes (B, k). For ``none`` and ``flip`` the maps are (B, k, h, w) and
        signed; in a network with average pooling their mean over space still gives the logit. For
        ``tencrop`` they are (B, k, H, W) and not negative.

    Raises:
        CamtrainValueError: ``tta`` is unknown, or ``CAMNet.display_maps`` raises it.
        CamtrainTypeError: ``CAMNet.display_maps`` raises it.
    """
    check_choice("tta", tta, get_args(TTA))
    if tta == "none":
        return display_maps(net, images, top=top, classes=classes)
    size = (images.shape[2], images.shape[3])
    crop_hw = (max(1, round(CROP_PCT * size[0])), max(1, round(CROP_PCT * size[1])))
    is_flip = tta == "flip"
    views = torch.stack((images, images.flip(-1))) if is_flip else ten_crops(images, crop_hw)
    logits, maps, classes = _maps_of_views(net, views, top, classes)
    merged = merge_flip(*maps) if is_flip else merge_ten_crops(maps, size=size, crop_hw=crop_hw)
    return CAMOutput(logits, merged, classes)


def _maps_of_views(
    net: CAMNet | Network, views: Tensor, top: int | None, classes: Tensor | None
) -> CAMOutput:
    """Mean logits (B, K), maps (V, B, k, h, w) and classes (B, k) of views (V, B, C, H, W)."""
    count, batch = views.shape[:2]
    images = views.flatten(0, 1)
    # The views have to agree on the best classes, so all maps are made.
    picks_best = classes is None and top is not None and top >= 1
    if isinstance(classes, Tensor):
        classes = torch.cat([classes] * count)
    output = display_maps(net, images, top=None if picks_best else top, classes=classes)
    logits = output.logits.reshape(count, batch, -1).mean(0)
    maps, classes = output.maps, output.classes[:batch]
    if picks_best:
        assert top is not None
        classes = logits.topk(min(top, logits.shape[1])).indices
        rows = torch.arange(count * batch, device=classes.device)[:, None]
        maps = maps[rows, classes.repeat(count, 1)]
    return CAMOutput(logits, maps.reshape(count, batch, *maps.shape[1:]), classes)


def _crop_offsets(size: tuple[int, int], crop_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """The top left corners (y, x) of the five crops of an image, in the authors' order."""
    if not (0 < crop_hw[0] <= size[0] and 0 < crop_hw[1] <= size[1]):
        raise CamtrainValueError(
            f"crop_hw must be at least (1, 1) and fit into the image, {tuple(size)}, got "
            f"{tuple(crop_hw)}."
        )
    y, x = size[0] - crop_hw[0], size[1] - crop_hw[1]
    return [(0, 0), (y, 0), (0, x), (y, x), (y // 2, x // 2)]
