"""From promoted aliases to answers: what a vLLM replica serves, and how it follows the registry."""
