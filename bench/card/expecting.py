"""What runs of the record's recipe are expected to take on the chip that is here: the sum of the measured
times of what they launch. `python -m bench.card.expecting` prints it in JSON, a line for each choice of
kernels; it needs only a CPU.
"""

from __future__ import annotations

import hlb
from hlb.cost import expected
from kernels.base import chips

from .steps import result
from .trains import CONFIGURATIONS


def main() -> None:
    expectations = {}
    for one in CONFIGURATIONS:
        if one.recipe == CONFIGURATIONS[0].recipe:
            this = expected.of(hlb.recipe(one.recipe, one.settings), one.kernels, chips.here())
            expectations[one.name] = {"seconds": this.seconds, "measured_share": this.measured_share}
            result({"expected": expectations})


if __name__ == "__main__":
    main()
