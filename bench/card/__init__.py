"""`python -m bench card`: everything that a fresh GPU must show, in order of worth, within a few minutes.

A card is a sequence of steps (steps.py), each a process with a limit of its own, whose results are on disk as
they come: a stop, or a step that takes the device with it, loses only what was under way. The results are in
a folder of at most six files (folder.py); the table of promises (promises.py) is made from those files alone.

Without a GPU the same steps run at toy size on the CPU, through Triton's interpreter: that tests the card,
and says nothing of any kernel's speed.
"""
