"""What PiSSA and OLoRA take out of a base before training, computed again from the base's weights.

Both take out the projection of a weight W on r directions: PiSSA on its largest singular ones
(https://arxiv.org/abs/2404.02948), OLoRA on the span of its first r columns (https://arxiv.org/abs/2406.01775). A
projection depends on no sign and on no library, so that it is the same as PEFT's up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def taken_out(kind: str, weight: NDArray[Any], rank: int, scale: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The (B, A) whose `scale`-fold product was taken out of `weight`, which is (output, input), all in float64.

    OLoRA's scaling acts on top of the projection; PiSSA divides by it first.
    """
    import numpy as np

    if kind == "olora":
        directions = np.linalg.qr(weight[:, :rank])[0]
        return directions, directions.T @ weight
    # The singular vectors of the shorter side are all that is needed, and cost far less than the whole decomposition.
    tall = weight.shape[0] > weight.shape[1]
    square = weight.T @ weight if tall else weight @ weight.T
    directions = np.linalg.eigh(square)[1][:, ::-1][:, :rank]
    b, a = (weight @ directions, directions.T) if tall else (directions, directions.T @ weight)
    # Both factors get half of each singular value, so that neither is coarse in a narrow type.
    halves = np.sqrt(np.linalg.norm(b, axis=0) / np.maximum(np.linalg.norm(a, axis=1), np.finfo(float).tiny))
    return b / np.maximum(halves, np.finfo(float).tiny) / scale, a * halves[:, None]
