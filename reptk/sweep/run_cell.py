"""The process of a run: `python -m reptk.sweep.run_cell PARENT_PID`, then the arguments of `python -m reptk.recipe`."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Number of the Linux call that sets which signal a process gets when its parent ends."""


def main() -> int:
    """Train as the command line says, and stop as by SIGTERM when the process of the sweep ends. Returns the exit code."""
    _stop_with_parent(int(sys.argv[1]))
    # Imported now: it takes seconds, in which the parent may end.
    from reptk import recipe

    return recipe.main(sys.argv[2:])


def _stop_with_parent(parent: int) -> None:
    """Get SIGTERM when the parent ends, even if it was killed: nobody would know of this run, or could stop it.

    Only Linux can do this. Elsewhere the run continues, and its lock keeps the next sweep from starting it a second time.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
