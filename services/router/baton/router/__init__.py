"""The router: one OpenAI-compatible server in front of prefill and decode workers. No torch, no KV."""
