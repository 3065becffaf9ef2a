"""The bundled demo model: its text, its tokenizer, its training, its evaluation, its checkpoint."""
