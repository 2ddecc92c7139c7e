"""One test file for each rule file."""

import re
from pathlib import Path

import pytest

import pytensor_mvn_rewrites

PACKAGE = Path(pytensor_mvn_rewrites.__file__).parent
TESTS = Path(__file__).parent


def public_modules(folder: Path, prefix: str = "") -> set[str]:
    names = {path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.py")}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("stage", ["generative", "reroll", "recognize", "structure"])
def test_rule_files_and_test_files_mirror_each_other(stage):
    assert public_modules(TESTS / stage, "test_") == public_modules(PACKAGE / stage)


def test_helpers_of_structures_import_no_rule_file():
    """Rules stand on helpers, and not the other way round."""
    for path in (PACKAGE / "structure").glob("_*.py"):
        assert not re.findall(r"from pytensor_mvn_rewrites\.structure\.[a-z]\w*", path.read_text())
