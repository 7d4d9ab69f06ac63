"""Model cards for bundles and heads, and their way to the Hugging Face hub."""
