"""What a stack of matrices is made of: the base of the structures, and who knows them."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.rewriting.basic import NodeRewriter, node_rewriter

from pytensor_mvn_rewrites.graph import Tensor, without_leading_ones, without_shared_axes
from pytensor_mvn_rewrites.ops import InvQuadLogdet, MvNormalLogp
from pytensor_mvn_rewrites.pipeline import RULES, Declined, record, recording
from pytensor_mvn_rewrites.structure._assemble import from_parts, outputs_like, split_inputs

#: The remedy where symmetry is not proven.
DECLARE_SYMMETRIC = "declare it by pytensor.assumptions.assume(matrix, symmetric=True)"


#: Up to this n, a density that is one of a dense batch costs no more than one of some structure: a
#: Kronecker product beside a dense covariance takes 12.3 us apart and 11.1 us as a batch of two at
#: n=16, 20 and 26 us at n=24; beside a diagonal one 10.2 and 9.5 us at n=16, with gradients.
DENSE_IS_CHEAP = 16


class Structure:
    """What a stack of n x n matrices is made of.

    A subclass is a dataclass under the decorator :data:`~.pipeline.structure`, which makes it a
    rule of stage 3: densities whose matrix it matches get what `quad_logdet` builds.
    """

    #: Parametrizations in which the matrix may be given.
    params: ClassVar[tuple[str, ...]] = ("cov",)

    @classmethod
    def match(
        cls, fgraph: FunctionGraph | None, matrix: Tensor, n: int | None, param: str
    ) -> Self | None:
        """The parts of `matrix`, or None if it is not proven to be made of them.

        Parameters
        ----------
        fgraph : FunctionGraph, optional
            What knows the facts that were declared.
        matrix : tensor, shape (..., n, n)
            Without leading dimensions of length 1.
        n : int, optional
            The length of the vectors that go with it, if that is known.
        param : str
            One of `params`: what the matrix is.
        """
        raise NotImplementedError

    @classmethod
    def declined(cls, reason: str, remedy: str = "") -> None:
        """Note that a matrix of this structure is left alone, and what a user can do about it."""
        record(Declined("structure", cls.__name__, reason, remedy))

    def quad_logdet(self, delta: Tensor, param: str) -> Sequence[Tensor] | None:
        """The quadratic form, half the log-determinant, and whether all is well, each (...).

        Parameters
        ----------
        delta : tensor, shape (..., n)
            A difference to the mean. Its length may be unknown; one that is too long must not go
            unnoticed.
        param : str
            One of `params`: what the matrix is.
        """
        raise NotImplementedError

    def cholesky(self) -> Tensor | None:
        """The lower Cholesky factor, shape (..., n, n), where it takes no factorization."""
        return None

    def outputs(self, node: Apply) -> list[Tensor] | None:
        """What takes the place of the outputs of a density `node` of the matrix."""
        chol = self.cholesky() if node.op.param == "cov" else None
        if chol is None:
            delta, _ = split_inputs(node)
            parts = self.quad_logdet(delta, node.op.param)
            return None if parts is None else from_parts(node, *parts)
        if chol.type.dtype != node.inputs[-1].type.dtype:
            return None
        vectors = node.inputs[:-1]
        return outputs_like(node, type(node.op)(param="chol")(*vectors, chol, return_list=True))

    @classmethod
    def rewriter(cls) -> NodeRewriter:
        """The rule that replaces densities of such matrices."""

        def rule(fgraph: FunctionGraph, node: Apply):
            if node.op.param not in cls.params:
                return None
            matrix = without_leading_ones(node.inputs[-1], 2)
            found = cls.match(fgraph, matrix, length_of_vectors(node), node.op.param)
            return None if found is None else found.outputs(node)

        rule.__name__, rule.__doc__ = cls.__name__, cls.__doc__
        return node_rewriter([MvNormalLogp, InvQuadLogdet])(rule)


def length_of_vectors(density: Apply) -> int | None:
    """The n of a density, as far as the vectors say."""
    lengths = {vector.type.shape[-1] for vector in density.inputs[:-1]}
    return max(lengths - {None, 1}, default=1 if lengths == {1} else None)


def is_large(n: int | None) -> bool:
    """Whether densities of this n, if it is known, should not be hidden in a dense batch."""
    return n is None or n > DENSE_IS_CHEAP


def large_structure(fgraph: FunctionGraph | None, density: Apply) -> Structure | None:
    """What the matrix of `density` is made of, if it is large: no stack may hide it.

    A stack of matrices that are made of different things is dense.
    """
    if not is_large(n := length_of_vectors(density)):
        return None
    with recording():  # what is declined here will be declined by the rule as well
        return describe(fgraph, without_shared_axes(density.inputs[-1]), n, density.op.param)


def structures() -> Iterator[type[Structure]]:
    """All classes of structures."""
    for rule in RULES["structure"].values():
        if isinstance(rule, type) and issubclass(rule, Structure):
            yield rule


def describe(
    fgraph: FunctionGraph | None, matrix: Tensor, n: int | None, param: str = "cov"
) -> Structure | None:
    """The first structure that matches `matrix`, shape (..., n, n); see :meth:`Structure.match`."""
    for cls in structures():
        if param in cls.params and (found := cls.match(fgraph, matrix, n, param)) is not None:
            return found
    return None


def known_cholesky_factor(fgraph: FunctionGraph | None, matrix: Tensor) -> Tensor | None:
    """The lower Cholesky factor of `matrix` where it takes no factorization; else None."""
    for cls in structures():
        if cls.cholesky is Structure.cholesky:
            continue
        found = cls.match(fgraph, matrix, matrix.type.shape[-1], "cov")
        if found is not None and (chol := found.cholesky()) is not None:
            return chol
    return None
