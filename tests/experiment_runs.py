"""Experiments one after the other in one process, each as its command runs it.

The argument is JSON: a list of commands, [SCRIPT, ARGUMENT, ...] each. Half of a small run is
imports and programs that others have compiled. The last line of the output is JSON: what each
script printed, and its traceback or "".
"""

import io
import json
import runpy
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path


def outcome(command: list[str]) -> tuple[str, str]:
    sys.argv = command
    printed, error = io.StringIO(), ""
    try:
        with redirect_stdout(printed):
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        error = f"exit status {end.code}" if end.code else ""
    except Exception:
        error = traceback.format_exc()
    return printed.getvalue(), error


if __name__ == "__main__":
    commands = json.loads(sys.argv[1])
    sys.path.insert(0, str(Path(commands[0][0]).parent))
    print(json.dumps({Path(command[0]).stem: outcome(command) for command in commands}))
