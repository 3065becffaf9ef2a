"""The store of a host: KV blocks in memory that its workers share, and on disk."""
