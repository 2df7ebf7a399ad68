"""Models that transformers computes (``--via transformers``), behind the face that every runner has to the engine."""
