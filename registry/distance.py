"""How far apart two LoRA adapters are, layer by layer, reckoned from their small matrices alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry import check
from loradock.registry.check.effect import meant
from loradock.registry.check.findings import some
from loradock.registry.errors import NotServable
from loradock.registry.records import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOT_COMPARABLE: Final = frozenset(
    {
        *("config-unreadable", "weights-unreadable", "weights-missing", "weights-pickled", "weights-sharded"),
        *("method-missing", "not-lora", "no-lora-weights", "half-pair", "tensors-twice"),
        *("rank-missing", "rank-invalid", "alpha-missing", "alpha-invalid", "pattern-invalid", "pattern-unsafe"),
        *("rank-not-configured", "ranks-differ", "tensor-empty", "tensor-transposed", "tensors-untargeted"),
        *("dora", "qalora", "kasa", "bdlora", "arrow", "start-left-in", "start-unknown"),
        *("layers-replicated", "activated-lora"),
    }
)
"""What the doctor finds where B·A alone does not say what an adapter adds to its base."""


class Distance(Record):
    """How far apart two adapters are in one module, by what they add to the base's weight there."""

    module: str
    norms: tuple[float, float]
    """Frobenius norm of what each adds; 0 where an adapter leaves the module alone."""
    distance: float | None
    """Frobenius norm of the difference, relative to the first's; None where the first adds nothing."""
    cosine: float | None
    """Between the two, as long vectors, -1 to 1; None where one adds nothing."""


class Weights(Record):
    """How far apart two adapters are."""

    total: Distance | None = None
    """Over all modules, as if they were one long vector."""
    modules: tuple[Distance, ...] = ()
    why_not: str = ""
    """Why they cannot be compared; empty when they can."""
    besides: tuple[str, ...] = ()
    """What their files hold besides, and not alike, which is in no distance."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of one module: squared norms of what each adds, of the difference, and their inner product."""

    one: float
    other: float
    apart: float
    inner: float

    def __add__(self, more: _Sums) -> _Sums:
        return _Sums(self.one + more.one, self.other + more.other, self.apart + more.apart, self.inner + more.inner)

    def distance(self, module: str) -> Distance:
        norms = (math.sqrt(self.one), math.sqrt(self.other))
        return Distance(
            module=module,
            norms=norms,
            distance=math.sqrt(self.apart) / norms[0] if norms[0] else None,
            cosine=max(-1.0, min(1.0, self.inner / norms[0] / norms[1])) if all(norms) else None,
        )


_NOTHING: Final = _Sums(0, 0, 0, 0)


def between(one: Path, other: Path, *, names: tuple[str, str] = ("the first", "the second")) -> Weights:
    """How far apart the adapters in two directories are, which were made for the same base.

    Only what plain LoRA adds is compared; what speaks against that is said instead. One layer is in memory at a time. A
    parameter with a matrix for each expert is one module, whose matrices are as if they were one long vector.
    """
    for directory, name in zip((one, other), names, strict=True):
        for finding in check.examine(directory).findings:
            if finding.code in _NOT_COMPARABLE:
                return Weights(why_not=f"{name}: {finding.text}")
    try:
        adapters = [meant(directory, check.BaseShapes()) for directory in (one, other)]
    except NotServable as error:
        return Weights(why_not="; ".join(error.reasons))
    modules: list[Distance] = []
    total = _NOTHING
    for module in sorted({*adapters[0].parts, *adapters[1].parts}):
        factors = [adapter.factors(module) for adapter in adapters]
        if all(factors) and [_shape(each) for each in factors[0]] != [_shape(each) for each in factors[1]]:
            return Weights(why_not=f"{module} is of another shape in {names[0]} than in {names[1]}")
        sums = sum((_sums(*each) for each in zip_longest(*factors)), _NOTHING)
        total += sums
        modules.append(sums.distance(module))
    held = [adapter.others for adapter in adapters]
    unlike = sorted(name for name in {*held[0], *held[1]} if held[0].get(name) != held[1].get(name))
    besides = (f"tensors that are no LoRA matrices, and differ: {some(unlike)}",) if unlike else ()
    return Weights(total=total.distance("all modules"), modules=tuple(modules), besides=besides)


Factors = tuple["NDArray[Any]", "NDArray[Any]"]
"""What an adapter adds to a module's weight is the product of these: outputs x rank, its scaling included, and rank x
inputs."""


def _shape(factors: Factors) -> tuple[int, int]:
    return factors[0].shape[0], factors[1].shape[1]


def _sums(one: Factors | None, other: Factors | None) -> _Sums:
    """Norms and inner product of two products B·A, none of which is formed.

    With QR decompositions B = Q·R and Aᵀ = P·S, Q and P orthonormal, ‖B·A‖ = ‖R·Sᵀ‖: matrices of the rank's size. The
    difference is such a product of twice the rank, [B₁ -B₂]·[A₁; A₂]; taken from the norms and the inner product
    instead, it would lose half of its digits where the two are close. ⟨B₁A₁, B₂A₂⟩ is the sum of (B₁ᵀB₂)∘(A₁A₂ᵀ).
    """
    import numpy as np

    if one is None or other is None:
        first, second = (_squared(*factors) if factors else 0.0 for factors in (one, other))
        return _Sums(first, second, first + second, 0.0)
    (b1, a1), (b2, a2) = one, other
    apart = _squared(np.hstack([b1, -b2]), np.vstack([a1, a2]))
    inner = float(((b1.T @ b2) * (a1 @ a2.T)).sum())
    return _Sums(_squared(b1, a1), _squared(b2, a2), apart, inner)


def _squared(b: NDArray[Any], a: NDArray[Any]) -> float:
    """Squared Frobenius norm of B·A."""
    import numpy as np

    left: Any = np.linalg.qr(b, mode="r")
    right: Any = np.linalg.qr(a.T, mode="r")
    return float(np.square(left @ right.T).sum())
