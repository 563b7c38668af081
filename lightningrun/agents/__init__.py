"""Running an agent and its reward: in forked slots (``process`` and ``command``) or in the runner (``inline``).

``jobs``      what goes in and comes out, and the shape that every pool has
``pool``      the table: which pool runs a recipe's agent
``slots``     runner side of the slots (asyncio); ``slot_server`` and ``slot`` are the processes it talks to
``calling``   finding a function and calling it by the names in its signature
"""
