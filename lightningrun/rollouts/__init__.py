"""Dataset x agent x reward -> journal: each rollout executed once, scored, and written down before it is handed on."""
