"""The status of the records, as `efftx list` asks for it."""

from __future__ import annotations

import subprocess
import sys


def test_every_shipped_item_is_listed_without_an_import_of_torch() -> None:
    code = "import sys, efftx.cli; code = efftx.cli.main(['list', '--json']); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
