"""Outputs: isomorphic outputs of one function become slices of one batched term."""

from pytensor_mvn_rewrites.pipeline import reroll
from pytensor_mvn_rewrites.reroll._packs import Rerolling, holds_random_variables


@reroll
def reroll_outputs(fgraph):
    """(f(a_1), ..., f(a_N)) -> (F(A)[0], ..., F(A)[N-1]), F the batched f.

    For functions that return one log-density for each term of a loop, such as
    ``compile_logp(sum=False)``. Declines on graphs of random variables, when shapes are not
    provably equal, when it would save next to nothing, and when the outputs are slices already.
    """
    if len(fgraph.outputs) < 2 or holds_random_variables(fgraph):
        return
    replacements = [
        (fgraph.outputs[position], pack.batch[index])
        for pack in Rerolling("reroll_outputs").packs(fgraph.outputs)
        if not pack.is_view
        for index, position in enumerate(pack.positions)
    ]
    for old, new in replacements:
        new.name = old.name
    fgraph.replace_all(
        [(old, old.type.filter_variable(new)) for old, new in replacements],
        reason="reroll_outputs",
        import_missing=True,
    )
