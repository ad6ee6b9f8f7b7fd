from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import al_strategies


def test_the_example_in_the_readme_runs() -> None:
    readme = Path(al_strategies.__file__).with_name("README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    names = {"entropy": np.array([0.3, 0.9, 0.8, 0.1])}
    exec(example, names)
    selection = names["selection"]
    assert isinstance(selection, al_strategies.Selection)
    assert selection.chosen + selection.reserve == (12, 14, 13)
