"""Move whole KV blocks between workers over ZeroMQ; knows no sequence, scheduler or model."""
