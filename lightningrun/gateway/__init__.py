"""The OpenAI-compatible endpoint that agents talk to."""
