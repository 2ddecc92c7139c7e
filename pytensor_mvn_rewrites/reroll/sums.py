"""Sums: ``t_1 + ... + t_N`` with isomorphic terms becomes the sum of one batched term."""

import pytensor.tensor as pt

from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import Rerolling, holds_random_variables
from pytensor_mvn_rewrites.reroll._terms import fewest_terms, outer_sums, structured_matrices


@reroll
def reroll_sums(fgraph):
    r"""add(f(a_1), ..., f(a_N), rest) -> add(sum(F(A)), rest), F the batched f.

    .. math:: \sum_{n=1}^N f(a_n) = \mathbf 1^\top F(A), \qquad A = (a_1, \dots, a_N)

    Sums may be variadic, nested, or built by Python's ``sum``. Cost: N copies of the nodes of f
    become one; everything after this stage is independent of N. Declines on graphs of random
    variables, when shapes are not provably equal, when it would save next to nothing, and for sums
    that a covariance is made of: its terms are its structure.
    """
    fewest = fewest_terms(fgraph)
    sums = outer_sums(fgraph, lambda terms: len(terms) >= fewest)
    if not sums or holds_random_variables(fgraph):
        return
    rerolling = Rerolling("reroll_sums", fgraph)
    structured = structured_matrices(fgraph)
    replacements = []
    for node, terms in sums:
        if node.outputs[0] in structured:
            continue
        packs = rerolling.packs(terms)
        if not packs:
            continue
        [old] = node.outputs
        packed = {position for pack in packs for position in pack.positions}
        parts = [term for position, term in enumerate(terms) if position not in packed]
        # small integers wrap around in an addition, where a sum counts in 64 bits
        parts += [pack.batch.sum(axis=0).astype(old.type.dtype) for pack in packs]
        total = pt.add(*parts) if len(parts) > 1 else parts[0]
        total.name = old.name
        replacements.append((old, old.type.filter_variable(total)))
    fgraph.replace_all(replacements, reason="reroll_sums", import_missing=True)
