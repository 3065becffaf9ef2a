"""The decode leg: fetches a prompt's KV or computes it, and generates to the end."""
