"""A in sparse storage: bands, trees, chordal and nearly chordal patterns, without a dense matrix anywhere."""

from heliostat.linalg.logdet.sparse.decompose import decompose_sparse, is_sparse
from heliostat.linalg.logdet.sparse.forms import BandedMatrix, Partial, Remainder

__all__ = ["BandedMatrix", "Partial", "Remainder", "decompose_sparse", "is_sparse"]
