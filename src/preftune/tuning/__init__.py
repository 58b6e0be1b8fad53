"""Several models measured alike and one chosen: the strengths of one adapter, and the settings of a stage."""
