"""The tests of PyTensor and PyMC, without the plugin and with it: what fails only with it?

    cd path/to/pymc
    python path/to/pytensor_mvn_rewrites/tests/hosts.py tests/logprob tests/test_data.py -- -n 2

In a checkout of PyTensor, PyMC or pymc-extras at the version that is installed; what follows ``--``
goes to pytest. The exit status is 1 if a test fails only with the plugin. The variable
`HOSTS_RESULTS` names a file of results to add to, of which ``benchmarks.publish`` makes a table.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

PLUGIN = "pytensor_mvn_rewrites"


def outcomes(paths: list[str], arguments: list[str], plugin: bool) -> dict[str, str]:
    """What became of each test: "passed", "skipped", "failure" or "error"."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", PLUGIN] if plugin else []
        command += [f"--junitxml={report}", *paths, *arguments]
        # each run compiles its own code
        flags = [os.environ.get("PYTENSOR_FLAGS", ""), f"base_compiledir={folder}"]
        environment = os.environ | {"PYTENSOR_FLAGS": ",".join(filter(None, flags))}
        subprocess.run(command, env=environment, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    found = {}
    for case in cases:
        marks = {mark.tag for mark in case} & {"failure", "error", "skipped"}
        found[f"{case.get('classname')}::{case.get('name')}"] = "".join(sorted(marks)) or "passed"
    return found


def main() -> int:
    """Run both, and list the differences."""
    paths = sys.argv[1:]
    arguments = []
    if "--" in paths:
        arguments = paths[paths.index("--") + 1 :]
        paths = paths[: paths.index("--")]
    if not paths:
        raise SystemExit(__doc__)
    off, on = (outcomes(paths, arguments, plugin) for plugin in (False, True))
    fails = {"failure", "error"}
    new = sorted(name for name in on if on[name] in fails and off.get(name) not in fails)
    gone = sorted(name for name in off if name not in on)
    passed = sum(outcome == "passed" for outcome in on.values())
    both = sum(on[name] in fails and off.get(name) in fails for name in on)
    for name in [*new, *gone]:
        print(f"{off.get(name)} without the plugin, {on.get(name)} with it: {name}")  # noqa: T201
    print(  # noqa: T201
        f"{len(on)} tests with the plugin: {passed} passed, {both} fail without it too, "
        f"{len(new)} fail only with it, {len(gone)} did not run"
    )
    if file := os.environ.get("HOSTS_RESULTS"):
        keep(Path(file), paths, len(on), passed, both, len(new) + len(gone))
    return bool(new or gone)


def keep(file: Path, paths: list[str], *counts: int) -> None:
    """Add a run to the file of results."""
    runs = json.loads(file.read_text()) if file.exists() else []
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    names = ("tests", "passed", "fail without it too", "fail only with it")
    runs.append(
        {
            "checkout": Path.cwd().name,
            "files": " ".join(paths),
            "versions": ", ".join(f"{name} {version(name)}" for name in ("pymc", "pytensor")),
            "commit": commit,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **dict(zip(names, counts, strict=True)),
        }
    )
    file.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
