"""Result of a decomposition: B, C, and a certificate computed from these arrays.

    KL(N(0, A) ‖ N(0, B⁻¹)) = ½ (tr(AB) - n - log det A - log det B)

Left out: the methods (``newton`` and its siblings), and the computation of the certificate (``certificate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heliostat.cards import Card


@dataclass(frozen=True, slots=True, repr=False)
class Certificate(Card):
    """Evidence that A = B⁻¹ + C; for a batch, every field is that of its worst member.

    Attributes:
        residual: max |Π_{S⊥}(A - B⁻¹)| / max |A|, the relative stationarity error; 0 at the exact answer. On patterns
            every variable has a unit of its own (``units``), so that small variables count like large ones.
        duality_gap: tr(AB) - n - log det B - log det(A - C), never negative in exact arithmetic; half of it bounds
            how far B's divergence is from the least one. Infinite where A - C is not positive definite.
        trace_error: tr(AB) - n, 0 at the exact answer.
        iterations: Newton steps; 0 for closed forms.
        method: the name ``inverse_decomposition`` accepts as ``method=``.
    """

    residual: float
    duality_gap: float
    trace_error: float
    iterations: int
    method: str


@dataclass(frozen=True, slots=True, repr=False)
class InverseDecomposition(Card):
    """A = B⁻¹ + C with B ≻ 0 in S⊥ and C in S.

    Attributes:
        B: same kind as A (numpy, torch, banded or scipy.sparse).
        C: same kind as A for dense A; for sparse and banded A an operator with ``matvec`` and ``to_dense``, because
            B⁻¹ is dense. ``None`` where A's entries off the pattern are unknown.
        kl: KL(N(0,A) ‖ N(0,B⁻¹)) in nats, one per matrix of a batch; ``None`` where log det A is unknown.
    """

    B: Any
    C: Any
    kl: Any
    certificate: Certificate


class ConvergenceError(RuntimeError):
    """The requested tolerance was not reached; ``best`` is the best iterate as a result, with its certificate.

    For dense A it is feasible; where a sparse B lost its definiteness to rounding, the certificate is infinite.
    """

    def __init__(self, message: str, best: Any) -> None:
        super().__init__(message)
        self.best = best
