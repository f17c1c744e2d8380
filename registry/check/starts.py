"""What PiSSA and OLoRA take out of a base before training, computed again from the base's weights.

Both take out the projection of a weight W on r directions: PiSSA on its largest singular ones
(https://arxiv.org/abs/2404.02948), OLoRA on the span of its first r columns (https://arxiv.org/abs/2406.01775). A
projection depends on no sign and on no library, so that it is the same as PEFT's up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLOSE: Final = 1e-6
_STEPS: Final = 30


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


def is_taken_out(kind: str, weight: NDArray[Any], rank: int, b: NDArray[Any], a: NDArray[Any]) -> bool:
    """Whether B·A is the projection that a start takes out of a weight, by what makes it one.

    Both are projections on the span of B. OLoRA's holds the first columns. By Eckart and Young PiSSA's is the one that
    the weight maps into itself, and beside which nothing larger is left than the smallest of its own singular values.
    """
    import numpy as np

    span = np.linalg.qr(b)[0]
    inside = span.T @ weight
    whole = float(np.linalg.norm(weight))
    if np.linalg.norm(b @ a - span @ inside) > _CLOSE * whole:
        return False
    if kind == "olora":
        first = weight[:, :rank]
        return bool(np.linalg.norm(first - span @ (span.T @ first)) <= _CLOSE * whole)
    turned = weight @ inside.T
    if np.linalg.norm(turned - span @ (span.T @ turned)) > _CLOSE * whole**2:
        return False
    left: Any = np.random.default_rng(0).standard_normal(weight.shape[1])
    for _ in range(_STEPS):
        left /= np.linalg.norm(left)
        beside = weight @ left - span @ (inside @ left)
        left = weight.T @ beside - inside.T @ (span.T @ beside)
        if not left.any():
            return True
    return bool(np.sqrt(np.linalg.norm(left)) <= np.linalg.svd(inside, compute_uv=False)[-1] * (1 + _CLOSE))
