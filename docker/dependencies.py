"""Print what a pyproject.toml depends on, one requirement a line: what the image installs first."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
print(*project["dependencies"], sep="\n")
