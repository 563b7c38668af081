"""A SQL agent over a small cricket database: the task that the demonstration recipe repairs a prompt for."""
