"""An OpenAI-style server over our generator."""
