"""The command line: what it prints, and its exit status."""

import subprocess
import sys
from contextlib import contextmanager

import pytensor
import pytest

from pytensor_mvn_rewrites.__main__ import main
from pytensor_mvn_rewrites.structure.diagonal import Diagonal

MODEL = """
import numpy as np
import pymc as pm
import pytensor.tensor as pt
from neighbour import N


def build_model():
    with pm.Model() as model:
        d = pm.HalfNormal("d", shape=N)
        pm.MvNormal("y", np.zeros(N), cov=pt.diag(d), observed=np.ones(N))
    return model


model = build_model()
number = 3


def broken():
    raise ZeroDivisionError("no such luck")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "neighbour.py").write_text("N = 4")
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    yield path
    sys.modules.pop("neighbour", None)


@contextmanager
def python_mode():
    with pytensor.config.change_flags(mode="FAST_COMPILE", linker="py", traceback__limit=0):
        yield


@pytest.mark.parametrize("name", ["build_model", "model"])
def test_explain(file, name, capsys):
    assert main(["explain", f"{file}:{name}"]) == 0
    out = capsys.readouterr().out
    assert "│ Diagonal" in out
    assert "left dense: nothing" in out


def test_verify(file, capsys):
    with python_mode():
        assert main(["verify", f"{file}:build_model", "--points", "1"]) == 0
    assert "agrees with" in capsys.readouterr().out


def test_verify_of_what_differs(file, capsys, monkeypatch):
    outputs = Diagonal.outputs

    def off(self, node):
        first, *others = outputs(self, node)
        return [first + 1, *others]

    monkeypatch.setattr(Diagonal, "outputs", off)
    with python_mode():
        assert main(["verify", f"{file}:build_model", "--points", "0", "--rtol", "1e-6"]) == 1
    assert "DIFFERS from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "{file}"], "name the model"),
        (["explain", "{file}:nothing"], "has no 'nothing'"),
        (["explain", "{file}:number"], "is a int, not a model"),
        (["explain", "nowhere.py:build_model"], "there is no such file"),
        (["verify", "{file}:broken"], "no such luck"),
        (["warm"], "takes a model, or --sizes"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_is_wrong_is_said(file, arguments, message, capsys):
    assert main([argument.format(file=file) for argument in arguments]) == 2
    assert message in capsys.readouterr().err.replace("\n", "")


def test_wrong_usage():
    with pytest.raises(SystemExit) as caught:
        main(["cool"])
    assert caught.value.code == 2


def run(*arguments, compiledir):
    return subprocess.run(
        [sys.executable, "-m", "pytensor_mvn_rewrites", *map(str, arguments)],
        env={
            "PATH": "",
            "HOME": str(compiledir),
            "PYTENSOR_FLAGS": f"base_compiledir={compiledir},cxx=",
        },
        capture_output=True,
        text=True,
    )


def test_warm_fills_the_cache(file, tmp_path):
    """The second process compiles nothing."""
    cache = tmp_path / "cache"
    first = run("warm", f"{file}:build_model", compiledir=cache)
    assert first.returncode == 0, first.stderr
    entries = sorted((cache / "numba").glob("*.nbc"))
    assert entries
    second = run("warm", f"{file}:build_model", compiledir=cache)
    assert second.returncode == 0, second.stderr
    assert sorted((cache / "numba").glob("*.nbc")) == entries


def test_warm_compiles_the_kernels_of_sizes(tmp_path, monkeypatch):
    from pytensor_mvn_rewrites.lower.numba import jit
    from pytensor_mvn_rewrites.lower.numba.warm import kernel_names

    compiled = []
    monkeypatch.setattr(jit, "kernel_address", compiled.append)
    assert main(["warm", "--sizes", "3", "40"]) == 0
    assert compiled == list(dict.fromkeys([*kernel_names(3), *kernel_names(40)]))
    assert all(jit.kernel_function(name) for name in compiled)
