"""The command line of the scripts of mesh cases: runs cases, with a line for each."""

import sys
import traceback
from collections.abc import Callable, Mapping


def main(cases: Mapping[str, Callable[[], None]]) -> None:
    """Run the cases whose names contain an argument, or all, and exit with 1 if one failed."""
    wanted = sys.argv[1:]
    chosen = [name for name in cases if not wanted or any(part in name for part in wanted)]
    passed = [_passes(name, cases[name]) for name in chosen]
    sys.exit(not all(passed))


def _passes(name: str, run: Callable[[], None]) -> bool:
    """Run a case, and print PASS or FAIL, its name and, of a failure, the place and the reason."""
    try:
        run()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{f.filename}:{f.lineno}" for f in frames if "/jaxsoftmax/" in f.filename]
        reason = " ".join(str(error).split())[:600]
        print("FAIL", name, places[-1:], type(error).__name__, reason, flush=True)
        return False
    print("PASS", name, flush=True)
    return True
