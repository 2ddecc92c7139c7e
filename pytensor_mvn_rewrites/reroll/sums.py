"""Sums: ``t_1 + ... + t_N`` with isomorphic terms becomes the sum of one batched term."""

import pytensor.tensor as pt
from pytensor.graph.basic import Apply, Variable
from pytensor.scalar.basic import Add
from pytensor.tensor.elemwise import Elemwise

from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import Rerolling, holds_random_variables


@reroll
def reroll_sums(fgraph):
    r"""add(f(a_1), ..., f(a_N), rest) -> add(sum(F(A)), rest), F the batched f.

    .. math:: \sum_{n=1}^N f(a_n) = \mathbf 1^\top F(A), \qquad A = (a_1, \dots, a_N)

    Sums may be variadic, nested, or built by Python's ``sum``. Cost: N copies of the nodes of f
    become one; everything after this stage is independent of N. Declines on graphs of random
    variables, when shapes are not provably equal, and when it would save next to nothing.
    """
    sums = outer_sums(fgraph)
    if not sums or holds_random_variables(fgraph):
        return
    rerolling = Rerolling("reroll_sums", fgraph)
    replacements = []
    for node, terms in sums:
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


def outer_sums(fgraph) -> list[tuple[Apply, list[Variable]]]:
    """The sums of several terms that are no part of larger ones, with their terms."""
    sums = [node for node in fgraph.apply_nodes if is_add(node) and not _is_inner(fgraph, node)]
    return [(node, terms) for node in sums if len(terms := flatten(fgraph, node)) > 1]


def is_add(node: Apply) -> bool:
    """Whether `node` is an elementwise addition of numbers; that of bools is a logical or."""
    return (
        isinstance(node.op, Elemwise)
        and isinstance(node.op.scalar_op, Add)
        and node.outputs[0].type.dtype != "bool"
    )


def _is_inner(fgraph, node) -> bool:
    """Whether the sum is only a part of a larger sum."""
    clients = fgraph.clients[node.outputs[0]]
    return len(clients) == 1 and is_add(clients[0][0]) and _same_type(clients[0][0], node)


def _same_type(outer: Apply, inner: Apply) -> bool:
    return outer.outputs[0].type == inner.outputs[0].type


def flatten(fgraph, node: Apply) -> list[Variable]:
    """The terms of a sum, through nested sums that have no other use."""
    terms = []
    pending = list(reversed(node.inputs))
    while pending:
        term = pending.pop()
        inner = term.owner
        if inner is not None and is_add(inner) and _is_inner(fgraph, inner):
            pending.extend(reversed(inner.inputs))
        else:
            terms.append(term)
    return terms
