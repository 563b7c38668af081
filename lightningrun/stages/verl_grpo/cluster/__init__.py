"""``backend: ray``: verl's own trainer, unforked, with the user's agent in the loop.

On our side: ``training.py`` (the stage), ``hub.py`` (runs the rollouts that verl asks for), ``policy.py`` (the
policy, answered by verl's rollout servers), ``settings.py`` (our options as verl's), ``trainer.py`` (verl's
processes, none of which is left behind: ``stages/verl_process``). In verl's processes: ``plugin.py``, ``losses.py``,
``rollout.py``, ``server.py``, ``agent_loop.py``, ``sampler.py``. Between the two: ``wire.py``.
"""
