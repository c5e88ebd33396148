"""What runs are expected to take on the chip that is here: the sum of the measured times of what they launch.

Computed before anything is measured, so that the table stands beside what was known.
"""

from __future__ import annotations

import hlb
from kernels import chips

from .steps import Context, result, say
from .trains import CONFIGURATIONS


def run(context: Context) -> None:
    from hlb import expected

    found = {}
    for one in CONFIGURATIONS[:1] if context.toy else CONFIGURATIONS:
        if context.left() < 0:
            break
        this = expected.of(hlb.recipe(one.recipe), one.kernels, chips.here())
        found[one.name] = {"seconds": this.seconds, "measured_share": this.measured_share}
        say(f"{one.name}: {this.seconds:.3f} s, {this.measured_share:.0%} of it from measured times")
        result(found)
