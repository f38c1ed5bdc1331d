"""The vision-language model: a Hugging Face class around any encoders, connector, fusion and causal LM."""
