#!/usr/bin/env python3
"""recipe_layout.py RECIPE OUT: what `cocoon image build RECIPE` makes, exported, as an OCI image layout.

So whoever uses the image in a test has tested both commands.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

COCOON = [sys.executable, "-c", "import sys; from cocoon.cli.main import main; sys.exit(main())"]


def main(recipe: str, out: str) -> None:
    work = Path(f"{out}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    cocoon = [*COCOON, "--root-dir", str(work / "root")]
    try:
        subprocess.run([*cocoon, "image", "build", recipe], check=True)
        subprocess.run([*cocoon, "image", "export", "--file", str(work / "image.tar"), recipe], check=True)
        Path(out).mkdir()
        subprocess.run(["tar", "--extract", "--file", str(work / "image.tar"), "--directory", out], check=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
