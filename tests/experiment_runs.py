"""Experiments one after the other in one process, each as its command runs it: SCRIPT ...

Half of a small run is imports and programs that others have compiled. The last line of the output
is JSON: how many lines each script printed, or its traceback.
"""

import io
import json
import runpy
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path


def outcome(script: str) -> int | str:
    sys.argv = [script, "--smoke"]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            return f"exit status {end.code}"
    except Exception:
        return traceback.format_exc()
    return len(printed.getvalue().splitlines())


if __name__ == "__main__":
    scripts = sys.argv[1:]
    sys.path.insert(0, str(Path(scripts[0]).parent))
    print(json.dumps({Path(script).stem: outcome(script) for script in scripts}))
