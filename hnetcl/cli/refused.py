"""Jobs of a multirun that never became a run: what a report says of them."""

import json
import os
from contextlib import suppress
from pathlib import Path

from hnetcl.cli.call import Call
from hnetcl.errors import one_line
from hnetcl.files import REFUSED_JOBS


def record_refusal(call: Call, error: BaseException) -> None:
    """Leaves a line of JSON in the folder of the multirun: `directory` below that folder, `overrides`, `reason`.

    A job that has begun has a log of its own, which says what became of it; outside of multiruns there is no folder for it.
    """
    if call.directory is None or call.sweep is None or (Path(call.directory) / "config.yaml").exists():
        return
    place = os.path.relpath(call.directory, call.sweep)
    line = json.dumps({"directory": place, "overrides": call.overrides, "reason": one_line(error)})
    # The reason is on the screen too: where nothing can be written, the other jobs go on all the same.
    with suppress(OSError), (Path(call.sweep) / REFUSED_JOBS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")  # at once: other jobs may write at the same time
