"""What a model is made of, to be put together again with other variables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.model.fgraph import clone_model
from pytensor.graph.basic import Variable
from pytensor.graph.traversal import toposort

from pytensor_mvn_rewrites.graph import Tensor, substituted


class Unfusable(Exception):
    """A loop, or a flat vector, stays as it is; the message says why."""


@dataclass
class Part:
    """A variable of a model: a random one has a value."""

    var: Tensor
    dims: tuple[str, ...] | None
    value: Any = None
    transform: Any = None
    initial: Any = None


@dataclass
class Parts:
    """What a model is made of, by name and in its order."""

    free: dict[str, Part]
    observed: dict[str, Part]
    deterministics: dict[str, Part]
    potentials: dict[str, Part]
    data: dict[str, Part]
    coords: dict[str, Any]
    lengths: dict[str, Any]

    @classmethod
    def of(cls, model: pm.Model) -> "Parts":
        """Those of `model`, which stays as it is."""

        def parts(variables):
            return {v.name: Part(v, model.named_vars_to_dims.get(v.name)) for v in variables}

        free, observed = parts(model.free_RVs), parts(model.observed_RVs)
        for part in (free | observed).values():
            part.value = model.rvs_to_values[part.var]
            part.transform = model.rvs_to_transforms.get(part.var)
            part.initial = model.rvs_to_initial_values.get(part.var)
        return cls(
            free,
            observed,
            parts(model.deterministics),
            parts(model.potentials),
            parts(model.data_vars),
            dict(model.coords),
            dict(model.dim_lengths),
        )

    @property
    def random(self) -> dict[str, Part]:
        """The random variables."""
        return self.free | self.observed

    def add_dim(self, name: str, values: tuple) -> str:
        """Add a dimension with a coordinate, as ``pm.Model.add_coord`` does."""
        if name in self.lengths:
            raise Unfusable(f"the dimension {name!r} is taken")
        self.coords[name] = values
        self.lengths[name] = pytensor.shared(np.asarray(len(values)), name=name)
        return name

    def add_dims(self, base: str, lengths: Sequence[int | None], first: int = 0) -> tuple[str, ...]:
        """Dims for axes of a variable without dims: PyMC names all or none."""
        if None in lengths:
            raise Unfusable("the length of one of the dimensions is not known")
        return tuple(
            self.add_dim(f"{base}_dim_{axis}", tuple(range(length or 0)))
            for axis, length in enumerate(lengths, start=first)
        )

    def replace(self, new: dict[Variable, Variable]) -> None:
        """Put other variables in the place of some, in all that is computed from them."""
        parts = [*self.random.values(), *self.deterministics.values(), *self.potentials.values()]
        changed = set(new)
        for node in toposort([part.var for part in parts]):
            if not changed.isdisjoint(node.inputs):
                changed.update(node.outputs)
        kept = [part.var for part in parts if part.var not in changed]
        parts = [part for part in parts if part.var in changed]
        graphs = substituted([part.var for part in parts], new, kept) if parts else []
        for part, var in zip(parts, graphs, strict=True):
            var.name = part.var.name
            part.var = var

    def model(self) -> pm.Model:
        """A model of these parts, which shares no data with that which they come from."""
        model = pm.Model(model=None)
        for name, length in self.lengths.items():
            model.add_coord(name, self.coords.get(name), length=length)
        for part in self.random.values():
            model.create_value_var(
                part.var, transform=part.transform, default_transform=None, value_var=part.value
            )
        for part in self.free.values():
            model.set_initval(part.var, None)
        kinds = [
            (model.data_vars, self.data),
            (model.free_RVs, self.free),
            (model.observed_RVs, self.observed),
            (model.deterministics, self.deterministics),
            (model.potentials, self.potentials),
        ]
        for variables, parts in kinds:
            for part in parts.values():
                variables.append(part.var)
                model.add_named_variable(part.var, dims=part.dims)
        order = {name: k for k, name in enumerate(model.named_vars)}
        # PyMC clones in the order of the graph
        model = clone_model(model)
        for variables in (
            model.free_RVs,
            model.observed_RVs,
            model.deterministics,
            model.potentials,
        ):
            variables.sort(key=lambda var: order[var.name])
        for name, part in self.free.items():
            model.set_initval(model[name], part.initial)
        return model


def of_dtype(value: Variable, rv: Variable) -> Variable:
    """A value of the dtype of its random variable."""
    return value if value.type.dtype == rv.type.dtype else pt.cast(value, rv.type.dtype)
