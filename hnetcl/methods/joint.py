"""Joint training: all data seen so far stays at hand. The upper baseline."""

from hnetcl.methods.base import Draw, Inputs, Method, Run
from hnetcl.registry import register


@register("method", "joint")
class Joint(Method):
    """While task t is current, the steps' batches come from tasks 0, 1, ..., t, 0, 1, ... in turn."""

    sees_old_data = True

    def inputs(self, run: Run, draw: Draw) -> Inputs:
        task = run.step % (run.task + 1)
        x, y = draw(task)
        return Inputs(x, y, task)
