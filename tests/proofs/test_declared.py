"""What is declared of a variable, and not said by a rule of PyTensor's."""

import numpy as np
import pytensor.tensor as pt
from pytensor.assumptions import POSITIVE_DEFINITE
from pytensor.graph.fg import FunctionGraph
from pytensor.tensor.rewriting.assumptions import DrainSpecifyAssumptions

from pytensor_mvn_rewrites.proofs.declared import is_declared

S, A = pt.matrix("S"), pt.matrix("A")


def declared(matrix, *, of=None):
    """Whether `of` is declared definite in the graph of `matrix` without its markers."""
    fgraph = FunctionGraph(outputs=[matrix], clone=False)
    DrainSpecifyAssumptions().apply(fgraph)
    return is_declared(fgraph, fgraph.outputs[0] if of is None else of, POSITIVE_DEFINITE)


def test_what_the_user_declares():
    assert declared(POSITIVE_DEFINITE.assume(S) + A, of=S)
    assert declared(POSITIVE_DEFINITE.assume(pt.exp(S)))


def test_what_pytensor_infers():
    assert not declared(S)
    assert not declared(S @ S.mT)
    assert not declared(pt.constant(np.eye(2)))
