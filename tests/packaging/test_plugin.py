"""A detector of another package: the ten lines of the documentation, built, installed and chosen by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "DETECTION.md"
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "my-package"
version = "1.0"
"""
IMPORTS = "import numpy as np\n\nfrom refold.consumers.detectors import Scores\n\n\n"
USE = """
import numpy as np, refold
rng = np.random.default_rng(1)
deltas = (1 + rng.normal(size=(12, 600))).astype("f4")
deltas[5] *= 4
names = [f"c{index}" for index in range(12)]
detection = refold.Detection(refold.DetectionConfig(detectors=("longest",)))
verdicts = detection.judge(refold.Cohort(1, names, deltas, [1] * 12))
print([(name, verdict.reasons) for name, verdict in zip(names, verdicts) if not verdict.accepted])
"""


def documented(kind: str, *, after: str) -> str:
    page = PAGE.read_text()
    found = re.search(rf"```{kind}\n(.*?)```", page[page.index(after) :], re.DOTALL)
    assert found is not None
    return found[1]


def test_the_ten_lines_of_the_documentation_are_a_package_that_is_installed_and_chosen(tmp_path: Path) -> None:
    heading = "## Add a detector in ten lines"
    code = documented("python", after=heading)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "my_package.py").write_text(IMPORTS + code)
    (source / "pyproject.toml").write_text(PROJECT + "\n" + documented("toml", after=heading))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, source], check=True)
    path = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", USE], check=True, capture_output=True, text=True, env=path)
    assert done.stdout.strip() == "[('c5', ('norm',))]"
    alone = subprocess.run([sys.executable, "-c", USE], check=False, capture_output=True, text=True)
    assert "there is no detector 'longest'" in alone.stderr, "without the package there is none of that name"
