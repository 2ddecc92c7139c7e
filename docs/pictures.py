"""Draw the loop model before and after ``fuse_model``: ``python docs/pictures.py``.

Needs the package graphviz and its program ``dot``. The pictures are kept in the repository, so that
the documentation is built without it.
"""

from pathlib import Path

import numpy as np
import pymc as pm

import pytensor_mvn_rewrites

PICTURES = Path(__file__).parent / "pictures"


def loop(n: int = 5, q: int = 3) -> pm.Model:
    """Build the loop of the README."""
    rng = np.random.default_rng(1)
    with pm.Model() as model:
        scale = pm.HalfNormal("scale")
        mu = pm.Normal("mu", 0, 1, shape=(n, q))
        for k in range(n):
            pm.MvNormal(f"x_{k}", mu=mu[k], cov=scale * np.eye(q), observed=rng.normal(size=q))
    return model


def draw(model: pm.Model, name: str) -> None:
    """Write the picture of `model`; the same model gives the same file."""
    graph = pm.model_to_graphviz(model)
    # PyMC writes the members of a plate in the order of a set
    graph.body = ordered(graph.body)
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(graph.pipe(format="svg"))


def ordered(body: list[str]) -> list[str]:
    """Nodes within their plate, and edges, in the order of their names."""
    lines, run = [], []
    for line in body:
        if "[label=" in line or "->" in line:
            run.append(line)
            continue
        lines += [*sorted(run), line]
        run = []
    return lines + sorted(run)


if __name__ == "__main__":
    model = loop()
    draw(model, "loop.svg")
    draw(pytensor_mvn_rewrites.fuse_model(model), "loop_fused.svg")
