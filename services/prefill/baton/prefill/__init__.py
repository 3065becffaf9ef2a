"""The prefill leg: computes prompts, samples their first token, holds their KV until it is fetched."""
