"""Which settings are secrets: what shows settings leaves them out."""

SECRETS = frozenset(("api_key", "admin_api_key", "cache_key", "redis_password", "curve_secret_key"))
