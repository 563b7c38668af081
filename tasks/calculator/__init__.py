"""Arithmetic with a calculator: a task of several turns with a tool, to show that nothing is special to SQL.

- ``agent.py`` gives a model one tool, ``calculator``, in the plain OpenAI SDK, and lets it call as often as it needs.
- ``arithmetic.py`` is the tool: ``+ - * / ( )`` over exact numbers, by a parser, without ``eval``.
- ``reward.py`` wants the exact number, however it was found.
- ``stories.py`` are the kinds of problems, bare and in words, of one to four steps; ``build.py`` makes rows of them.
- ``simulation.py`` stands in for a model, so that ``recipes/calculator.yaml`` runs with no key and no download.

Splits: ``train``, ``val`` and ``test`` for prompts; ``sft`` (steps to imitate) and ``rl`` for weights. No problem is in
two of them. A row: ``question``, ``answer``, ``steps`` (what a careful solver would ask the calculator, in turn) and
``tags`` (easy, medium, hard by the number of steps; words or expression). ``agent.gold(row)`` is its conversation, tool
calls and all.
"""
