"""The help of each command of `hlb`, as it is printed. That of sweep and compare stands with what they do."""

import textwrap

from ..ranges import DTYPES
from ..recipes import RECIPES

WIDTH = 80

TRAIN = """\
usage: hlb [train] [options]         hlb COMMAND --help for another command:
       sweep, compare, eval, recipes, audit, env

Trains a network on CIFAR-10; alone record94, on a CPU cpu94. Reports the time.

  --recipe NAME   {recipes}
  --set FIELD=VALUE   change fields of the recipe (see `hlb recipes NAME`)
  --data WHAT         auto, cifar10, cifar100, svhn, synthetic, DIR, folder:DIR
  --device NAME       auto, cpu, cuda, mps
  --dtype NAME        auto, {dtypes}
  --epochs N  --runs N  --seed N      run i trains from seed N + i
  --eval-every N      validate every N epochs, off the clock; 0 is never
  --compile on|off  --graph off|step|run   (GPU: on, step; triton: off, step)
  --kernels NAME      reference, triton, tuned (auto); or triton,sgd=reference
  --channels-last on|off  --threads N  --deterministic  --quiet
  --json [FILE|-]  --ledger FILE  --save MODEL  --profile FILE (op by op)

  hlb                                              the main job
  hlb --recipe seed --runs 5 --json out.json
  hlb --recipe seed --set base_depth=128 epochs=80     hlb-CIFAR10's long run
  hlb --recipe smoke --data synthetic              seconds, and needs no data
  hlb --save model.pt && hlb eval model.pt --views flip
"""

EVAL = """\
usage: hlb eval MODEL [options]

Tests a network that `hlb --save MODEL` wrote: accuracy and loss.

  --views NAME        none, flip or flip+shift; the recipe's if not given
  --data WHAT         auto (what it was trained on), or as for training
  --dtype NAME        auto, {dtypes}
  --device NAME       auto, cpu, cuda, mps
  --channels-last on|off  --threads N  --quiet
  --json [FILE|-]     the same as JSON; - is standard output

  hlb eval model.pt
  hlb eval model.pt --views none --dtype float32 --json
"""

AUDIT = """\
usage: hlb audit [options]

Trains once and counts what is done on the clock and off it: resets, whitenings,
orders, augmentations and updates. Exit status 1 where one is missing or
misplaced.

  --recipe NAME  --set FIELD=VALUE  --data WHAT  --device NAME  --dtype NAME
  --graph NAME  --kernels NAME  --channels-last on|off  --threads N  --seed N
  --deterministic  --quiet                   as for training; not compiled
  --json [FILE|-]     the counts as JSON; - is standard output

  hlb audit --recipe smoke
"""

RECIPE = """\
usage: hlb recipes [NAME [--set FIELD=VALUE ...] [--kernels CHOICE]] [options]

All recipes side by side: parameters, FLOPs, steps. Of NAME also its fields:
what each takes, and what it means.

  --set FIELD=VALUE   as it is with other values of its fields; trains nothing
  --kernels CHOICE    what a step launches with reference, triton, tuned, or
                      triton,sgd=reference; a run's floor and expected time
  --json [FILE|-]     the same as JSON; - is standard output

  hlb recipes
  hlb recipes seed --set base_depth=128 epochs=80
  hlb recipes seed --kernels triton
"""

ENV = """\
usage: hlb env [--json [FILE|-]]

Versions, devices, what `auto` stands for here, and where data are kept.

  --json [FILE|-]     the same as JSON; - is standard output

  hlb env
"""


def page(text: str) -> str:
    """A help text with the names of today."""
    names = textwrap.shorten(", ".join(RECIPES), WIDTH - len("  --recipe NAME   "), placeholder=" ...")
    return text.format(recipes=names, dtypes=", ".join(DTYPES))
