"""Scans without recurrence: what each step computes, computed for all steps at once."""

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import toposort
from pytensor.scan.op import Scan
from pytensor.tensor.random.op import RNGConsumerOp

from pytensor_mvn_rewrites.graph import Tensor, nodes_with
from pytensor_mvn_rewrites.ops.gaussian import FusedOp
from pytensor_mvn_rewrites.pipeline import Declined, Fired, record, reroll
from pytensor_mvn_rewrites.proofs.constants import scalar_constant
from pytensor_mvn_rewrites.reroll._indexing import specify_length
from pytensor_mvn_rewrites.reroll._packs import holds_random_variables
from pytensor_mvn_rewrites.reroll._vectorize import CannotBatch, vectorize_outputs


@reroll
def maps_are_batched(fgraph):
    r"""scan(f, sequences=[A]) -> F(A), F the batched f.

    .. math:: y_n = f(a_n), \; n = 1 \ldots N \quad \to \quad Y = F(A)

    Cost: N steps of a loop, and N more of its gradient, become one computation, and the structure
    of a covariance is seen that a scan hides. Declines for scans that carry something from step to
    step, stop early or draw random numbers, when an op has no batched form, and in graphs without
    a density of this package: all steps at once take N times the memory of one.
    """
    if not nodes_with(fgraph, Scan) or not nodes_with(fgraph, FusedOp):
        return
    if holds_random_variables(fgraph):
        return
    replacements: list[tuple[Variable, Variable]] = []
    for node in fgraph.toposort():
        if not isinstance(node.op, Scan):
            continue
        try:
            outputs = batched_map(node)
        except CannotBatch as reason:
            record(Declined("reroll", "maps_are_batched", f"{node.op}: {reason}"))
            continue
        replacements += zip(node.outputs, outputs, strict=True)
        record(Fired("reroll", "maps_are_batched", str(node.op)))
    # the last first: its sequences are computed from the others
    fgraph.replace_all(
        [(old, old.type.filter_variable(new)) for old, new in reversed(replacements)],
        reason="maps_are_batched",
        import_missing=True,
    )


def batched_map(node: Apply[Scan]) -> list[Variable]:
    """The outputs of a scan, of all its steps at once.

    Raises
    ------
    CannotBatch
        If its steps depend on one another, or an op has no batched form.
    """
    info = node.op.info
    carried = info.n_mit_mot + info.n_mit_sot + info.n_sit_sot + info.n_untraced_sit_sot
    if carried or info.as_while or not info.n_seqs:
        raise CannotBatch("it carries something from step to step, or stops early")
    inputs: list[Tensor] = list(node.inputs)
    n_steps, *inputs = inputs
    sequences, inputs = inputs[: info.n_seqs], inputs[info.n_seqs :]
    lengths, others = inputs[: info.n_nit_sot], inputs[info.n_nit_sot :]
    if any(not is_same_number(length, n_steps) for length in lengths):
        raise CannotBatch("not all of its steps are kept")
    inner = node.op.fgraph
    of_a_step = [var.type() for var in inner.inputs[: info.n_seqs]]
    outputs = inner.bind(dict(zip(inner.inputs, [*of_a_step, *others], strict=True)))
    if any(isinstance(step.op, RNGConsumerOp) for step in toposort(outputs, blockers=others)):
        raise CannotBatch("it draws random numbers")
    batched = {
        step: first_entries(sequence, n_steps)
        for step, sequence in zip(of_a_step, sequences, strict=True)
    }
    first = {step: sequence[0] for step, sequence in zip(of_a_step, sequences, strict=True)}
    blockers = [*sequences, *others, n_steps]
    return vectorize_outputs(outputs, batched, n_steps, blockers, first)


def is_same_number(one: Tensor, other: Tensor) -> bool:
    """Whether two scalars are the same variable or the same constant."""
    value = scalar_constant(one)
    return one is other or (value is not None and value == scalar_constant(other))


def first_entries(sequence: Tensor, n_steps: Tensor) -> Tensor:
    """As many entries as there are steps; fewer are an error, as in the scan."""
    length = scalar_constant(n_steps)
    if length is not None and sequence.type.shape[0] == length:
        return sequence
    return specify_length(sequence[:n_steps], n_steps)
