"""Draw models before and after ``fuse_model``: ``python docs/pictures.py``.

They are the loop of the README, and the models of the gallery, which its pages build. Needs the
package graphviz and its program ``dot``. The pictures are kept in the repository, so that the
documentation is built without it.
"""

import os
import re
from pathlib import Path

import numpy as np
import pymc as pm

import pytensor_mvn_rewrites

DOCS = Path(__file__).parent
PICTURES = DOCS / "pictures"

GALLERY = ("iris", "thousands", "space-time", "var", "growth")
#: Members of the loop of thousands
os.environ["GALLERY_N"] = "5"
#: Variables for which there is room from left to right, and in a picture
WIDE, MOST = 9, 20


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
    if len(model.basic_RVs) > WIDE:
        graph.attr(rankdir="LR")
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


def model_of_page(page: str) -> pm.Model:
    """Run the cells of a page of the gallery up to that which builds its model."""
    text = (DOCS / "gallery" / f"{page}.md").read_text()
    cells = re.findall(r"```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    while "model" not in names:
        exec(cells.pop(0), names)
    return names["model"]


if __name__ == "__main__":
    models = {"loop": loop()} | {page: model_of_page(page) for page in GALLERY}
    for name, model in models.items():
        fused = pytensor_mvn_rewrites.fuse_model(model)
        if len(model.basic_RVs) <= MOST:
            draw(model, f"{name}.svg")
        if len(fused.basic_RVs) < len(model.basic_RVs):
            draw(fused, f"{name}_fused.svg")
