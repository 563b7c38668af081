"""Tasks to try lightningrun on. Each folder is an agent, its data and its reward, and imports no lightningrun."""
