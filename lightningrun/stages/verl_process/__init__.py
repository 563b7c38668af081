"""What stages share that run one of verl's own trainers: its process, guard, configuration and checkpoints.

On our side: ``process.py`` (verl in a process of its own), ``guard.py`` (nothing of it is left behind),
``life.py`` (whether it lives, and what it spent),
``configuration.py`` (a recipe's ``verl:`` block against verl's own files), ``export.py`` (what verl saved as a
checkpoint that anything loads). In verl's processes: ``cpu.py``, where there is no accelerator.
"""
